"""`rfjax prepare --buckets`: an image's bucket, its cut, the files stored, and the examples that training sees."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_images import saved

from helpers import child_process, photographs
from helpers.stand_ins import StandIns, data_config, features, prepare
from rfjax.cli import main
from rfjax.data.batch import stills
from rfjax.data.corpus import Corpus, load_corpus
from rfjax.data.loader import batch_of_step
from rfjax.data.prepared import manifest
from rfjax.data.prepared.manifest_facts import KINDS
from rfjax.data.prepared.records import unpack
from rfjax.data.prepared.shards import Shards
from rfjax.errors import ConfigError
from rfjax.prepare.images import decode, nearest_bucket, thumbnail
from rfjax.prepare.recipe import parse_buckets

# Height x width. 8x128 is for a panorama that is not there.
BUCKETS = {"32x32": (32, 32), "32x48": (32, 48), "48x32": (48, 32), "8x128": (8, 128)}
WORDS = (
    f"--buckets={','.join(BUCKETS)}",
    "--shard-size=6",
    "--validation-share=0.3",
    "--synthetic-column=by_model",
    "--precision=float32",
)
TURNED, BY_EXIF = ("chelsea", "rocket"), ("coffee", "left")  # portraits; of the second two the camera says so


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The photographs, some of them portraits."""
    root = photographs.write_folder(tmp_path_factory.mktemp("mixed") / "in")
    for name in (*TURNED, *BY_EXIF):
        path = root / "sub" / f"{name}.png"
        image = Image.open(path).rotate(90, expand=True)
        exif = Image.Exif()
        if name in BY_EXIF:
            image, exif[0x0112] = (
                image.rotate(90, expand=True),
                6,
            )  # lies on its side; to be turned by 90 degrees clockwise
        image.save(path, exif=exif)
    return root


@pytest.fixture(scope="module")
def undisturbed(mixed, tmp_path_factory):
    out = tmp_path_factory.mktemp("buckets") / "photos"
    with pytest.MonkeyPatch.context() as patch:
        assert prepare(patch, mixed, f"--out={out}", *WORDS) == 0
    return out


def expected_pixels(path):
    """(bucket's name, pixels) of a photograph, by logarithms and PIL's resize alone."""
    image = Image.open(path)
    if image.getexif().get(0x0112) == 6:
        image = image.transpose(Image.Transpose.ROTATE_270)
    width, height = image.size
    name = min(BUCKETS, key=lambda name: abs(np.log(width / height) - np.log(BUCKETS[name][1] / BUCKETS[name][0])))
    rows, columns = BUCKETS[name]
    scale = max(rows / height, columns / width)
    left, top = (width - columns / scale) / 2, (height - rows / scale) / 2
    cut = image.convert("RGB").resize(
        (columns, rows), Image.Resampling.LANCZOS, box=(left, top, width - left, height - top)
    )
    return name, np.asarray(cut)


def stored(folder, split, bucket):
    """[(arrays, facts, captions)] of all images."""
    found = manifest.read(folder)
    shards = {
        kind: Shards(
            [folder / name for name in found.files(split, bucket, kind).names], found.files(split, bucket, kind).counts
        )
        for kind in KINDS
    }
    texts = [unpack(record)[1]["caption"] for record in shards["captions"].read(np.arange(len(shards["captions"])))]
    rows = []
    for place, record in enumerate(shards["images"].read(np.arange(len(shards["images"])))):
        arrays, facts = unpack(record)
        first = shards["captions"].first(int(shards["images"].file_of(np.array([place]))[0]))
        rows.append((arrays, facts, [texts[first + row] for row in (*facts["original"], *facts["synthetic"])]))
    return rows


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def test_the_nearest_bucket_is_the_one_of_brute_force():
    """Compares with logarithms, over buckets like SDXL's. Catches width and height exchanged, and ratios compared by
    their difference (which favours portraits) or by an asymmetric distance."""
    buckets = [(1024, 1024), (1216, 832), (832, 1216), (1344, 768), (768, 1344), (1536, 640), (640, 1536)]
    logs = np.log([width / height for height, width in buckets])
    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 5000, (3000, 2)).tolist():
        apart = np.abs(np.log(width / height) - logs)
        two = np.sort(apart)[:2]
        if two[1] - two[0] > 1e-9:  # otherwise floating point cannot tell
            assert nearest_bucket(width, height, buckets) == apart.argmin()


def test_of_two_buckets_as_near_the_first_is_taken():
    """w:h is as near to 1:1 as to w²:h². Catches a tie that rounding decides: for most of these the logarithms are not
    equal in floats."""
    for width, height in ((2, 1), (2, 3), (2, 5), (4, 3), (3, 7), (1, 18)):
        square, other = (30, 30), (height**2, width**2)
        assert nearest_bucket(width, height, [square, other]) == nearest_bucket(width, height, [other, square]) == 0
        assert nearest_bucket(width * 101, height * 101, [(9, 99999), square, other]) == 1


@pytest.mark.parametrize("excess", [0, 16, 15])
def test_an_image_covers_its_bucket_and_the_rest_is_cut_off_evenly(excess):
    """Every pixel's colour says where it was. Catches an image squeezed into its bucket, a cut that is a pixel off, and
    a cut from a corner."""
    rows, columns = 40, 48
    for across in (True, False):
        height, width = (rows, columns + excess) if across else (rows + excess, columns)
        y, x = np.mgrid[:height, :width]
        marks = np.stack([3 * x, 4 * y, 255 - 2 * x - y], 2).astype(np.uint8)
        found = decode(
            saved(Image.fromarray(marks), "PNG"), [(32, 96), (rows, columns), (96, 32)], "bicubic"
        ).pixels.astype(float)
        assert found.shape == (rows, columns, 3)
        left, top = (excess / 2, 0) if across else (0, excess / 2)
        y, x = np.mgrid[:rows, :columns]
        error = found - np.stack([3 * (x + left), 4 * (y + top), 255 - 2 * (x + left) - (y + top)], 2)
        assert np.abs(error).max() <= (0.0 if excess != 15 else 0.51)  # half a pixel is rounded to whole colours


def test_small_pictures_keep_their_aspect():
    pixels = np.random.default_rng(0).integers(0, 255, (96, 32, 3), np.uint8)
    from io import BytesIO

    assert Image.open(BytesIO(thumbnail(pixels, 64))).size == (21, 64)


def test_each_image_is_stored_in_its_bucket_with_the_latents_of_its_cut(mixed, undisturbed):
    """Catches an image lost or stored twice, latents or captions of another image of the batch or of another bucket,
    a portrait that its camera turned among the landscapes, and counts and statistics of one bucket for all."""
    found, seen, values = manifest.read(undisturbed), {}, {"train": [], "validation": []}
    assert [bucket.name for bucket in found.buckets] == list(BUCKETS)
    for bucket in found.buckets:
        assert bucket.pixels == BUCKETS[bucket.name] and bucket.stored == (
            bucket.pixels[0] // 8,
            bucket.pixels[1] // 8,
            3,
        )
        for split in ("train", "validation"):
            rows = stored(undisturbed, split, bucket.name)
            assert bucket.images[split] == len(rows)
            for arrays, facts, captions in rows:
                assert facts["key"] not in seen
                seen[facts["key"]] = bucket.name
                name = facts["key"].removeprefix("sub/").removesuffix(".png")
                own, pixels = expected_pixels(mixed / facts["key"])
                assert own == bucket.name, name
                rows_of, columns_of, _ = bucket.stored
                assert np.allclose(
                    arrays["latents"], pixels.reshape(rows_of, 8, columns_of, 8, 3).mean((1, 3)) / 255, atol=1e-6
                ), name
                assert captions == [photographs.FILES[name][1], *photographs.columns(name)["by_model"]]
                values[split].append(arrays["latents"].reshape(-1, 3))
    assert sorted(seen) == sorted(f"sub/{name}.png" for name in photographs.FILES)
    assert {seen[f"sub/{name}.png"] for name in (*TURNED, *BY_EXIF)} == {"48x32"} and set(seen.values()) == {
        "32x32",
        "32x48",
        "48x32",
    }
    facts = found.facts
    assert facts["splits"] == {
        split: {"images": len(values[split]), "captions": 3 * len(values[split])} for split in values
    }
    for split, own in values.items():
        own = np.concatenate(own).astype(np.float64)
        about = facts["latents"]["statistics"][split]
        assert np.allclose(about["mean"], own.mean(0), atol=1e-6) and np.allclose(
            about["all"]["std"], own.std(), atol=1e-6
        )
        assert about["values"] == len(own)
    assert not list(undisturbed.glob("*8x128*"))


def test_one_square_bucket_is_size(monkeypatch, folder, tmp_path):
    """Compares the bytes of all files. Catches a separate path for squares, and files of different names."""
    common = ("--shard-size=5", "--validation-share=0.3", "--synthetic-column=by_model")
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'a'}", *common, "--size=32") == 0
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'b'}", *common, "--buckets=32x32") == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_corpus_of_several_buckets_is_a_corpus_of_parts(mixed, undisturbed):
    """Catches a part that gives another bucket's images or captions, ids that two images share (their validation
    noise would be the same)."""
    corpus = load_corpus(data_config(undisturbed), 0)
    assert isinstance(corpus, Corpus) and corpus.name == "prepared:photos"
    assert [part.shapes.latents for part in corpus.parts] == [(1, 4, 4, 3), (1, 4, 6, 3), (1, 6, 4, 3), (1, 1, 16, 3)]
    assert corpus.shapes.latents == (1, 4, 4, 3) and corpus.training[3] == corpus.validation[3] == 0
    for split, counts in (("train", corpus.training), ("validation", corpus.validation)):
        ids = []
        for part, count in zip(corpus.parts, counts, strict=True):
            if not count:
                continue
            assert isinstance(part, Corpus)
            batch, captions = part.examples(np.arange(count), split), part.captions(np.arange(count), split)
            ids += batch.example_ids.tolist()
            for latents, context, caption in zip(stills(batch.latents), batch.context, captions, strict=True):
                name = next(name for name, (_, own) in photographs.FILES.items() if own == caption)
                own, pixels = expected_pixels(mixed / "sub" / f"{name}.png")
                assert own == part.bucket.name
                _, rows, columns, _ = part.shapes.latents
                assert np.allclose(
                    latents, (pixels.reshape(rows, 8, columns, 8, 3).mean((1, 3)) / 255 - 0.25) * 2.0, atol=1e-6
                )
                assert np.array_equal(context[5:], features([caption])["t5.context"][0])
        assert sorted(ids) == list(range(manifest.read(undisturbed).count(split)))
        assert split == "train" or ids == sorted(ids)
    for step in range(6):  # the training loop's own way to a batch
        batch = batch_of_step(corpus, step, batch_size=3)
        assert batch.latents.shape[1:] in {(1, 4, 4, 3), (1, 4, 6, 3), (1, 6, 4, 3)}
    assert len({part.fingerprint for part in corpus.parts}) == 4
    assert (
        corpus.fingerprint
        == load_corpus(data_config(undisturbed), 0).fingerprint
        != load_corpus(data_config(undisturbed), 1).fingerprint
    )
    with pytest.raises(ConfigError, match="in bucket 8x128 has no training images"):
        corpus.parts[3].examples(np.arange(1), "train")
    with pytest.raises(ConfigError, match=f"in bucket 32x32 has {corpus.validation[0]} validation images"):
        corpus.parts[0].examples(np.arange(corpus.validation[0] + 1), "validation")


def test_buckets_of_as_many_images_have_orders_and_draws_of_their_own(monkeypatch, tmp_path):
    """Catches orders and captions' draws keyed by the seed alone: one bucket's epoch would tell the other's."""
    names = ("china", "coffee", "flower", "hubble", "rocket")
    root = photographs.write_folder(tmp_path / "in", names)
    shutil.copytree(root / "sub", root / "turned")
    for name in names:
        Image.open(root / "sub" / f"{name}.png").rotate(90, expand=True).save(root / "turned" / f"{name}.png")
    assert (
        prepare(
            monkeypatch,
            root,
            f"--out={tmp_path / 'out'}",
            "--buckets=32x48,48x32",
            "--validation-share=0",
            "--synthetic-column=by_model",
        )
        == 0
    )
    data = data_config(tmp_path / "out", synthetic_captions=1.0)
    corpus, n = load_corpus(replace(data, image_size=6), 0), np.arange(40)
    assert corpus.training == (5, 5)
    first, second = (part.examples(n, "train").example_ids % 5 for part in corpus.parts)
    assert not np.array_equal(first[:5], second[:5]) and not np.array_equal(first[5:10], second[5:10])
    first, second = (
        [caption.startswith("a picture of") for caption in part.captions(n, "train")] for part in corpus.parts
    )
    assert 8 < sum(a == b for a, b in zip(first, second, strict=True)) < 32  # of 40; one fair coin each


def test_the_side_in_the_config_is_the_first_buckets(monkeypatch, mixed, undisturbed, tmp_path):
    with pytest.raises(ConfigError, match="config.data.image_size is 6, and the corpus has 4"):
        load_corpus(replace(data_config(undisturbed), image_size=6), 0)
    assert prepare(monkeypatch, mixed, f"--out={tmp_path / 'out'}", "--buckets=32x48,48x32") == 0
    with pytest.raises(ConfigError, match="config.data.image_size is 4, and the corpus has 6"):
        load_corpus(data_config(tmp_path / "out"), 0)
    assert load_corpus(replace(data_config(tmp_path / "out"), image_size=6), 0).shapes.latents == (1, 4, 6, 3)


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_killed_and_given_again_it_ends_in_the_same_bytes(monkeypatch, mixed, undisturbed, tmp_path, batch):
    """SIGKILL in the middle of a shard, with images of several buckets waiting for their batch to be full."""
    script = (
        "import os, signal, pytest\nfrom helpers import stand_ins\n"
        f"left = [{batch}]\n"
        "def before():\n    left[0] -= 1\n    left[0] or os.kill(os.getpid(), signal.SIGKILL)\n"
        f"stand_ins.prepare(pytest.MonkeyPatch(), {str(mixed)!r}, '--out={tmp_path / 'out'}', *{WORDS!r}, "
        "models=stand_ins.StandIns(before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=child_process.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert list((tmp_path / "out").glob(".shard*.tmp")) and not (tmp_path / "out" / "manifest.json").exists()
    assert prepare(monkeypatch, mixed, f"--out={tmp_path / 'out'}", *WORDS) == 0
    assert digests(tmp_path / "out") == digests(undisturbed)


def test_tasks_and_a_merge_make_what_one_process_makes(monkeypatch, mixed, undisturbed, tmp_path):
    for task in (2, 0, 1):
        assert prepare(monkeypatch, mixed, f"--out={tmp_path / 'out'}", *WORDS, f"--task={task}/3") == 0
    assert prepare(monkeypatch, mixed, f"--out={tmp_path / 'out'}", *WORDS, "--merge") == 0
    assert digests(tmp_path / "out") == digests(undisturbed)


def test_batches_are_of_one_bucket_and_full_until_a_shards_end(monkeypatch, mixed, tmp_path):
    """Catches a batch given up at every change of bucket: each image would be encoded alone."""
    seen, models = [], StandIns()
    encode = models.latents
    models.latents = lambda images: (seen.append(images.shape), encode(images))[1]
    assert (
        prepare(monkeypatch, mixed, f"--out={tmp_path / 'out'}", f"--buckets={','.join(BUCKETS)}", models=models) == 0
    )
    counts = {
        name: sum(bucket.images.values())
        for name, bucket in zip(BUCKETS, manifest.read(tmp_path / "out").buckets, strict=True)
    }
    for name, (rows, columns) in BUCKETS.items():
        sizes = sorted((n for n, *sides, _ in seen if tuple(sides) == (rows, columns)), reverse=True)
        assert sizes == [4] * (counts[name] // 4) + [counts[name] % 4] * (counts[name] % 4 > 0)


def test_inspect_counts_the_buckets_shows_some_of_each_and_finds_a_flipped_bit(undisturbed, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    assert main(["inspect", str(out), f"--out={tmp_path / 'p.png'}", "--samples=6"]) == 0
    said = capsys.readouterr().out
    found = manifest.read(out)
    for bucket in found.buckets:
        assert (
            f"  {bucket.name} (height x width): latents {'x'.join(map(str, bucket.stored))}, "
            f"{bucket.images['train']} training and" in said
        )
        assert said.count(f"train {bucket.name} ") == (2 if bucket.images["train"] else 0)
    assert "--config.data.image_size=4 " in said and "every file is as it was written" in said
    assert min(Image.open(tmp_path / "p.png").size) > 400
    assert main(["inspect", str(out), f"--out={tmp_path / 'p.png'}", "--samples=100", "--no-hashes"]) == 0
    assert capsys.readouterr().out.count("    original: ") == found.count("train")
    path = next(out.glob("*.48x32.train.images.array_record"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    assert main(["inspect", str(out)]) == 1
    assert f"damaged: {path.name}" in capsys.readouterr().out


def test_other_buckets_in_the_same_folder_are_refused_by_name(monkeypatch, mixed, undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed, tmp_path / "out")
    assert prepare(monkeypatch, mixed, f"--out={tmp_path / 'out'}", "--buckets=32x32,48x32", *WORDS[1:]) == 2
    assert "recipe.buckets was [[32, 32], [32, 48]" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["recipe"]["buckets"] == [
        list(pixels) for pixels in BUCKETS.values()
    ]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--buckets=32x32,16x16"], "32x32 and 16x16, which have the same aspect ratio"),
        (["--buckets=32x48,32x32,16x24"], "32x48 and 16x24, which have the same aspect ratio"),
        (["--buckets=32x36"], "--buckets has 32x36; both sides must be divisible by 8"),
        (["--buckets=32x32,0x64"], "--buckets has 0x64; a side must be at least 8"),
        (["--buckets=-32x32"], "--buckets has -32x32; a side must be at least 8"),
        (["--buckets=32"], "--buckets is '32'; it must be HEIGHTxWIDTH in pixels"),
        (["--buckets="], "--buckets is empty"),
        (["--buckets=32x32x3"], "--buckets is '32x32x3'"),
        (["--buckets=32x32", "--size=32"], "--size=32 and --buckets=32x32 both say"),
        (["--size=4"], "--size is 4; a side must be at least 8"),
        (["--size=0"], "--size is 0; a side must be at least 8"),
    ],
)
def test_buckets_that_cannot_be_are_refused_before_anything_is_written(
    monkeypatch, folder, tmp_path, capsys, words, said
):
    monkeypatch.chdir(tmp_path)
    assert prepare(monkeypatch, folder, "--out=out", *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_buckets_are_read_as_height_by_width_in_their_order():
    assert parse_buckets("1024x1024,1216x832,832x1216") == ((1024, 1024), (1216, 832), (832, 1216))
