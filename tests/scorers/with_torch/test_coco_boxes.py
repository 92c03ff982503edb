"""GenEval by detectors of boxes: tiny random DETR and YOLOS, and the name that their scores have."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import scored_runs, tiny_scorers
from rfjax.cli import main
from rfjax.errors import ConfigError
from rfjax.evaluation.image_folders import geneval_folder
from rfjax.evaluation.records import read_records
from rfjax.results import columns, merge
from rfjax.scorers import coco_boxes
from rfjax.scorers.object_names import OBJECT_NAMES

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    root = tmp_path_factory.mktemp("detectors")
    return {"detr": tiny_scorers.detr(root / "detr-tiny"), "yolos": tiny_scorers.yolos(root / "yolos-tiny")}


def picture(index, side=48):
    generator = np.random.default_rng(index)
    pixels = generator.integers(0, 60, (side, side + 16, 3)) + generator.integers(0, 190, 3)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("kind", ["detr", "yolos"])
def test_objects_are_those_of_the_model(detectors, kind):
    """By hand from the raw outputs: softmax without the last class, boxes from centres and sides. Catches labels that
    are taken for places in COCO's list (91 against 80), height and width exchanged, and images of a batch mixed."""
    detector = coco_boxes.load(detectors[kind], CPU)
    pictures = [picture(0), picture(1)]
    for image, found in zip(pictures, detector(pictures), strict=True):
        with torch.inference_mode():
            output = detector.model(**detector.processor(images=[image], return_tensors="pt"))
        chances = output.logits[0].softmax(-1)[:, :-1]
        scores, labels = chances.max(-1)
        names = {label: name for label, name in detector.model.config.id2label.items()}
        expected = []
        for score, label, (x, y, w, h) in zip(scores, labels, output.pred_boxes[0].tolist(), strict=True):
            name = {"mouse": "computer mouse", "remote": "tv remote"}.get(names[int(label)], names[int(label)])
            left, top = int(max(0, (x - w / 2) * image.width)), int(max(0, (y - h / 2) * image.height))
            expected += [(float(score), name, left, top)] if name != "N/A" else []
        given = [
            (float(score), OBJECT_NAMES[label], *box[:2])
            for score, label, box in zip(found.scores, found.labels, found.boxes.tolist(), strict=True)
        ]
        assert list(found.scores) == sorted(found.scores, reverse=True)  # equal scores may have any order
        order = lambda row: (row[1], row[0])  # noqa: E731
        for ours, theirs in zip(sorted(given, key=order), sorted(expected, key=order), strict=True):
            assert ours[1] == theirs[1] and ours[0] == pytest.approx(theirs[0], abs=1e-5)
            assert abs(ours[2] - theirs[2]) <= 1 and abs(ours[3] - theirs[3]) <= 1
        for box, mask in zip(found.boxes.tolist(), found.masks, strict=True):
            assert int(mask.sum()) == (box[2] - box[0]) * (box[3] - box[1]) and mask[box[1], box[0]]


def test_boxes_in_whole_pixels():
    """Catches boxes that leave the image, that lose their last pixel, and that are empty."""
    boxes = torch.tensor(
        [[1.2, 2.0, 3.1, 4.0], [-5.0, -5.0, 99.0, 99.0], [7.5, 5.5, 7.5, 5.5], [50.0, 50.0, 60.0, 60.0]]
    )
    expected = [[1, 2, 4, 4], [0, 0, 8, 6], [7, 5, 8, 6], [7, 5, 8, 6]]
    assert coco_boxes.whole_pixels(boxes, height=6, width=8).tolist() == expected


def test_its_score_has_a_column_of_its_own(detectors, clip_folder, detector_folder, tmp_path, capsys):
    """End to end on a folder in GenEval's layout, with two detectors and Mask2Former on the same images, into one
    table. Catches a variant in the official column, and two detectors of the same folder's name in one column."""
    run, folder = scored_runs.write(tmp_path / "run"), tmp_path / "images"
    rows = [
        {"tag": "single_object", "include": [{"class": name, "count": 1}], "prompt": f"a photo of a {name}"}
        for name in ("cat", "computer mouse")
    ]
    rows[1]["tag"], rows[1]["include"][0]["color"] = "colors", "red"
    for index, row in enumerate(rows):
        (folder / f"{index:05}" / "samples").mkdir(parents=True)
        (folder / f"{index:05}" / "metadata.jsonl").write_text(json.dumps(row))
        for sample in range(2):
            picture(2 * index + sample).save(folder / f"{index:05}" / "samples" / f"{sample:04}.png")
    shutil.copytree(detectors["yolos"], tmp_path / "detr-tiny")  # another model in a folder of the same name
    for number, detector in enumerate((detectors["detr"], tmp_path / "detr-tiny", detector_folder)):
        words = [f"--detector={detector}", f"--clip={clip_folder}", f"--out={tmp_path / f'out{number}'}"]
        record = [f"--run={run}", "--step=100", "--sampler=euler-50", "--seed=0", "--corpus=shapes"]
        assert main(["score", str(folder), "--metric=geneval", *words, *record]) == 0
    printed = capsys.readouterr().out
    assert "NOT the official protocol: the detector is another network that gives boxes" in printed
    names = {record["key"]["evaluation"] for record in read_records(run)} - {"validation"}
    own = {name for name in names if name.startswith("geneval_by_detr-tiny-")}
    assert len(own) == 2 and names - own == {"geneval_other_models"} and not names & {"geneval", "geneval_official"}
    wide = merge.collect([run], tmp_path / "results").wide
    assert all(wide[f"{name}_overall"].notna().sum() == 1 for name in names)
    assert not {"geneval_official_overall", "geneval_overall"} & {c for c in wide if wide[c].notna().any()}
    assert all(columns.Measure.parse(f"{name}_overall").evaluation == name for name in own)
    assert geneval_folder.read(folder).rows[0]["prompt"] == "a photo of a cat"


def test_other_folders_are_refused_by_name(detectors, clip_folder, tmp_path):
    """Catches a traceback, a detector of other classes whose labels are taken for COCO's, and a message without the
    kinds there are."""
    with pytest.raises(
        ConfigError, match="of the kind clip; --detector takes mask2former or .* kinds .*detr.*rt_detr.*yolos"
    ):
        coco_boxes.load(clip_folder, CPU)
    shutil.copytree(detectors["detr"], tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["id2label"] = {label: f"thing {label}" for label in config["id2label"]}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="no label for 80 of COCO's 80 classes, person, bicycle, car first"):
        coco_boxes.load(tmp_path / "other", CPU)
    names = {label: name for label, name in enumerate((*OBJECT_NAMES, "sofa"))}
    with pytest.raises(ConfigError, match="two labels for 'couch'"):
        coco_boxes.coco_classes(names, tmp_path)
