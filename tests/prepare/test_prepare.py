"""`rfjax prepare` with stand-ins for the frozen models: what it writes, how it ends and how it resumes."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_images import CASES, CORRUPT

from helpers import child_process, photographs
from helpers.photographs_tfds import write_tfds
from helpers.stand_ins import StandIns, prepare
from rfjax.cli import main
from rfjax.data.prepared import manifest
from rfjax.data.prepared.records import pack, unpack
from rfjax.data.prepared.shards import Shards
from rfjax.prepare import images
from rfjax.prepare.progress import ShardProgress

ALL = ("--shard-size=5", "--validation-share=0.3", "--synthetic-column=by_model")


def digests(folder):
    """SHA-256 of each file that a preparation leaves, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def records(folder, split, kind, bucket="32x32"):
    found = manifest.read(folder)
    files = found.files(split, bucket, kind)
    shards = Shards([Path(folder) / name for name in files.names], files.counts)
    return [unpack(record) for record in shards.read(np.arange(len(shards)))]


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        assert prepare(patch, folder, f"--out={out}", *ALL) == 0
    return out


def test_a_record_is_a_safetensors_file_that_its_library_reads(tmp_path):
    """Catches a reader that agrees with rfjax's writer alone."""
    from safetensors import safe_open

    arrays = {
        "a": np.arange(6, dtype=np.float16).reshape(2, 3),
        "b": np.ones(3, np.float32),
        "c": np.array([7], np.uint8),
    }
    facts = {"key": "猫", "rows": [1, 2]}
    record = pack(arrays, facts)
    assert record == pack(dict(reversed(arrays.items())), facts)
    (tmp_path / "r").write_bytes(record)
    back, said = unpack(record)
    with safe_open(tmp_path / "r", "np") as file:
        for name, array in arrays.items():
            assert (
                np.array_equal(file.get_tensor(name), array)
                and np.array_equal(back[name], array)
                and back[name].dtype == array.dtype
            )
        assert json.loads(file.metadata()["facts"]) == facts == said
    for damaged in (b"", record[:20], bytes(100)):
        with pytest.raises(ValueError):
            unpack(damaged)


def test_every_image_is_stored_once_with_its_captions_and_latents(undisturbed):
    """Catches latents of another image in the batch, captions of another, and splits that overlap or lose one."""
    seen = {}
    for split in ("train", "validation"):
        texts = [facts["caption"] for _, facts in records(undisturbed, split, "captions")]
        files = manifest.read(undisturbed).files(split, "32x32", "images")
        shards = Shards([undisturbed / name for name in files.names], files.counts)
        captions = manifest.read(undisturbed).files(split, "32x32", "captions")
        first = Shards([undisturbed / name for name in captions.names], captions.counts).first
        for place, (arrays, facts) in enumerate(records(undisturbed, split, "images")):
            start = first(int(shards.file_of(np.array([place]))[0]))
            seen[facts["key"]] = (
                arrays["latents"],
                [texts[start + row] for row in facts["original"]],
                [texts[start + row] for row in facts["synthetic"]],
            )
    assert sorted(seen) == sorted(f"sub/{name}.png" for name in photographs.FILES)
    for name, (_, caption) in photographs.FILES.items():
        latents, original, synthetic = seen[f"sub/{name}.png"]
        pixels = images.decode(photographs.encoded(name), 32, "lanczos").pixels
        expected = pixels.reshape(4, 8, 4, 8, 3).mean((1, 3)) / 255
        assert np.allclose(latents, expected, atol=1e-3) and latents.dtype == np.float16
        assert original == [caption] and synthetic == photographs.columns(name)["by_model"]


def test_the_manifest_counts_and_measures(undisturbed):
    """Computes the statistics a second way, from the stored latents."""
    facts = manifest.read(undisturbed).facts
    for split in ("train", "validation"):
        stored = records(undisturbed, split, "images")
        values = np.stack([arrays["latents"] for arrays, _ in stored]).astype(np.float64).reshape(-1, 3)
        about = facts["latents"]["statistics"][split]
        assert np.allclose(about["mean"], values.mean(0), atol=2e-4) and np.allclose(
            about["std"], values.std(0), atol=2e-4
        )
        assert np.allclose([about["all"]["mean"], about["all"]["std"]], [values.mean(), values.std()], atol=2e-4)
        assert facts["splits"][split]["images"] == len(stored)
    assert facts["captions"] == {"original": 16, "synthetic": 32} and len(facts["shards"]) == 4
    assert facts["latents"]["shift"] == 0.25 and facts["latents"]["scale"] == 2.0
    texts = [
        text for name, (_, one) in photographs.FILES.items() for text in (one, *photographs.columns(name)["by_model"])
    ]
    for encoder, tokens in (("clip_l", 5), ("t5", 7)):  # the stand-ins give a word a token, and each text two more
        assert facts["truncated"][encoder] == sum(2 + len(text.split()) > tokens for text in texts)
    for shard in facts["shards"]:
        for unit in shard["units"]:
            for file in unit["files"].values():
                assert hashlib.sha256((undisturbed / file["name"]).read_bytes()).hexdigest() == file["sha256"]


def test_measured_scaling_gives_unit_latents(monkeypatch, folder, tmp_path):
    assert (
        prepare(
            monkeypatch,
            folder,
            f"--out={tmp_path / 'out'}",
            "--latent-scaling=measured",
            "--validation-share=0",
            "--precision=float32",
        )
        == 0
    )
    found = manifest.read(tmp_path / "out")
    values = np.stack([arrays["latents"] for arrays, _ in records(tmp_path / "out", "train", "images")])
    assert values.dtype == np.float32
    scaled = (values - found.shift) * found.scale
    assert abs(scaled.mean()) < 1e-5 and abs(scaled.std() - 1) < 1e-5


def test_scaling_of_another_corpus(monkeypatch, folder, tmp_path, capsys):
    """The corpus of a child run takes the parent's shift and scale. Catches the child's own numbers taken instead, and
    a parent with another autoencoder."""
    first, second = tmp_path / "first", tmp_path / "second"
    few = ("--precision=float32", "--validation-share=0")
    assert prepare(monkeypatch, folder, f"--out={first}", "--latent-scaling=measured", "--size=16", *few) == 0
    assert prepare(monkeypatch, folder, f"--out={second}", f"--latent-scaling={first}", *few) == 0
    parent, child = manifest.read(first), manifest.read(second)
    assert (child.shift, child.scale) == (parent.shift, parent.scale) and parent.shift != 0.25
    assert child.facts["latents"]["scaling"] == "as first"
    other = StandIns()
    other.facts["vae"]["sha256"] = "f" * 64
    capsys.readouterr()
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'third'}", f"--latent-scaling={first}", models=other) == 2
    assert "latents of another autoencoder" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()  # refused before the work
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'third'}", "--latent-scaling=mesured") == 2
    assert "'mesured'; it must be autoencoder, measured or the folder" in capsys.readouterr().err


def test_a_caption_that_has_changed_is_a_changed_source(monkeypatch, folder, tmp_path, capsys):
    """Catches old captions and new ones in one corpus."""
    shutil.copytree(folder, tmp_path / "in")
    assert prepare(monkeypatch, tmp_path / "in", f"--out={tmp_path / 'out'}") == 0
    sidecar = next((tmp_path / "in").rglob("*.txt"))
    sidecar.write_text(sidecar.read_text() + " at night")
    assert prepare(monkeypatch, tmp_path / "in", f"--out={tmp_path / 'out'}") == 2
    assert "(source.listing) was" in capsys.readouterr().err


def killed(monkeypatch, folder, out, at):
    """A preparation whose memory runs out at its `at`th batch."""
    left = [at]

    def before():
        left[0] -= 1
        if not left[0]:
            raise MemoryError

    assert prepare(monkeypatch, folder, f"--out={out}", *ALL, models=StandIns(before)) == 1


def test_preparations_that_fail_and_are_given_again_end_in_the_same_bytes(monkeypatch, folder, undisturbed, tmp_path):
    """Catches shards half-written or appended to, caption numbers that continue old ones, records in another order."""
    for at in (1, 3, 6):
        out = tmp_path / str(at)
        killed(monkeypatch, folder, out, at)
        assert not (out / "manifest.json").exists() and not list(out.glob(".shard*"))
        if at == 3:
            killed(monkeypatch, folder, out, 2)
        assert prepare(monkeypatch, folder, f"--out={out}", *ALL) == 0
        assert digests(out) == digests(undisturbed)


@pytest.mark.parametrize("batch", [2, 4, 7])
def test_a_process_killed_by_the_system_is_gone_on_from(monkeypatch, folder, undisturbed, tmp_path, batch):
    """SIGKILL, in the middle of a shard: nothing gets to tidy up."""
    script = (
        "import os, signal, pytest\nfrom helpers import stand_ins\n"
        f"left = [{batch}]\n"
        "def before():\n    left[0] -= 1\n    left[0] or os.kill(os.getpid(), signal.SIGKILL)\n"
        f"stand_ins.prepare(pytest.MonkeyPatch(), {str(folder)!r}, '--out={tmp_path / 'out'}', *{ALL!r}, "
        "models=stand_ins.StandIns(before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=child_process.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert list((tmp_path / "out").glob(".shard*.tmp"))
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'out'}", *ALL) == 0
    assert digests(tmp_path / "out") == digests(undisturbed)


def test_what_is_done_is_not_done_again(monkeypatch, folder, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "out")
    (tmp_path / "out" / "shard-00002-of-00004.json").unlink()
    calls = []
    assert (
        prepare(monkeypatch, folder, f"--out={tmp_path / 'out'}", *ALL, models=StandIns(lambda: calls.append(1))) == 0
    )
    assert len(calls) == 2  # the five images of one shard, four at once
    assert digests(tmp_path / "out") == digests(undisturbed)


class Unloadable:
    """Models that must not be asked for anything: a merge is done where there is no accelerator and little memory."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was asked for")


def test_tasks_and_a_merge_make_what_one_process_makes(monkeypatch, folder, undisturbed, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    assert prepare(monkeypatch, folder, out, *ALL, "--task=1/3") == 0
    assert prepare(monkeypatch, folder, out, *ALL, "--merge") == 1
    assert "3 of 4 shards are not there, shard-00000-of-00004 first" in capsys.readouterr().err
    for task in (2, 0):
        assert prepare(monkeypatch, folder, out, *ALL, f"--task={task}/3") == 0
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert prepare(monkeypatch, folder, out, *ALL, "--merge", "--resample=bicubic") == 2
    assert prepare(monkeypatch, folder, out, *ALL, "--merge", models=Unloadable()) == 0
    assert digests(tmp_path / "out") == digests(undisturbed)
    for bad in ("--task=3/3", "--task=1", "--task=a/b"):
        assert prepare(monkeypatch, folder, out, *ALL, bad) == 2


def test_the_split_is_the_keys_own(monkeypatch, folder, undisturbed, tmp_path):
    """Catches a split that depends on order, shards or other images: training would see validation images."""
    assert (
        prepare(
            monkeypatch,
            folder,
            f"--out={tmp_path / 'out'}",
            "--shard-size=3",
            "--validation-share=0.3",
            "--filter=aesthetic>=4",
        )
        == 0
    )
    keys = lambda out, split: {facts["key"] for _, facts in records(out, split, "images")}  # noqa: E731
    for split in ("train", "validation"):
        assert keys(tmp_path / "out", split) < keys(undisturbed, split)
    draws = np.array([len(keys(undisturbed, split)) for split in ("train", "validation")])
    assert draws.sum() == 16 and draws[1] > 0


def test_filters_lists_and_captions_drop_by_reason(monkeypatch, folder, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    sub = bad / "sub"
    (sub / "moon.png").write_bytes(b"")
    (sub / "grass.png").write_bytes((sub / "grass.png").read_bytes()[:3000])
    (sub / "coins.txt").write_text(" \n")
    (sub / "coffee.json").write_text("{}")  # and so lacks `aesthetic`
    (sub / "china.txt").write_text("ten kilobytes of words, " * 430)
    (tmp_path / "drop").write_text("sub/brick.png\nsub/not there.png\nsub/rocket.png\tnear duplicate\n")
    status = prepare(
        monkeypatch,
        bad,
        f"--out={tmp_path / 'out'}",
        "--filter=aesthetic>=4",
        "--filter=aspect<1.4",
        "--filter=nsfw==UNLIKELY",
        f"--drop-keys={tmp_path / 'drop'}",
        "--shard-size=6",
    )
    assert status == 0
    facts = manifest.read(tmp_path / "out").facts
    names = sorted(photographs.FILES)
    expected = {"listed": 1, "near duplicate": 1, "no caption": 1, "lacks aesthetic": 1, "corrupt": 2}
    kept = []
    for name in names:
        if name in ("brick", "coins", "coffee", "moon", "grass", "rocket"):
            continue
        pixels = images.decode(photographs.encoded(name), 32, "lanczos")
        reason = (
            "not aesthetic>=4"
            if photographs.columns(name)["aesthetic"] < 4
            else "not aspect<1.4"
            if pixels.columns["aspect"] >= 1.4
            else None
        )
        if reason:
            expected[reason] = expected.get(reason, 0) + 1
        else:
            kept.append(f"sub/{name}.png")
    assert facts["dropped"] == expected
    assert (
        sorted(f["key"] for split in ("train", "validation") for _, f in records(tmp_path / "out", split, "images"))
        == kept
    )
    listed = [
        json.loads(line)
        for path in sorted((tmp_path / "out").glob("*.dropped.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert len(listed) == sum(expected.values())
    assert {row["key"]: row["detail"] for row in listed if row["reason"] == "corrupt"}[
        "sub/moon.png"
    ] == "no bytes at all"


def test_all_that_is_odd_or_broken_at_once_is_counted_and_the_rest_is_kept(monkeypatch, tmp_path, capsys):
    """One tar holds all kinds of images: none ends the work, and each is counted under its kind. Captions have ten
    kilobytes, other scripts or no encoding, or are missing."""
    captions = [
        "猫が窓辺に座っている",
        "قطة على النافذة",
        "🐈 " * 2500,
        "half \ud83d".encode("utf-8", "surrogatepass"),
        "a caption".encode("utf-16"),
    ]
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for n, (data, _, _) in enumerate(CASES.values()):
            photographs.add_member(tar, f"odd{n}.jpg", data)
            text = captions[n % len(captions)]
            photographs.add_member(tar, f"odd{n}.txt", text if isinstance(text, bytes) else text.encode())
        for n, data in enumerate(CORRUPT.values()):
            photographs.add_member(tar, f"bad{n}.jpg", data)
            photographs.add_member(tar, f"bad{n}.txt", b"a caption")
        photographs.add_member(tar, "../climbs.jpg", photographs.encoded("moon"))
        photographs.add_member(tar, "silent.png", photographs.encoded("moon"))
        photographs.add_member(tar, "null.png", photographs.encoded("moon"))
        photographs.add_member(tar, "null.json", b'{"caption": null}')
    assert prepare(monkeypatch, tmp_path / "00000.tar", f"--out={tmp_path / 'out'}", "--validation-share=0") == 0
    assert prepare(monkeypatch, tmp_path / "00000.tar", f"--out={tmp_path / 'again'}", "--validation-share=0") == 0
    assert digests(tmp_path / "again") == digests(tmp_path / "out")  # the list of what was dropped, too
    facts = manifest.read(tmp_path / "out").facts
    assert facts["dropped"] == {"corrupt": len(CORRUPT), "no caption": 2, "unsafe member of a tar": 1}
    converted = Counter(name for _, _, names in CASES.values() for name in names)
    assert {name: facts["converted"].get(name, 0) for name in converted} == {
        **converted,
        "enlarged": facts["converted"]["enlarged"],
    }
    assert facts["splits"]["train"]["images"] == len(CASES)
    texts = {caption["caption"] for _, caption in records(tmp_path / "out", "train", "captions")}
    assert texts == {
        "猫が窓辺に座っている",
        "قطة على النافذة",
        ("🐈 " * 2500).strip(),
        "half ?",
        "a caption",
    }
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "out"), "--samples=20"]) == 0
    lost = "the centred crop cuts off more than half of 2 images; prepare into another folder with --buckets"
    assert lost in capsys.readouterr().out


def test_classes_of_tfds_take_their_names_from_a_file(monkeypatch, tmp_path):
    """TFDS calls ImageNet's classes by WordNet's ids, which no caption should hold."""
    version = write_tfds(tmp_path / "tfds", list(photographs.FILES)[:6], "label")
    (tmp_path / "names.txt").write_text("n02123045 tabby, tabby cat\n")
    status = prepare(
        monkeypatch,
        f"tfds:{version}",
        f"--out={tmp_path / 'out'}",
        f"--class-names={tmp_path / 'names.txt'}",
        "--validation-share=0",
    )
    assert status == 0
    texts = [facts["caption"] for _, facts in records(tmp_path / "out", "train", "captions")]
    assert sorted(texts) == [
        "a photo of a tabby",
        "a photo of a tabby cat",
    ]  # "tabby_cat", which the file does not have, is as TFDS has it
    rows = {facts["key"]: tuple(facts["original"]) for _, facts in records(tmp_path / "out", "train", "images")}
    by_label = {len(name) % 2: rows[f"{n:09}"] for n, name in enumerate(list(photographs.FILES)[:6])}
    assert {texts[row] for row in by_label[1]} == {"a photo of a tabby", "a photo of a tabby cat"}
    assert {texts[row] for row in by_label[0]} == {"a photo of a tabby cat"}


def test_too_many_corrupt_images_stop_it_with_their_names(monkeypatch, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for n in range(40):
        (tmp_path / "in" / f"{n:02}.png").write_bytes(b"oops" if n % 3 == 0 else photographs.encoded("moon", 32))
        (tmp_path / "in" / f"{n:02}.txt").write_text("the moon")
    out = tmp_path / "out"
    assert prepare(monkeypatch, tmp_path / "in", f"--out={out}") == 1
    said = capsys.readouterr().err
    assert (
        "14 of the first 40 images" in said
        and "00.png (no format that PIL knows)" in said
        and "--corrupt-limit=0.1" in said
    )
    assert [path.name for path in out.iterdir()] == ["recipe.json"]
    assert prepare(monkeypatch, tmp_path / "in", f"--out={out}", "--corrupt-limit=0.5") == 0  # what the error advises
    assert manifest.read(out).facts["dropped"] == {"corrupt": 14}


def test_nothing_left_is_an_error_that_says_why(monkeypatch, folder, tmp_path, capsys):
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'out'}", "--filter=astetic>=4") == 1
    assert "nothing is left" in (said := capsys.readouterr().err) and "16 lacks astetic" in said


def test_another_command_or_a_changed_source_is_refused_by_name(monkeypatch, folder, undisturbed, tmp_path, capsys):
    """Catches shards of two recipes in one corpus."""
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    assert prepare(monkeypatch, folder, f"--out={out}", *ALL, "--resample=bicubic") == 2
    assert "recipe.resample was 'lanczos' and is now 'bicubic'" in capsys.readouterr().err
    other = StandIns()
    other.facts["t5"]["sha256"] = "another"
    assert prepare(monkeypatch, folder, f"--out={out}", *ALL, models=other) == 2
    assert "models.t5" in capsys.readouterr().err
    more = tmp_path / "more"
    shutil.copytree(folder, more)
    (more / "new.png").write_bytes(photographs.encoded("moon"))
    assert prepare(monkeypatch, more, f"--out={out}", *ALL) == 2
    assert "source.listing" in capsys.readouterr().err
    assert prepare(monkeypatch, folder, f"--out={out}", *ALL, "--latent-scaling=measured") == 2
    assert "scaled by --latent-scaling autoencoder, which is now measured; give another" in capsys.readouterr().err
    assert digests(out) == digests(undisturbed)


def test_the_class_of_a_renamed_folder_is_another(monkeypatch, tmp_path, capsys):
    """Catches two captions in one corpus, after the folder whose name is the class was renamed amid the work."""
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.png").write_bytes(photographs.encoded("moon", 32))
    given = (f"--out={tmp_path / 'out'}", "--label-column=folder", "--validation-share=0.5")
    assert prepare(monkeypatch, tmp_path / "cats", *given) == 0
    came = "none" if manifest.read(tmp_path / "out").count("train") else "1, and a validation loss needs 2"
    assert f"no validation loss: --validation-share 0.5 of 1 images came to {came};" in capsys.readouterr().out
    (tmp_path / "cats").rename(tmp_path / "dogs")
    assert prepare(monkeypatch, tmp_path / "dogs", *given) == 2
    assert "source.class_of_root was 'cats' and is now 'dogs'" in capsys.readouterr().err


def test_a_full_disk_is_an_error_and_leaves_no_shard(folder, tmp_path):
    """A limit on the size of files stands for the disk: the system refuses the same write."""
    script = (
        "import resource, signal, sys, pytest\nfrom helpers import stand_ins\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import numpy, PIL, safetensors, array_record.python.array_record_module, rfjax.prepare.command\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        f"sys.exit(stand_ins.prepare(pytest.MonkeyPatch(), {str(folder)!r}, '--out={tmp_path / 'out'}', "
        "'--precision=float32'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=child_process.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "cannot write" in done.stderr and "shard-00000-of-00001" in done.stderr, (
        done.stderr[-2000:]
    )
    assert "Traceback" not in done.stderr and "space left" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["recipe.json"]


def test_numbers_that_float16_cannot_hold_are_refused(monkeypatch, folder, tmp_path, capsys):
    """Catches an infinity stored: it would be met in training, months later."""
    models = StandIns()
    models.latents = lambda images: np.full((len(images), 4, 4, 3), 1e5, np.float32)
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'a'}", models=models) == 1
    assert "do not fit float16; prepare with --precision=float32" in capsys.readouterr().err
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'b'}", "--precision=float32", models=models) == 0


def test_captions_that_repeat_are_encoded_and_stored_once(monkeypatch, tmp_path):
    """All photographs of a class have one caption. Stored for each image, ImageNet's would take a terabyte."""
    for label in ("golden_retriever", "tench"):
        for name in list(photographs.FILES)[:6]:
            path = tmp_path / "in" / label / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photographs.encoded(name, 32))
    (tmp_path / "names.txt").write_text("golden_retriever golden retriever, big dog\ntench tench\n")
    status = prepare(
        monkeypatch,
        tmp_path / "in",
        f"--out={tmp_path / 'out'}",
        "--label-column=folder",
        f"--class-names={tmp_path / 'names.txt'}",
        "--validation-share=0",
    )
    assert status == 0
    texts = [facts["caption"] for _, facts in records(tmp_path / "out", "train", "captions")]
    assert texts == ["a photo of a golden retriever", "a photo of a big dog", "a photo of a tench"]
    rows = {facts["key"]: facts["original"] for _, facts in records(tmp_path / "out", "train", "images")}
    assert len(rows) == 12 and {tuple(row) for key, row in rows.items() if key.startswith("tench")} == {(2,)}
    assert {tuple(row) for key, row in rows.items() if key.startswith("golden")} == {(0, 1)}


def test_inspect_shows_it_and_finds_one_flipped_bit(undisturbed, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    assert main(["inspect", str(out), f"--out={tmp_path / 'p.png'}", "--samples=5"]) == 0
    said = capsys.readouterr().out
    assert (
        "every file is as it was written" in said
        and "config.data.corpus=prepared" in said
        and said.count("    original: ") == 5
    )
    from PIL import Image

    assert min(Image.open(tmp_path / "p.png").size) > 400
    path = sorted(out.glob("*.images.array_record"))[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    assert main(["inspect", str(out)]) == 1
    assert f"damaged: {path.name}" in capsys.readouterr().out
    path.write_bytes(bytes(data[:-1]))
    assert main(["inspect", str(out)]) == 2
    assert path.name in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2


def test_progress_counts_what_is_made_now_and_says_when_it_will_be_over(capsys):
    """A quarter of the bytes in 60 seconds leaves three minutes. Catches a time left that forgets earlier parts, counts
    parts of an earlier command, or restarts with every part."""
    now = [100.0]
    progress = ShardProgress(400, clock=lambda: now[0])
    with progress.of("shard-a", 80):
        now[0] += 48
        progress.tell(80, 70, 10)
    with progress.of("shard-b", 320):
        now[0] += 12
        progress.tell(20, 15, 5)
        progress.tell(21, 16, 5)  # too soon for another line
        now[0] += 180
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "rfjax: shard-a: 70 images kept, 10 dropped, 1.67 images/s, 20 %, 3m12s left",
        "rfjax: shard-a: 70 images kept, 10 dropped, 1.67 images/s, 20 %, 3m12s left",
        "rfjax: shard-b: 85 images kept, 15 dropped, 1.67 images/s, 25 %, 3m00s left",
        "rfjax: shard-b: 86 images kept, 15 dropped, 0.421 images/s, 100 %",
    ]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--class-names=names.txt"], "no column holds one; name it with --label-column"),
        (["--label-column=folder", "--class-names=names.txt"], "--class-names names.txt cannot be read"),
        (["--template=a photo"], "--template is 'a photo'"),
        (["--drop-keys=nowhere"], "--drop-keys nowhere cannot be read"),
        (["--filter=len(a)>3"], "is no comparison"),
        (["--size=20"], "divisible by 8"),
        (["--validation-share=2"], "--validation-share is 2.0"),
        (["--shard-size=0"], "--shard-size is 0"),
        (["--t5-tokens=0"], "--t5-tokens is 0"),
        (["--merge", "--task=0/2"], "give one of the two"),
        (["--merge"], "give the command without --merge"),
        (["--resampel=bicubic"], "did you mean --resample"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(monkeypatch, folder, tmp_path, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert prepare(monkeypatch, folder, "--out=out", *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
