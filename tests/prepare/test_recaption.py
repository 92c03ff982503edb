"""`rfjax recaption` with a stand-in for the model, and `rfjax prepare --synthetic-captions` with its captions."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from test_images import CORRUPT
from test_prepare import digests

from helpers import child_process, photographs
from helpers.photographs_tfds import write_tfds
from helpers.stand_ins import Writer, data_config, prepare, recaption, said_of
from rfjax.data.corpus import load_corpus
from rfjax.data.prepared import manifest
from rfjax.prepare import images

SHARDS = "--shard-size=5"


def rows(folder):
    found = json.loads((folder / "captions.json").read_text())
    lines = [line for shard in found["shards"] for line in (folder / f"{shard['name']}.jsonl").read_text().splitlines()]
    return {row["key"]: row["captions"] for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("written") / "out"
    with pytest.MonkeyPatch.context() as patch:
        assert recaption(patch, folder, f"--out={out}", SHARDS) == 0
    return out


def test_each_image_has_the_captions_of_its_own_pixels(monkeypatch, folder, written, tmp_path):
    """Catches a batch's captions given to its neighbours, images lost at a batch's or part's end, and another crop.
    The expected crop is NumPy's, of the decoded array."""
    expected, whole = {}, {}
    for name in photographs.FILES:
        pixels = np.asarray(images.Image.open(folder / "sub" / f"{name}.png"))
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        expected[f"sub/{name}.png"] = [
            said_of(images.Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side])))
        ]
        whole[f"sub/{name}.png"] = [said_of(images.Image.fromarray(pixels))]
    assert rows(written) == expected and expected != whole
    facts = json.loads((written / "captions.json").read_text())
    assert (facts["images"], facts["captions"], facts["empty"]) == (16, 16, 0) and facts["model"]["sha256"] == "abc"
    assert recaption(monkeypatch, folder, f"--out={tmp_path / 'whole'}", "--crop=none", "--batch-size=3") == 0
    assert rows(tmp_path / "whole") == whole


def test_a_killed_process_is_gone_on_from_and_tasks_make_the_same_bytes(monkeypatch, folder, written, tmp_path, capsys):
    """SIGKILL in the second part, then the same command; and two tasks with a merge that loads no model. Catches files
    half-written or appended to, a part made again, and an order that depends on who made what."""
    script = (
        "import os, signal, pytest\nfrom helpers import stand_ins as t\n"
        "left = [4]\n"
        "def before():\n    left[0] -= 1\n    left[0] or os.kill(os.getpid(), signal.SIGKILL)\n"
        f"t.recaption(pytest.MonkeyPatch(), {str(folder)!r}, '--out={tmp_path / 'out'}', {SHARDS!r}, "
        "model=t.Writer(before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=child_process.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert len(list((tmp_path / "out").glob("shard-*.json"))) == 1 and not (tmp_path / "out" / "captions.json").exists()
    calls = []
    assert (
        recaption(monkeypatch, folder, f"--out={tmp_path / 'out'}", SHARDS, model=Writer(lambda: calls.append(1))) == 0
    )
    assert len(calls) == 5  # two of each part of five images, one of the part of one
    assert all(digests(tmp_path / "out")[name] == digest for name, digest in digests(written).items())
    out = f"--out={tmp_path / 'tasks'}"
    assert recaption(monkeypatch, folder, out, SHARDS, "--task=1/2") == 0
    assert recaption(monkeypatch, folder, out, SHARDS, "--merge", model=object()) == 1
    assert "2 of 4 files are not there, shard-00000-of-00004 first" in capsys.readouterr().err
    assert (
        prepare(monkeypatch, folder, f"--out={tmp_path / 'early'}", f"--synthetic-captions={tmp_path / 'tasks'}") == 2
    )
    assert "holds no finished captions" in capsys.readouterr().err
    assert recaption(monkeypatch, folder, out, SHARDS, "--task=0/2") == 0
    assert recaption(monkeypatch, folder, out, SHARDS, "--merge", model=object()) == 0
    assert digests(tmp_path / "tasks") == digests(written)
    assert recaption(monkeypatch, folder, out, SHARDS, "--max-tokens=5") == 2
    assert "settings.max_tokens was 77 and is now 5" in capsys.readouterr().err


def test_corrupt_images_are_counted_empty_captions_too_and_filters_leave_out(monkeypatch, tmp_path, capsys):
    """Catches a bad image that ends the work or shifts the captions of those after it."""
    root = photographs.write_folder(tmp_path / "in", ["brick", "camera", "coins", "grass", "moon", "rocket"])
    for number, data in enumerate(CORRUPT.values()):
        (root / "sub" / f"c{number}.png").write_bytes(data)
    silent = np.asarray(images.Image.open(root / "sub" / "coins.png").convert("RGB"))
    side = min(silent.shape[:2])
    say = lambda image: () if said_of(image) == said_of(_square(silent, side)) else (said_of(image),)  # noqa: E731
    (tmp_path / "drop").write_text("sub/grass.png\tduplicate\n")
    out = tmp_path / "out"
    status = recaption(
        monkeypatch,
        root,
        f"--out={out}",
        f"--drop-keys={tmp_path / 'drop'}",
        "--filter=aspect<1.3",
        model=Writer(say=say),
    )
    assert status == 0 and "1 images without one" in capsys.readouterr().out
    facts = json.loads((out / "captions.json").read_text())
    wide = [
        name
        for name in ("brick", "camera", "moon", "rocket", "coins")
        if np.divide(*images.Image.open(root / "sub" / f"{name}.png").size) >= 1.3
    ]
    assert wide and facts["dropped"] == {"corrupt": len(CORRUPT), "duplicate": 1, "not aspect<1.3": len(wide)}
    assert facts["empty"] == 1 and rows(out)["sub/coins.png"] == []
    assert set(rows(out)) == {
        f"sub/{name}.png" for name in ("brick", "camera", "moon", "rocket", "coins") if name not in wide
    }
    for n in range(40):
        (root / f"{n:02}.png").write_bytes(b"oops")
    assert recaption(monkeypatch, root, f"--out={tmp_path / 'bad'}") == 1
    assert "cannot be decoded, more than --corrupt-limit=0.1" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "bad").iterdir()] == ["recipe.json"]


def _square(pixels, side):
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return images.Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))


def test_four_sources_from_images_to_training_draw_both_kinds_of_captions(monkeypatch, folder, written, tmp_path):
    """The whole way: recaption, prepare in other parts, draw half synthetic captions. Catches captions of another image
    joined, keys that differ between the two commands, and a share other than the config's."""
    names = sorted(photographs.FILES)
    sources = {
        "folder": folder,
        "webdataset": photographs.write_tars(tmp_path / "tars", names),
        "parquet": photographs.write_parquet(tmp_path / "a.parquet", names),
        "tfds": f"tfds:{write_tfds(tmp_path / 'tfds', names)}",
    }
    original = {caption for _, caption in photographs.FILES.values()}
    by_caption = {photographs.FILES[name][1]: rows(written)[f"sub/{name}.png"] for name in names}
    for kind, source in sources.items():
        captions = written
        if kind != "folder":
            captions = tmp_path / f"captions-{kind}"
            assert recaption(monkeypatch, source, f"--out={captions}", SHARDS) == 0
        assert sorted(rows(captions).values()) == sorted(rows(written).values())
        out = tmp_path / kind
        assert (
            prepare(
                monkeypatch,
                source,
                f"--out={out}",
                f"--synthetic-captions={captions}",
                "--shard-size=3",
                "--validation-share=0",
            )
            == 0
        )
        facts = manifest.read(out).facts
        assert facts["captions"] == {"original": 16, "synthetic": 16}
        assert facts["source"]["synthetic_captions"]["model"] == Writer.facts
        drawn = {
            share: load_corpus(data_config(out, synthetic_captions=share), 0).captions(np.arange(1600), "train")
            for share in (0.0, 0.5, 1.0)
        }
        assert set(drawn[0.0]) == original
        for first, synthetic in zip(drawn[0.0], drawn[1.0], strict=True):
            assert by_caption[first] == [synthetic]
        share = np.mean([caption not in original for caption in drawn[0.5]])
        assert abs(share - 0.5) < 4 * 0.5 / 40, kind


def test_captions_of_ones_own_are_joined_by_key_and_what_does_not_fit_is_refused(monkeypatch, folder, tmp_path, capsys):
    """Catches a file joined by order instead of by key, and a file of another source taken in silence."""
    import pyarrow
    import pyarrow.parquet

    own = [
        {"key": f"sub/{name}.png", "captions": [f"{name} one", f"{name} two"]}
        for name in reversed(sorted(photographs.FILES))
        if name != "moon"
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(own), tmp_path / "own.parquet")
    for form in ("jsonl", "parquet"):
        out = tmp_path / form
        assert (
            prepare(
                monkeypatch,
                folder,
                f"--out={out}",
                f"--synthetic-captions={tmp_path / f'own.{form}'}",
                "--validation-share=0",
                SHARDS,
            )
            == 0
        )
        assert manifest.read(out).facts["captions"] == {"original": 16, "synthetic": 30}
        corpus = load_corpus(data_config(out, synthetic_captions=1.0), 0)
        firsts = load_corpus(data_config(out), 0).captions(np.arange(64), "train")
        name_of = {caption: name for name, (_, caption) in photographs.FILES.items()}
        for first, caption in zip(firsts, corpus.captions(np.arange(64), "train"), strict=True):
            name = name_of[first]
            assert caption in ((first,) if name == "moon" else (f"{name} one", f"{name} two"))
    wrong = {
        "twice.jsonl": (json.dumps(own[0]) + "\n") * 2,
        "bad.jsonl": '{"key": 3, "captions": []}\n',
        "other.jsonl": '{"key": "elsewhere/cat.png", "caption": "a cat"}\n',
        "none.txt": "a cat",
    }
    said = {
        "twice.jsonl": "twice",
        "bad.jsonl": "line 1",
        "other.jsonl": "has no key of",
        "none.txt": "neither a folder",
    }
    for name, text in wrong.items():
        (tmp_path / name).write_text(text)
        assert prepare(
            monkeypatch, folder, f"--out={tmp_path / name}.out", f"--synthetic-captions={tmp_path / name}"
        ) in (1, 2)
        assert said[name] in capsys.readouterr().err and not (tmp_path / f"{name}.out" / "manifest.json").exists()
    assert (
        prepare(
            monkeypatch,
            folder,
            f"--out={tmp_path / 'both'}",
            f"--synthetic-captions={tmp_path / 'own.jsonl'}",
            "--synthetic-column=by_model",
        )
        == 2
    )


def test_captions_that_were_changed_or_are_others_are_refused(monkeypatch, folder, written, tmp_path, capsys):
    """Catches a corpus made half of one set of captions and half of another."""
    captions = tmp_path / "captions"
    shutil.copytree(written, captions)
    out = f"--out={tmp_path / 'out'}"
    assert prepare(monkeypatch, folder, out, f"--synthetic-captions={captions}", SHARDS) == 0
    (tmp_path / "own.jsonl").write_text((captions / "shard-00000-of-00004.jsonl").read_text())
    assert prepare(monkeypatch, folder, out, f"--synthetic-captions={tmp_path / 'own.jsonl'}", SHARDS) == 2
    assert "source.synthetic_captions." in capsys.readouterr().err
    own = f"--synthetic-captions={tmp_path / 'own.jsonl'}"
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'own'}", own, SHARDS) == 0
    (tmp_path / "own.jsonl").write_text((tmp_path / "own.jsonl").read_text().replace("a picture", "one picture", 1))
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'own'}", own, SHARDS) == 2
    path = captions / "shard-00001-of-00004.jsonl"
    path.write_text(path.read_text().replace("a picture", "a Picture", 1))
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'b'}", f"--synthetic-captions={captions}", SHARDS) == 1
    assert "shard-00001-of-00004.jsonl is not as rfjax recaption wrote it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["--captions=3"], "add --beams 3"),
        (["--beams=2", "--temperature=1"], "give one of the two"),
        (["--max-tokens=0"], "--max-tokens is 0"),
        (["--batch-size=0"], "--batch-size is 0"),
        (["--corrupt-limit=2"], "--corrupt-limit is 2"),
        (["--task=0/2", "--merge"], "give one of the two"),
        (["--merge"], "nothing to merge"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(monkeypatch, folder, tmp_path, capsys, words, said):
    assert recaption(monkeypatch, folder, f"--out={tmp_path / 'out'}", *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
