"""`rfjax prepare --frames` with stand-ins for the frozen models: corpora of clips, and what becomes of bad files."""

import json

import numpy as np
import pytest

from helpers.small_sources import write_parquet, write_tar
from helpers.stand_ins import StandIns, Writer, data_config, prepare, recaption
from helpers.tiny_clips import VP9, animation, greys, numbers, sound, turned, video
from rfjax.cli import main
from rfjax.data.corpus import load_corpus
from rfjax.data.prepared import frozen, manifest
from rfjax.data.prepared.records import unpack
from rfjax.data.prepared.shards import Shards
from rfjax.prepare import storage
from rfjax.prepare.clips import ClipRule
from rfjax.prepare.recipe import Recipe

CLIPS = ("--size=16", "--frames=4", "--fps=10", "--batch-size=4", "--shard-size=5", "--precision=float32")
WHOLE = {
    "a.mp4": video(greys(12)),
    "b.webm": video(greys(12, first=3), "webm", **VP9),
    "c.gif": animation(greys(12, first=1), "GIF"),
    "d.webp": animation(greys(12, first=2)),
    "e.mp4": turned(video(greys(4, 15, 17), rate=10)),
    "f.mp4": video(greys(24, first=2), rate=20),
}
BAD = {
    "audio.mp4": (sound(), "no video"),
    "cut.mp4": (video(greys(8))[:700], "corrupt"),
    "empty.webm": (b"", "corrupt"),
    "short.mp4": (video(greys(3)), "fewer than 4 frames"),
    "slides.gif": (animation(greys(4), "GIF", 2000), "fewer pictures than half the frames"),
    "still.webp": (animation(greys(1)), "fewer than 4 frames"),
    "text.mp4": (b"words", "corrupt"),
}


def fill(folder, files):
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text(f"a clip of {name}")
    return folder


def records(folder, split="train", bucket="4x16x16"):
    files = manifest.read(folder).files(split, bucket, "images")
    shards = Shards([folder / name for name in files.names], files.counts)
    return [unpack(record) for record in shards.read(np.arange(len(shards)))]


def digests(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Pixels(StandIns):
    """Stand-ins for text alone; latents are pixels."""

    reduction, shift, scale = 1, 0.0, 1.0

    def __init__(self, before=lambda: None):
        super().__init__(before)
        self.facts["vae"]["class"] = "identity"

    def latents(self, images):
        self._before()
        return frozen.pixel_models().latents(images)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("clips") / "in", {**WHOLE, **{name: data for name, (data, _) in BAD.items()}})


@pytest.fixture(scope="module")
def corpus(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus") / "out"
    with pytest.MonkeyPatch.context() as patch:
        words = (source, f"--out={out}", "--clips=2", "--validation-share=0.4", *CLIPS)
        assert prepare(patch, *words, models=Pixels()) == 0
    return out


def test_clips_are_stored_with_their_frames_and_bad_files_are_counted(corpus):
    """Catches frames of another clip, a file that is left out without a word, and a file with clips in both splits."""
    facts = manifest.read(corpus).facts
    reasons = [reason for _, reason in BAD.values()]
    assert facts["dropped"] == {reason: reasons.count(reason) for reason in reasons}
    assert facts["buckets"][0]["pixels"] == [4, 16, 16] and facts["buckets"][0]["latents"] == [4, 16, 16, 3]
    assert facts["recipe"]["clips"] == {"frames": 4, "rate": "10", "most": 2} and "av" in facts["models"]["made_with"]
    assert facts["converted"]["turned upright"] == 1 and facts["converted"]["longer than its clips"] == 5
    found, splits = {}, {}
    for split in ("train", "validation"):
        for arrays, about in records(corpus, split):
            name, number = about["key"].split("#")
            pixels = (arrays["latents"] + 1) * 127.5
            found[about["key"]] = numbers(pixels)
            splits.setdefault(name, set()).add(split)
            assert about["start"] == pytest.approx(0.4 * int(number))
    assert splits.keys() == WHOLE.keys() and all(len(its) == 1 for its in splits.values())
    for name, first, step in (("a.mp4", 0, 1), ("b.webm", 3, 1), ("c.gif", 1, 1), ("d.webp", 2, 1), ("f.mp4", 2, 2)):
        for number in range(2):
            start = first + 4 * number * step
            assert found[f"{name}#{number}"] == list(range(start, start + 4 * step, step))
    assert found["e.mp4#0"] == [0, 1, 2, 3] and "e.mp4#1" not in found


def test_the_estimate_counts_frames_and_clips_of_a_file(monkeypatch, tmp_path, capsys):
    """Catches the estimate of a corpus of images, which is a fraction of what clips take."""
    names = ("a.mp4", "b.webm", "c.gif", "d.webp")  # each gives two clips
    files = fill(tmp_path / "in", {name: WHOLE[name] for name in names})
    words = (files, f"--out={tmp_path / 'out'}", "--clips=2", "--validation-share=0", *CLIPS)
    assert prepare(monkeypatch, *words, "--estimate", models=Pixels()) == 0
    said = capsys.readouterr().out
    assert "at most 8 clips with a caption each" in said and "of a million clips" in said
    assert prepare(monkeypatch, *words, models=Pixels()) == 0
    pixels = sum(arrays["latents"].nbytes for arrays, _ in records(tmp_path / "out"))
    rule = Recipe(buckets=((16, 16),), precision="float32", clips=ClipRule(4, "10", 2))
    assert pixels < 8 * (storage.image_bytes(rule, 1, 3) - storage.FRAME) < pixels + 8 * 5 * storage.A_THUMBNAIL
    causal = Recipe(buckets=((16, 16),), precision="float32", clips=ClipRule(17))
    fewer = storage.image_bytes(causal, 1, 3) - storage.image_bytes(causal, 1, 3, 4)
    assert fewer == (17 - 5) * 16 * 16 * 3 * 4


def test_a_tar_and_a_parquet_file_give_what_the_folder_gives(monkeypatch, tmp_path):
    names = [name for name in WHOLE if name != "e.mp4"]
    members = [(name, WHOLE[name]) for name in names]
    texts = [(f"{name.split('.')[0]}.txt", f"a clip of {name}".encode()) for name in names]
    write_tar(tmp_path / "t.tar", [*members, *texts])
    write_parquet(
        tmp_path / "p.parquet",
        {"video": [WHOLE[name] for name in names], "caption": [f"a clip of {name}" for name in names]},
    )
    fill(tmp_path / "folder", {name: WHOLE[name] for name in names})
    stored = []
    for where in ("folder", "t.tar", "p.parquet"):
        out = tmp_path / f"out-{where}"
        given = (tmp_path / where, f"--out={out}", "--validation-share=0", *CLIPS)
        assert prepare(monkeypatch, *given, models=Pixels()) == 0
        stored.append([arrays["latents"] for arrays, _ in records(out)])
    assert np.array_equal(stored[0], stored[1]) and np.array_equal(stored[0], stored[2]) and len(stored[0]) == 5


def test_preparations_of_clips_that_are_killed_end_in_the_same_bytes(monkeypatch, source, corpus, tmp_path):
    """Catches clips whose order depends on the threads, or on where the work was taken up again."""
    words = (source, f"--out={tmp_path / 'out'}", "--clips=2", "--validation-share=0.4", *CLIPS)
    for at in (1, 2, 2):
        left = [at]

        def before(left=left):
            left[0] -= 1
            if not left[0]:
                raise MemoryError

        assert prepare(monkeypatch, *words, models=Pixels(before)) == 1
    assert prepare(monkeypatch, *words, "--threads=1", models=Pixels()) == 0
    assert digests(tmp_path / "out") == digests(corpus)


def test_a_folder_of_clips_needs_frames_and_one_of_images_none(monkeypatch, source, tmp_path, capsys):
    only = fill(tmp_path / "only", {"a.mp4": WHOLE["a.mp4"]})
    assert prepare(monkeypatch, only, f"--out={tmp_path / 'a'}") == 2
    assert "--frames reads its clips" in capsys.readouterr().err
    assert prepare(monkeypatch, source, f"--out={tmp_path / 'b'}", "--fps=8") == 2
    assert "give --frames, too" in capsys.readouterr().err
    causal = Pixels()
    causal.time_reduction = 4
    assert prepare(monkeypatch, source, f"--out={tmp_path / 'c'}", "--frames=16", "--size=16", models=causal) == 2
    assert "takes 1 + 4k frames, and would cut or pad others: give 13 or 17" in capsys.readouterr().err
    assert not any((tmp_path / name).exists() for name in "abc")


def test_pictures_beside_clips_are_said_to_be_left_out(monkeypatch, tmp_path, capsys):
    files = fill(tmp_path / "in", {"a.mp4": WHOLE["a.mp4"], "b.jpg": b"a still"})
    assert prepare(monkeypatch, files, f"--out={tmp_path / 'out'}", *CLIPS, models=Pixels()) == 0
    assert "b.jpg" in capsys.readouterr().err


def clips_config(corpus, **prepared):
    config = data_config(corpus, **prepared)
    return type(config)(**{**vars(config), "image_size": 16, "frames": 4})


CUT = ("--frames=4", "--fps=10", "--clips=2", "--shard-size=5")
SAY = Writer(say=lambda *images: ("shows " + " ".join(str(numbers(np.asarray(one)[None])[0]) for one in images),))


def written(out):
    lines = [line for path in sorted(out.glob("shard-*-of-?????.jsonl")) for line in path.read_text().splitlines()]
    return {row["key"]: row["captions"] for row in map(json.loads, lines)}


def test_each_clip_is_captioned_by_its_frames_and_prepared_with_its_captions(
    monkeypatch, source, corpus, tmp_path, capsys
):
    """Catches frames of another clip, captions of a file's first clip given to all, files that recaption leaves out and
    prepare does not, and a clip without a caption that is kept."""
    out = tmp_path / "captions"
    assert recaption(monkeypatch, source, f"--out={out}", *CUT, model=SAY) == 0
    stored = {about["key"]: arrays for split in ("train", "validation") for arrays, about in records(corpus, split)}
    frames = {key: numbers((arrays["latents"] + 1) * 127.5) for key, arrays in stored.items()}
    assert written(out) == {key: [f"shows {each[2]}"] for key, each in frames.items()}
    facts = json.loads((out / "captions.json").read_text())
    assert facts["dropped"] == manifest.read(corpus).facts["dropped"] and facts["settings"]["shown_frames"] == [2]
    assert "11 captions of 11 clips" in capsys.readouterr().out
    assert recaption(monkeypatch, source, f"--out={tmp_path / 'three'}", *CUT, "--shown-frames=3", model=SAY) == 0
    spread = {key: [f"shows {each[0]} {each[2]} {each[3]}"] for key, each in frames.items()}
    assert written(tmp_path / "three") == spread
    # Prepared: no file has a caption of its own, one clip's is left out, another is dropped by its key.
    alone = fill(tmp_path / "alone", {name: WHOLE[name] for name in ("a.mp4", "d.webp")})
    for text in alone.glob("*.txt"):
        text.unlink()
    own = {key: captions for key, captions in written(out).items() if key[0] in "ad" and key != "a.mp4#0"}
    lines = [json.dumps({"key": key, "captions": captions}) + "\n" for key, captions in own.items()]
    (tmp_path / "own.jsonl").write_text("".join(lines))
    (tmp_path / "drop").write_text("d.webp#1\tlisted here\n")
    words = (f"--synthetic-captions={tmp_path / 'own.jsonl'}", f"--drop-keys={tmp_path / 'drop'}", "--clips=2", *CLIPS)
    made = tmp_path / "made"
    assert prepare(monkeypatch, alone, f"--out={made}", *words, "--validation-share=0", models=Pixels()) == 0
    found = manifest.read(made).facts
    assert found["dropped"] == {"no caption": 1, "listed here": 1} and found["captions"]["synthetic"] == 2
    assert "name no image" not in capsys.readouterr().err
    config = clips_config(made, synthetic_captions=1.0)
    said = load_corpus(config, 0).captions(np.arange(20), "train")
    assert set(said) == {*own["a.mp4#1"], *own["d.webp#0"]}
    assert {about["key"] for _, about in records(made)} == {"a.mp4#1", "d.webp#0"}


def test_captions_and_lists_of_keys_made_under_another_rule_are_refused(monkeypatch, source, tmp_path, capsys):
    """Catches captions written for other frames, joined by the clip's number without a word."""
    captions = tmp_path / "captions"
    assert recaption(monkeypatch, source, f"--out={captions}", *CUT, model=SAY) == 0
    (tmp_path / "drop.tsv").write_text("a.mp4#0\tnear-duplicate\n")
    (tmp_path / "drop.json").write_text(json.dumps({"clips": {"frames": 4, "rate": "10", "most": 2}}))
    base = (source, f"--out={tmp_path / 'out'}", "--size=16", "--fps=10")
    for option in (f"--synthetic-captions={captions}", f"--drop-keys={tmp_path / 'drop.tsv'}"):
        for other in (("--frames=6", "--clips=2"), ("--frames=4", "--clips=3"), ("--frames=4",)):
            assert prepare(monkeypatch, *base, option, *other, models=Pixels()) == 2
            said = capsys.readouterr().err
            assert (
                "was made for clips of 4 frames, 10 frames a second, at most 2 of a file" in said and "or make" in said
            )
    assert not (tmp_path / "out").exists()
    stills = fill(tmp_path / "stills", {"a.webp": WHOLE["d.webp"]})
    assert prepare(monkeypatch, stills, base[1], f"--synthetic-captions={captions}", models=Pixels()) == 2
    assert "and this command reads images" in capsys.readouterr().err


def test_keys_of_clips_are_told_from_keys_of_files(monkeypatch, tmp_path, capsys):
    """Catches clip keys that pass for validation keys, which are those of files; and keys of clips that no file has."""
    files = fill(tmp_path / "in", {name: WHOLE[name] for name in ("a.mp4", "b.webm", "f.mp4")})
    (tmp_path / "keys").write_text("a.mp4#0\nb.webm#1\n")
    words = (files, f"--out={tmp_path / 'out'}", "--clips=6", *CLIPS)
    assert prepare(monkeypatch, *words, f"--validation-keys={tmp_path / 'keys'}", models=Pixels()) == 2
    assert "names a file (its key without #NUMBER)" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "drop").write_text("a.mp4#0\nb.webm#5\na.mp4#7\n")  # a file has three clips
    assert (
        prepare(monkeypatch, *words, "--validation-share=0", f"--drop-keys={tmp_path / 'drop'}", models=Pixels()) == 0
    )
    said = capsys.readouterr().err
    assert "a.mp4#7" in said.split("b.webm#5")[0] and "b.webm#5" in said  # before and after the work
    assert {about["key"] for _, about in records(tmp_path / "out")} >= {"a.mp4#1", "b.webm#0", "f.mp4#2"}


def test_corrupt_files_are_limited_as_a_share_of_files(monkeypatch, tmp_path, capsys):
    """Catches a share of clips, by which half of the files may be corrupt where the others have many clips."""
    good = {f"g{number:02}.mp4": WHOLE["a.mp4"] for number in range(12)}
    bad = {f"z{number:02}.mp4": b"words" for number in range(12)}
    files = fill(tmp_path / "in", {**good, **bad})
    words = (files, "--clips=3", *CLIPS[:-3], "--shard-size=99", "--corrupt-limit=0.4")
    assert prepare(monkeypatch, *words, f"--out={tmp_path / 'out'}", models=Pixels()) == 1
    assert "12 of the first 24" in capsys.readouterr().err


def test_options_of_clips_that_cannot_be_are_refused(monkeypatch, source, tmp_path, capsys):
    for words, said in {
        ("--shown-frames=2",): "--shown-frames is 2, and is for clips; give --frames, too",
        ("--frames=4", "--shown-frames=5"): "--shown-frames is 5; it must lie in [1, 4]",
        ("--clips=2",): "--clips is 2, and is for clips; give --frames, too",
    }.items():
        assert recaption(monkeypatch, source, f"--out={tmp_path / 'out'}", *words, model=SAY) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_inspect_shows_clips_as_strips(corpus, tmp_path, capsys):
    """Catches a picture of the first frame alone, which shows no motion."""
    from PIL import Image

    arrays, _ = records(corpus)[0]
    import io

    assert Image.open(io.BytesIO(bytes(arrays["thumbnail"]))).size == (4 * 64, 64)
    assert main(["inspect", str(corpus), f"--out={tmp_path / 'strips.png'}"]) == 0
    said = capsys.readouterr().out
    assert "every file is as it was written" in said and "--config.data.frames=4" in said
    assert "clips of 4 frames, 10 frames a second, at most 2 of a file" in said
    assert (tmp_path / "strips.png").stat().st_size > 1000


def test_a_corpus_gives_clips_back_as_pixels(corpus):
    found = load_corpus(clips_config(corpus), 0)
    batch = found.examples(np.arange(3), "train")
    assert batch.latents.shape == (3, 4, 16, 16, 3)
    pixels = found.to_clips(batch.latents)
    assert pixels.shape == (3, 4, 16, 16, 3) and np.allclose(found.to_latents(pixels), batch.latents, atol=1e-6)


def test_a_corpus_of_clips_trains_and_resumes_to_the_same_numbers(corpus, tmp_path):
    """Catches a corpus whose clips come in another order after a kill, and a batch without its frames."""
    from helpers.bucketed_tiny import pixelwise, stop_at
    from helpers.training_tiny import rows, run_in
    from rfjax.config import apply_overrides, from_dict
    from rfjax.errors import Preempted
    from rfjax.training.loop import train

    settings = {
        "data.corpus": "prepared",
        "data.prepared.path": str(corpus),
        "data.frames": 4,
        "data.image_size": 16,
        "data.channels": 3,
        "data.context_tokens": 12,
        "data.context_size": 20,
        "data.pooled_size": 7,
        "model.hidden": 16,
        "model.head_size": 8,
        "model.patch_size": 4,
        "train.steps": 4,
        "train.batch_size": 2,
        "train.checkpoint_every": 2,
        "train.log_every": 1,
        "evaluation.geneval.prompts_per_task": 0,
    }
    config = apply_overrides(from_dict({}), settings)
    clips = load_corpus(config.data, config.seed)

    def run(name):
        return run_in(tmp_path / name, config, clips, pixelwise(config))

    train(run("whole"), log_seconds=1e9)
    with pytest.raises(Preempted):
        train(run("cut"), log_seconds=1e9, stop=stop_at(2))
    train(run("cut"), log_seconds=1e9)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole") and len(rows(tmp_path / "whole")) == 4
