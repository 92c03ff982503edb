"""NanoDet's boxes from planted answers of the network, and the labelled photographs. No Node, and no photograph."""

import importlib
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rfjax.evaluation.geneval.files import read_metadata
from rfjax.scorers.object_names import OBJECT_NAMES

ANALYSIS = Path(__file__).parents[2] / "analysis"


@pytest.fixture()
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(ANALYSIS))
    yield importlib.import_module
    for name in ("nanodet", "nanodet_photographs", "packages"):
        sys.modules.pop(name, None)


def planted(nanodet, *cells):
    """An answer of the network: at each (stride, row, column) the class with this score and these distances."""
    scores = np.zeros((sum(nanodet.CELLS), nanodet.CLASSES), np.float32)
    logits = np.zeros((sum(nanodet.CELLS), 4, nanodet.BINS), np.float32)
    for stride, row, column, name, score, distances in cells:
        level = nanodet.STRIDES.index(stride)
        cell = sum(nanodet.CELLS[:level]) + row * (nanodet.SIDE // stride) + column
        scores[cell, OBJECT_NAMES.index(name)] = score
        for side, distance in enumerate(distances):  # half of the weight on each of two neighbours, if between them
            logits[cell, side, [int(np.floor(distance)), int(np.ceil(distance))]] = 80
    return np.concatenate([scores.ravel(), logits.ravel()])


def test_a_box_lies_where_its_cell_says(load):
    """Catches rows taken for columns, sides in another order, a stride left out, corners in place of centres, and
    another class's name."""
    nanodet = load("nanodet")
    answer = planted(nanodet, (16, 3, 9, "bus", 0.9, (1, 2, 3.5, 4)), (32, 0, 0, "cup", 0.4, (1, 0, 1, 1)))
    back = np.array([[2.0, 0, -10], [0, 2.0, 0]])  # from an image of 812 x 832
    found = nanodet.objects(answer, back, 812, 832)
    centre = 2 * 16 * np.array([9.5, 3.5]) - [10, 0]
    expected = [*(centre - [32, 64]), *(centre + [112, 128]), 0.9]
    assert found == {"bus": [pytest.approx(expected, abs=0.01)], "cup": [pytest.approx([0, 32, 86, 96, 0.4])]}


def test_of_boxes_on_one_object_the_best_stays(load):
    """Catches suppression across classes, of a box that only touches, by a box that itself was dropped, and of none."""
    nanodet = load("nanodet")
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 7], [0, 0, 10, 4.5], [30, 0, 40, 10]], float)
    # IoU with the best: 0.7 and 0.64, so both go; with the first the third has 0.45, and stays
    assert nanodet.suppress(boxes, np.array([0.6, 0.9, 0.5, 0.7])).tolist() == [1, 3]
    assert nanodet.suppress(boxes, np.array([0.9, 0.6, 0.5, 0.7])).tolist() == [0, 3, 2]
    same = (1, 1, 1, 1)
    answer = planted(
        nanodet, (8, 5, 5, "cat", 0.9, same), (8, 5, 6, "cat", 0.8, same), (8, 5, 5, "dog", 0.3, same)
    )  # the two cats overlap by a third
    back = np.eye(2, 3)
    assert {name: len(rows) for name, rows in nanodet.objects(answer, back, 416, 416).items()} == {"cat": 2, "dog": 1}


def test_the_letterbox_keeps_aspect_and_the_way_back(load):
    """Catches red taken for blue, a picture in the corner or stretched, and boxes in pixels of another picture."""
    nanodet = load("nanodet")
    pixels = np.zeros((200, 100, 3), np.uint8)
    pixels[40:80, 30:70] = (255, 0, 0)
    values, back = nanodet.letterbox(Image.fromarray(pixels))
    assert values.shape == (3, 416, 416) and values.dtype == np.float32
    red = values[2] * nanodet.STD[2] + nanodet.MEAN[2]
    rows, columns = np.nonzero(red > 128)
    corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]) @ back[:, :2].T + back[:, 2]
    assert np.abs(corners - [[30, 40], [70, 80]]).max() < 0.5
    assert np.allclose(values[0], -nanodet.MEAN[0] / nanodet.STD[0]) and np.allclose(red[:, :100], 0, atol=1e-4)


def deb(path, files):
    """A Debian package with the files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as file:
        for name, content in files.items():
            about = tarfile.TarInfo(f"./{name}")
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))
    members = {"debian-binary": b"2.0", "control.tar.xz": b"odd", "data.tar.xz": data.getvalue()}
    lines = [f"{n:<16}{'0':<12}{'0':<6}{'0':<6}{'644':<8}{len(c):<10}`\n".encode() + c for n, c in members.items()]
    path.write_bytes(b"!<arch>\n" + b"".join(line + b"\n" * (len(line) % 2) for line in lines))
    return path


def test_files_of_a_debian_package_are_read(load, tmp_path):
    """Catches the padding of odd members, and a file of another version passed over in silence."""
    packages = load("packages")
    path = deb(tmp_path / "a.deb", {"usr/a.png": b"a", "usr/b.png": b"b"})
    assert packages.read_members(path, ["usr/b.png"]) == {"usr/b.png": b"b"}
    with pytest.raises(SystemExit, match=r"has no usr/c\.png"):
        packages.read_members(path, ["usr/a.png", "usr/c.png"])
    path.write_bytes(b"a page of errors")
    with pytest.raises(SystemExit, match="no Debian package"):
        packages.read_members(path, ["usr/a.png"])


def test_labels_are_rows_that_geneval_reads(load, tmp_path):
    """Catches a class that NanoDet has not, a count without its limit, and labels beside others' results."""
    photographs = load("nanodet_photographs")
    labels = photographs.read_labels()
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps(photographs.metadata(label)) + "\n" for label in labels))
    rows = read_metadata(path)
    assert len(rows) == len({label["sha256"] for label in labels}) == 40
    for row in rows:
        assert {item["class"] for item in row["include"]} <= set(OBJECT_NAMES)
        counts = [item["count"] + 1 for item in row["include"] if row["tag"] == "counting"]
        assert [item["count"] for item in row.get("exclude", ())] == counts
    results = [
        {"correct": label["kind"] == "cut-out", "reason": "a\nb", "details": '{"person": []}'} for label in labels
    ]
    lines = photographs.table(labels, results)
    assert "| cut-out | single_object | 17 | 17 | 17 |" in lines and "| scene | counting | 6 | 0 | 0 |" in lines
    assert sum("| a; b |" in line for line in lines) == 23
