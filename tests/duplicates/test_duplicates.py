"""`rfjax duplicates`: precision and recall of planted copies, the removal against brute force, and the command."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import photographs
from helpers import planted_duplicates as planted
from helpers.photographs_tfds import write_tfds
from helpers.stand_ins import prepare
from helpers.tiny_clips import VP9, video
from rfjax.cli import main
from rfjax.data.prepared import manifest
from rfjax.duplicates import command, descriptors, phash, search
from rfjax.duplicates.onnx_model import unit
from rfjax.prepare import images

PLANTED = {kind: planted.KINDS[kind] for kind in ("JPEG, quality 30", "flip, JPEG 50", "centred crop, 0.8 to 1")}


def squares(pictures, side=phash.SIDE):
    return np.stack([images.decode(planted.png(image), side, "lanczos").pixels for image in pictures])


def duplicates(source, out, *words):
    return main(["duplicates", str(source), f"--out={out}", *map(str, words)])


def rows(path):
    return [line.split("\t") for line in Path(path).read_text(encoding="utf-8").splitlines()]


def digests(out):
    """The bytes of all that the command leaves."""
    files = [path for path in sorted(out.parent.rglob("*")) if path.is_file()]
    return {str(path.relative_to(out.parent)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# What is found, and what is not


@pytest.fixture(scope="module")
def known():
    """16 photographs and 500 distinct scenes, copies of the photographs and of 40 scenes, and the original of each."""
    first = [planted.photograph(name, 128) for name in photographs.FILES] + planted.distinct_scenes(500)
    copies = planted.plant(first[:56], PLANTED)
    group = np.array([*range(len(first)), *(number for _, number, _ in copies)])
    return (
        descriptors.Phash().describe(squares(first + [copy for _, _, copy in copies])),
        group,
        np.array([kind for kind, _, _ in copies]),
    )


def test_precision_and_recall_of_planted_copies_at_the_default_threshold(known):
    """Catches a hash of fewer bits (8 x 8 frequencies confuse scenes), a hash without crops or mirroring (recall), and
    a default other than the curve's."""
    views, group, kinds = known
    thresholds = [0.6, 0.8, descriptors.PHASH_THRESHOLD, 0.975]
    found = [
        planted.judged(one.keeper, group) for one in search.remove(views, search.Index(views[:, 0], 1, 1), thresholds)
    ]
    precision, recall = [one[0] for one in found], [one[1] for one in found]
    assert precision[2] >= 0.97 and precision[0] < 0.8 and precision == sorted(precision)
    assert recall[2] >= 0.75 and recall[3] < recall[2]
    right = found[2][2][-len(kinds) :]
    by_kind = {kind: right[kinds == kind].mean() for kind in PLANTED}
    assert (
        by_kind["JPEG, quality 30"] >= 0.9
        and by_kind["flip, JPEG 50"] >= 0.9
        and by_kind["centred crop, 0.8 to 1"] >= 0.3
    ), by_kind


def test_the_hash_is_what_its_definition_says():
    """Computes the transform a second way, by its sum. Catches rows for columns, a scaled transform, the mean's bit,
    and bits packed the other way."""
    pixels = squares([planted.photograph("chelsea", 128)])[0]
    small = np.asarray(Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    n = np.arange(32)
    basis = np.cos(np.pi * (2 * n + 1) * n[:16, None] / 64) * np.where(
        n[:16, None] == 0, np.sqrt(1 / 32), np.sqrt(2 / 32)
    )
    expected = basis @ small @ basis.T > 2
    expected[0, 0] = False
    views = phash.views(pixels)
    assert np.array_equal(np.unpackbits(views[0]), expected.ravel()) and views.shape == (10, 32) and expected.sum() > 50


def test_the_mirrored_hash_is_the_mirrored_images():
    """Catches vertical frequencies negated for horizontal ones."""
    pixels = squares([planted.photograph("coffee", 128)])[0]
    direct, turned = phash.views(pixels), phash.views(np.ascontiguousarray(pixels[:, ::-1]))
    half = len(phash.CROPS)
    apart = np.unpackbits(direct[half:] ^ turned[:half], axis=1).sum(1)
    assert (apart <= 3).all() and (
        np.unpackbits(direct[:half] ^ turned[:half], axis=1).sum(1) > 40
    ).all()  # reduction rounds


def test_a_flat_image_has_no_hash():
    """Catches blank images taken for copies of each other: their hashes would be noise, or zeros and equal."""
    rng = np.random.default_rng(0)
    ramp = np.broadcast_to(
        np.linspace(100, 140, 128).astype(np.uint8)[:, None], (128, 128, 3)
    )  # a few frequencies of one direction
    flat = np.stack(
        [np.full((128, 128, 3), 255, np.uint8), rng.integers(120, 123, (128, 128, 3)).astype(np.uint8), ramp]
    )
    found = descriptors.Phash().describe(flat)
    assert not found.any() and descriptors.incomparable(found[:, 0]) == dict.fromkeys(range(3), "too flat to hash")


# The removal against brute force


def similarities(views):
    """The similarity of all pairs by definition: the best of a row of either with the first row of the other."""
    if views.dtype == np.uint8:
        views = (np.unpackbits(views, axis=2) * 2.0 - 1) / np.sqrt(8 * views.shape[2])
    looking = np.nan_to_num(views.astype(np.float64))
    one_way = np.einsum("ivd,jd->ivj", looking, looking[:, 0]).max(1)
    return np.maximum(one_way, one_way.T)


def by_the_paper(similar, threshold):
    """Algorithm 1 of appendix E.2 as it is printed: {dropped: kept}."""
    dropped = {}
    for i in range(len(similar)):
        if i in dropped:
            continue
        for j in np.flatnonzero(similar[i] >= threshold - 1e-9):
            if j != i and j not in dropped:
                dropped[int(j)] = i
    return dropped


def families(kind, count=900, views=3, noise=0.45, seed=0):
    """Random descriptors about common centres, several rows each, so that chains of near ones are many."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(60, 64))
    vectors = centres[rng.integers(60, size=count), None] + noise * rng.normal(size=(count, views, 64))
    return np.packbits(vectors > 0, axis=2) if kind == "bits" else unit(vectors.reshape(-1, 64)).reshape(vectors.shape)


@pytest.mark.parametrize("kind", ["bits", "vectors"])
def test_the_removal_is_the_papers_on_all_pairs(kind):
    """Catches a search that finds one way only, a dropped image that drops others, misses at the threshold or within a
    block. There are more images than in a block, and thresholds drop some, many and nearly all images."""
    noise, thresholds = {"bits": (0.45, [0.5, 0.7, 0.8125, 0.9]), "vectors": (0.7, [0.6, 0.7, 0.75, 0.8])}[kind]
    views = families(kind, noise=noise)
    assert len(views) > search.BLOCK
    similar = similarities(views)
    index = search.Index(views[:, 0], 1, 1)
    sizes = []
    for one in search.remove(views, index, thresholds):
        expected = by_the_paper(similar, one.threshold)
        assert set(np.flatnonzero(one.dropped)) == set(expected), one.threshold
        gone = np.flatnonzero(one.dropped)
        assert not one.dropped[one.keeper[gone]].any() and (one.keeper[gone] < gone).all()
        alike = search.similarity(views[gone], views[one.keeper[gone]])
        assert np.allclose(alike, similar[gone, one.keeper[gone]], atol=1e-6) and (alike >= one.threshold - 1e-6).all()
        sizes.append(len(gone))
    assert sizes[0] > 800 and 0 < sizes[-1] < sizes[-2] < sizes[1] < sizes[0]


def test_rows_that_say_nothing_find_nothing():
    """Catches zeros near every hash of few bits, and NaN."""
    rng = np.random.default_rng(0)
    bits = rng.permuted(np.arange(256)[None, None] < np.full((40, 2, 1), 33), axis=2)
    views = np.packbits(bits, axis=2)
    views[3, 1] = 0  # 33 bits from each: a similarity of 0.74
    assert not search.remove(views, search.Index(views[:, 0], 1, 1), [0.7])[0].dropped.any()
    views = families("vectors", 40)
    views[3, 1], views[5, 2] = 0, np.nan
    (one,) = search.remove(views, search.Index(views[:, 0], 1, 1), [0.7])
    assert set(np.flatnonzero(one.dropped)) == set(by_the_paper(similarities(views), 0.7))


@pytest.mark.parametrize("kind", ["bits", "vectors"])
def test_clusters_lose_what_neighbours_bring_back(kind):
    """Catches a search of one cluster whatever `probes` says, and an index that drops more than all pairs do."""
    noise, threshold = {"bits": (0.45, 0.7), "vectors": (0.8, 0.65)}[kind]
    views = families(kind, 2000, views=1, noise=noise)
    whole = search.remove(views, search.Index(views[:, 0], 1, 1), [threshold])[0].dropped
    shares = []
    for probes in (1, 4, 40):
        found = search.remove(views, search.Index(views[:, 0], 40, probes), [threshold])[0].dropped
        shares.append((found & whole).sum() / whole.sum())
    assert 0.5 < shares[0] < shares[1] and shares[1] > 0.97 and shares[2] == 1.0
    assert search.default_clusters(50_000) == 1 and search.default_clusters(64_000_000) == 16_000


# The command


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Photographs with captions; copies by file, by JPEG and mirrored, a flat image under two keys, and a broken
    one."""
    folder = photographs.write_folder(tmp_path_factory.mktemp("duplicates") / "in", list(photographs.FILES)[:9])
    sub = folder / "sub"
    shutil.copy(sub / "brick.png", folder / "again.png")  # comes before what it is a copy of
    planted.jpeg(planted.photograph("coffee", 96), 60).save(sub / "z coffee.png")
    planted.flip(planted.photograph("chelsea", 96)).save(sub / "z chelsea.png")
    shutil.copy(sub / "z chelsea.png", sub / "zz chelsea.png")
    for name in ("flat.png", "flatter.png"):
        Image.new("RGB", (64, 64), "white").save(sub / name)
    (sub / "torn.png").write_bytes((sub / "camera.png").read_bytes()[:2000])
    (sub / "tab\tin it.png").write_bytes((sub / "camera.png").read_bytes())
    for path in folder.rglob("*.png"):
        if not path.with_suffix(".txt").exists():
            path.with_suffix(".txt").write_text("a caption")
    shutil.copy(sub / "camera.png", sub / "silent.png")  # no caption, so it must not stand for the camera
    return folder


WORDS = ("--shard-size=4", "--batch-size=3")
DROPPED = {
    "sub/brick.png": "again.png",
    "sub/z coffee.png": "sub/coffee.png",
    "sub/z chelsea.png": "sub/chelsea.png",
    "sub/zz chelsea.png": "sub/chelsea.png",
    "sub/flatter.png": "sub/flat.png",
}


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "drop.tsv"
    assert duplicates(source, out, *WORDS) == 0
    return out


def test_the_files_say_what_is_dropped_for_what(undisturbed):
    """Catches keys that stay listed as dropped, a keeper that is itself dropped, equal files of a flat image that
    no hash compares."""
    assert dict(rows(undisturbed)) == dict.fromkeys(DROPPED, "near-duplicate")
    header, *pairs = rows(undisturbed.with_name("drop.pairs.tsv"))
    assert header == ["key", "kept", "similarity"] and {key: kept for key, kept, _ in pairs} == DROPPED
    similar = {key: value for key, _, value in pairs}
    assert similar["sub/brick.png"] == similar["sub/flatter.png"] == "same bytes"
    assert float(similar["sub/z coffee.png"]) > 0.9 and similar["sub/z chelsea.png"] == similar["sub/zz chelsea.png"]
    facts = json.loads(undisturbed.with_name("drop.json").read_text())
    assert (
        facts["dropped"] == 5
        and facts["same_bytes"] == 2
        and facts["images"] == 15
        and facts["threshold"] == descriptors.PHASH_THRESHOLD
    )
    assert facts["not_compared"] == {
        "corrupt": 1,
        "key with a tab or a line break": 1,
        "no caption": 1,
        "too flat to hash": 1,
    }  # its copy is dropped
    left_out = dict(rows(undisturbed.with_name("drop.not-compared.tsv"))[1:])
    assert (
        left_out["sub/tab\\tin it.png"] == "key with a tab or a line break"
        and left_out["sub/silent.png"] == "no caption"
    )


def test_the_curve_is_what_other_thresholds_drop(source, undisturbed, tmp_path, capsys):
    """Catches counts that forget equal files or belong to another threshold, and images that another threshold makes
    the command describe again."""
    curve = {
        float(t): int(n)
        for t, n, _ in (
            line.split(",") for line in undisturbed.with_name("drop.curve.csv").read_text().splitlines()[1:]
        )
    }
    assert curve[descriptors.PHASH_THRESHOLD] == 5 and curve[1.0] == 4  # all but the JPEG
    shutil.copytree(undisturbed.parent / "drop.tsv.descriptors", tmp_path / "drop.tsv.descriptors")
    for threshold in (0.75, 1.0):
        assert duplicates(source, tmp_path / "drop.tsv", *WORDS, f"--threshold={threshold}") == 0
        assert len(rows(tmp_path / "drop.tsv")) == curve[threshold]
    assert "images/s" not in capsys.readouterr().err


def test_what_it_drops_prepare_counts_under_one_reason(monkeypatch, source, undisturbed, tmp_path, capsys):
    """Catches a separate reason for each image, keys that prepare does not know, and unknown keys taken in silence."""
    assert (
        prepare(monkeypatch, source, f"--out={tmp_path / 'out'}", f"--drop-keys={undisturbed}", "--validation-share=0")
        == 0
    )
    assert "5 images were left out by the 5 keys of --drop-keys" in capsys.readouterr().err
    (tmp_path / "others.tsv").write_text("another source's key\n")
    assert prepare(monkeypatch, source, f"--out={tmp_path / 'none'}", f"--drop-keys={tmp_path / 'others.tsv'}") == 2
    assert "none of the 1 keys of --drop-keys" in capsys.readouterr().err
    facts = manifest.read(tmp_path / "out").facts
    assert facts["dropped"] == {"near-duplicate": 5, "corrupt": 1, "no caption": 1}
    assert facts["splits"]["train"]["images"] == 11  # 15 images and the one whose key cannot be listed, less five


def test_what_prepare_filters_out_is_kept_for_nobody(source, tmp_path):
    """Catches both of two copies lost: one to a filter, the other as its copy."""
    (tmp_path / "list").write_text("again.png\nsub/coffee.png\n")
    assert duplicates(source, tmp_path / "drop.tsv", f"--drop-keys={tmp_path / 'list'}", "--filter=width<200") == 0
    assert {"sub/brick.png", "sub/z coffee.png"}.isdisjoint(dict(rows(tmp_path / "drop.tsv")))
    assert json.loads((tmp_path / "drop.json").read_text())["not_compared"]["listed"] == 2


@pytest.mark.parametrize("after", [1, 3])
def test_a_command_killed_by_the_system_is_gone_on_from(source, undisturbed, tmp_path, after):
    """SIGKILL while a file of descriptors is written; the same command ends in the same bytes, and nothing is left
    over."""
    out = tmp_path / "drop.tsv"
    script = (
        "import os, signal, sys\n"
        "from rfjax import files\n"
        f"left, replace = [{after}], os.replace\n"
        "def moved(one, other):\n"
        "    if 'descriptors-0' in str(other):\n        left[0] -= 1\n        left[0] or os.kill(os.getpid(), "
        "signal.SIGKILL)\n"
        "    replace(one, other)\n"
        "os.replace = moved\n"
        "from rfjax.cli import main\n"
        f"main(['duplicates', {str(source)!r}, '--out={out}', *{WORDS!r}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    made = tmp_path / "drop.tsv.descriptors"
    whole = sorted(made.glob("descriptors-*"))
    assert list(made.glob(".*.tmp")) and len(whole) == after - 1 and not out.exists()
    before = [path.stat().st_mtime_ns for path in whole]
    assert duplicates(source, out, *WORDS) == 0
    assert digests(out) == digests(undisturbed) and [path.stat().st_mtime_ns for path in whole] == before


def test_tasks_describe_and_the_last_command_searches(source, undisturbed, tmp_path):
    out = tmp_path / "drop.tsv"
    for task in (1, 0):
        assert duplicates(source, out, *WORDS, f"--task={task}/2") == 0 and not out.exists()
    assert duplicates(source, out, *WORDS) == 0
    assert digests(out) == digests(undisturbed)


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "tfds"])
def test_other_sources_are_read_as_prepare_reads_them(kind, tmp_path):
    """Catches keys other than prepare's, and several parts taken for one."""
    names = ["camera", "coffee", "moon", "camera"]
    if kind == "tfds":
        place = f"tfds:{write_tfds(tmp_path / 'tfds', names)}"
        expected = {"000000003": "000000000"}
    elif kind == "parquet":
        place, expected = photographs.write_parquet(tmp_path / "a.parquet", names), {"a/000000003": "a/000000000"}
    else:
        place, expected = photographs.write_tars(tmp_path / "tars", names, each=2), {"00001/camera": "00000/camera"}
    assert duplicates(place, tmp_path / "drop.tsv", "--shard-size=2") == 0
    assert {key: kept for key, kept, _ in rows(tmp_path / "drop.pairs.tsv")[1:]} == expected


def test_images_of_one_name_are_told_and_compared_with_nothing(tmp_path, capsys):
    """A list of keys could not say which of the two is meant."""
    photographs.write_tars(tmp_path / "tars", ["camera", "moon", "camera"], each=3)
    assert duplicates(tmp_path / "tars", tmp_path / "drop.tsv") == 0
    assert not rows(tmp_path / "drop.tsv") and "1 images kept, 2 dropped" in capsys.readouterr().err


def test_nothing_to_compare_is_an_error_that_says_why(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"oops")
    (tmp_path / "in" / "a.txt").write_text("a caption")
    assert duplicates(tmp_path / "in", tmp_path / "drop.tsv") == 1
    assert "no image to compare: 1 corrupt" in capsys.readouterr().err and not (tmp_path / "drop.tsv").exists()
    (tmp_path / "none").mkdir()
    assert duplicates(tmp_path / "none", tmp_path / "drop.tsv") == 2
    photographs.write_tars(tmp_path / "tars", [], each=1)
    import tarfile

    tarfile.open(tmp_path / "tars" / "0.tar", "w").close()
    assert duplicates(tmp_path / "tars", tmp_path / "other.tsv") == 1
    assert "no image to compare: 1 tar of nothing that is read" in capsys.readouterr().err


def test_images_without_captions_are_compared_when_that_is_asked_for(tmp_path, capsys):
    """The source is to be recaptioned. Catches two copies that both stay, and an error without the remedy."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes(photographs.encoded("coffee"))
    assert duplicates(folder, tmp_path / "out.tsv") == 1
    assert "2 no caption; images without captions are compared with --uncaptioned" in capsys.readouterr().err
    assert duplicates(folder, tmp_path / "all.tsv", "--uncaptioned") == 0
    assert rows(tmp_path / "all.tsv") == [["b.png", "near-duplicate"]]


def test_a_name_that_is_no_text_is_left_out_and_counted(tmp_path):
    """Catches a traceback at every start."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"a.png", b"b\xff.png", "c\u2028.png".encode()):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(photographs.encoded("coffee"))
    assert duplicates(folder, tmp_path / "out.tsv", "--uncaptioned") == 0
    assert rows(tmp_path / "out.not-compared.tsv")[1:] == [["b\\\\udcff.png", "name that is not UTF-8"]]
    assert (tmp_path / "out.tsv").read_text(encoding="utf-8") == "c\u2028.png\tnear-duplicate\n"


def test_weights_beside_a_model_are_refused(source, tmp_path, capsys):
    """Such weights are in no hash: descriptors of another model would be taken for this model's."""
    import onnx

    path = planted.thumbnail_model(tmp_path / "whole.onnx")
    onnx.save_model(
        onnx.load(str(path)),
        tmp_path / "split.onnx",
        save_as_external_data=True,
        location="split.data",
        size_threshold=0,
    )
    assert duplicates(source, tmp_path / "out.tsv", f"--descriptor={tmp_path / 'split.onnx'}") == 2
    assert "Weights in a file of their own must be put into it" in capsys.readouterr().err


def test_another_descriptor_in_the_same_folder_is_refused(source, undisturbed, tmp_path, capsys):
    """Catches hashes and vectors searched together."""
    shutil.copytree(undisturbed.parent, tmp_path / "out")
    out = tmp_path / "out" / "drop.tsv"
    model = planted.thumbnail_model(tmp_path / "m.onnx")
    assert duplicates(source, out, *WORDS, f"--descriptor={model}") == 2
    assert "descriptor.mean" in capsys.readouterr().err and rows(out)


def test_descriptors_that_are_damaged_or_of_another_command_are_made_again(source, undisturbed, tmp_path, capsys):
    """Catches a file cut short by a full disk taken as it is, and one that another command left."""
    shutil.copytree(undisturbed.parent, tmp_path / "out")
    out = tmp_path / "out" / "drop.tsv"
    made = sorted(out.with_name("drop.tsv.descriptors").glob("descriptors-*"))
    made[1].write_bytes(made[1].read_bytes()[:-100])
    made[2].write_bytes(b"")
    assert duplicates(source, out, *WORDS) == 0 and digests(out) == digests(undisturbed)
    out.with_name("drop.tsv.descriptors").joinpath("recipe.json").unlink()
    assert duplicates(source, out, *WORDS, "--filter=width<1") == 1
    assert "no image to compare" in capsys.readouterr().err


def test_the_search_says_how_far_it_is(capsys):
    """A fifth of the images in 30 seconds leaves two minutes. Catches time that counts the making of clusters, and
    a line a block."""
    now = [0.0]
    search = command.Searching(clock=lambda: now[0])
    now[0] = 500.0
    search.began(1000)
    now[0] += 30
    search.tell(200)
    search.tell(201)
    assert capsys.readouterr().err.splitlines() == [
        "rfjax: search: the index is made",
        "rfjax: search: 200 of 1,000 images, 20 %, 2m00s left",
    ]


# Models


def test_a_model_sees_normalised_squares_and_gives_unit_vectors(tmp_path):
    """By numpy the second way. Catches BGR, [0, 255], standard deviations left out, rows for columns, a last batch
    lost or padded into the result."""
    pixels = squares([planted.photograph(name, 128) for name in ("coffee", "chelsea", "china")])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pooled = ((pixels / 255 - mean) / std).reshape(3, 8, 16, 8, 16, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    expected = (pooled - pooled.mean((2, 3), keepdims=True)).reshape(3, -1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for name, inputs in (("any", ("n", 3)), ("two", (2, 3))):
        path = str(planted.thumbnail_model(tmp_path / f"{name}.onnx", inputs=inputs))
        model = descriptors.Model(path, side=None, mean=tuple(mean), std=tuple(std), output=None, mirrored=True)
        found = model.describe(pixels)
        assert (
            model.height == model.width == 128
            and found.shape == (3, 2, 192)
            and np.allclose(found[:, 0], expected, atol=1e-5)
        )
        assert np.allclose(found[:, 1].reshape(3, 3, 8, 8), expected.reshape(3, 3, 8, 8)[..., ::-1], atol=1e-5)


@pytest.mark.parametrize(
    "made, side",
    [
        (dict(kind=2), None),  # bytes
        (dict(kind=2, last=True), None),
        (dict(last=True), None),
        (dict(kind=2, last=True, side="any"), 128),
        (dict(kind=2, last=True, wide=2), None),
    ],
)
def test_a_model_of_bytes_or_of_channels_last_sees_the_same_image(tmp_path, made, side):
    """By numpy the second way. Catches bytes that are normalised as well as by the model, axes in the wrong order, and
    height and width exchanged."""
    wide = made.get("wide", 1)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 128, 128 * wide, 3)).astype(np.uint8)
    path = str(planted.thumbnail_model(tmp_path / "m.onnx", **made))
    model = descriptors.Model(path, side=side, mean=None, std=None, output=None, mirrored=False)
    assert (model.height, model.width) == (128, 128 * wide) and ("mean" in model.facts) == ("kind" not in made)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    values = pixels.astype(float) if "kind" in made else (pixels / 255 - mean) / std
    pooled = values.reshape(3, 8, 16, 8 * wide, 16, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    expected = (pooled - pooled.mean((2, 3), keepdims=True)).reshape(3, -1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(model.describe(pixels)[:, 0], expected, atol=1e-5)


def test_an_output_that_is_no_row_an_image_is_refused(source, tmp_path, capsys):
    """Catches a model's vector of the whole batch cut into images."""
    model = planted.thumbnail_model(tmp_path / "m.onnx", flat_from=0)
    assert duplicates(source, tmp_path / "drop.tsv", *WORDS, f"--descriptor={model}") == 2
    assert (
        "the output descriptor of" in (said := capsys.readouterr().err) and "is float32 (1, 576) for 3 images" in said
    )


def test_the_command_with_a_model_finds_what_one_image_became(source, tmp_path):
    model = planted.thumbnail_model(tmp_path / "m.onnx", kind=10)  # float16
    assert duplicates(source, tmp_path / "drop.tsv", f"--descriptor={model}", "--mirrored", "--threshold=0.97") == 0
    assert {key: kept for key, kept, _ in rows(tmp_path / "drop.pairs.tsv")[1:]} == DROPPED
    facts = json.loads((tmp_path / "drop.json").read_text())
    assert facts["not_compared"]["descriptor is zero"] == 1 and facts["descriptor"]["side"] == 128


def test_descriptors_that_are_not_finite_are_counted_and_compared_with_nobody(source, tmp_path):
    """Catches NaN near everything, or an end of the command; equal files go all the same."""
    model = planted.thumbnail_model(tmp_path / "m.onnx", bias=np.nan)
    assert duplicates(source, tmp_path / "drop.tsv", f"--descriptor={model}") == 0
    facts = json.loads((tmp_path / "drop.json").read_text())
    assert facts["not_compared"]["descriptor is not finite"] == 12 and facts["dropped"] == facts["same_bytes"] == 3


@pytest.mark.parametrize(
    "made, words, said",
    [
        (
            dict(inputs=("n", 1)),
            [],
            "it must be tensor(float), tensor(float16), tensor(uint8) [n, 3, height, width] or [n,",
        ),
        (dict(kind=11), [], "is tensor(double)"),
        (dict(inputs=("n", 4), last=True), [], "it must be tensor(float), tensor(float16)"),
        (dict(kind=2), ["--model-mean=0,0,0"], "takes bytes and normalises them itself; leave them out"),
        (dict(outputs=2), [], "has the outputs descriptor, flat; name the descriptor with --model-output"),
        (dict(outputs=2), ["--model-output=other"], "--model-output is other"),
        (dict(side="any"), [], "name the side of the square with --model-size"),
        (dict(), ["--model-size=64"], "--model-size is 64, and"),
        (dict(), ["--model-std=1,0,1"], "and those of --model-std above 0"),
        (dict(), ["--model-mean=1,0"], "it must be three numbers"),
        (None, [], "is no ONNX model that onnxruntime loads"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_what_it_is(source, tmp_path, capsys, made, words, said):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"a picture") if made is None else planted.thumbnail_model(model, **made)
    assert duplicates(source, tmp_path / "drop.tsv", f"--descriptor={model}", *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "drop.tsv.descriptors").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--threshold=0"], "--threshold is 0.0"),
        (["--threshold=nan"], "--threshold is nan"),
        (["--clusters=0"], "--clusters is 0"),
        (["--probes=0"], "--probes is 0"),
        (["--batch-size=0"], "--batch-size is 0"),
        (["--descriptor=nowhere.onnx"], "which is no file"),
        (["--model-size=64"], "--model-size is read with an ONNX model alone"),
        (["--task=2/2"], "it must be I/N"),
        (["--drop-keys=drop.tsv"], "give two files"),
        (["--treshold=1"], "did you mean --threshold"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(monkeypatch, source, tmp_path, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert duplicates(source, "drop.tsv", *words) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_library_that_is_missing_is_named_with_the_extra_that_has_it(monkeypatch, source, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert duplicates(source, tmp_path / "drop.tsv") == 2
    assert "pip install 'rfjax[prepare]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert (
        duplicates(source, tmp_path / "drop.tsv", f"--descriptor={planted.thumbnail_model(tmp_path / 'm.onnx')}") == 2
    )
    assert (
        "need onnxruntime: pip install 'rfjax[prepare]'" in capsys.readouterr().err
        and not (tmp_path / "drop.tsv.descriptors").exists()
    )


def test_clips_are_compared_by_frames_throughout(monkeypatch, tmp_path, capsys):
    """A film coded anew is found; one that only begins as it does is not. Catches clips compared by one frame, and
    clips of a file mixed up."""
    camera, coins = (np.asarray(planted.photograph(name, 160)) for name in ("camera", "coins"))
    pan = lambda image, first: np.stack([image[:128, first + 2 * n : first + 2 * n + 128] for n in range(8)])  # noqa: E731
    lossy = {**VP9, "pix_fmt": "yuv420p", "options": {"crf": "30", "b": "0"}}
    (tmp_path / "in").mkdir()
    films = {
        "a.mp4": video(pan(camera, 0)),
        "b.webm": video(pan(camera, 0), "webm", **lossy),
        "c.mp4": video(pan(coins, 0)),
        "d.mp4": video(np.concatenate([pan(camera, 0)[:2], pan(coins, 8)[2:]])),
    }
    for name, data in films.items():
        (tmp_path / "in" / name).write_bytes(data)
    cut, out = ("--frames=4", "--clips=2"), tmp_path / "drop.tsv"
    assert duplicates(tmp_path / "in", out, "--uncaptioned", "--threshold=0.8", *cut) == 0
    pairs = {key: keeper for key, keeper, _ in rows(tmp_path / "drop.pairs.tsv")[1:]}
    assert pairs == {"b.webm#0": "a.mp4#0", "b.webm#1": "a.mp4#1"}
    assert "2 of 8 images" in capsys.readouterr().out
    facts = json.loads((tmp_path / "drop.json").read_text())
    assert facts["clips"] == {"frames": 4, "rate": "", "most": 2} and facts["same_bytes"] == 0


def test_clips_that_begin_in_black_are_no_duplicates(tmp_path):
    """Catches equal pixels of flat clips taken for a copy, as files of equal bytes are."""
    black, grey = np.zeros((4, 64, 64, 3), np.uint8), np.full((4, 64, 64, 3), 90, np.uint8)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(video(np.concatenate([black, grey])))
    (tmp_path / "in" / "b.mp4").write_bytes(video(np.concatenate([black, black + 200])))
    assert duplicates(tmp_path / "in", tmp_path / "drop.tsv", "--uncaptioned", "--frames=4") in (0, 1)
    listed = tmp_path / "drop.tsv"
    assert not listed.exists() or listed.read_text() == ""
