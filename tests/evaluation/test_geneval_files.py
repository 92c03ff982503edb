"""`rfjax geneval`: detections files in, official results out, and every way a file can be wrong."""

import argparse
import errno
import json
import os
import subprocess
import sys

import pytest

from rfjax.cli import geneval
from rfjax.data.geneval_names import COLORS, TASKS
from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation.geneval import files as geneval_files
from rfjax.evaluation.geneval.files import read_detections, read_metadata, score_files, summary_path, summary_text
from rfjax.evaluation.geneval.rules import GenEvalOptions, judge

NAMES = ("bench", "wine glass", "dog", "computer mouse")


def prompt(tag, index):
    """A row in the official schema, as the official generator shapes them."""
    one, other = NAMES[index % 4], NAMES[(index + 1) % 4]
    color, second = COLORS[index % 10], COLORS[(index + 3) % 10]
    count = 2 + index % 3
    relations = ("left of", "right of", "above", "below")
    include, exclude = {
        "single_object": ([{"class": one, "count": 1}], None),
        "two_object": ([{"class": one, "count": 1}, {"class": other, "count": 1}], None),
        "counting": ([{"class": one, "count": count}], [{"class": one, "count": count + 1}]),
        "colors": ([{"class": one, "count": 1, "color": color}], None),
        "position": (
            [{"class": one, "count": 1}, {"class": other, "count": 1, "position": [relations[index % 4], 0]}],
            None,
        ),
        "color_attr": (
            [{"class": one, "count": 1, "color": color}, {"class": other, "count": 1, "color": second}],
            None,
        ),
    }[tag]
    row = {"tag": tag, "include": include, "prompt": f"a photo of {tag} {index}"}
    return {**row, "exclude": exclude} if exclude else row


METADATA = [prompt(tag, index) for tag in TASKS for index in range(4)]
STEP = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def perfect(row):
    """Detections that satisfy the row, with a weak stray object that must not matter."""
    boxes, colors = {}, {}
    for item in row["include"]:
        dx, dy = STEP[item["position"][0]] if "position" in item else (0, 0)
        for n in range(item["count"]):
            x, y = 200 + 100 * dx + 15 * n, 200 + 100 * dy
            boxes.setdefault(item["class"], []).append([x, y, x + 10, y + 10, 0.97])
            colors.setdefault(item["class"], []).append(item.get("color", "white"))
    first = row["include"][0]["class"]
    boxes[first].append([0, 0, 9, 9, 0.25])
    colors[first].append("brown")
    named = {item["class"] for item in row["include"] if "color" in item}
    return {"detections": boxes, "colors": {name: colors[name] for name in named}}


def write_lines(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def images(samples=2, metadata=METADATA):
    return [
        {"prompt_index": index, "sample": sample, **perfect(row)}
        for index, row in enumerate(metadata)
        for sample in range(samples)
    ]


@pytest.fixture
def files(tmp_path):
    """(metadata, detections, out): a whole and perfect set."""
    metadata = write_lines(tmp_path / "metadata.jsonl", METADATA)
    return metadata, write_lines(tmp_path / "detections.jsonl", images()), tmp_path / "results.jsonl"


def test_perfect_detections_score_one_everywhere(files):
    summary = score_files(*files)
    assert {tag: task["value"] for tag, task in summary["tasks"].items()} == dict.fromkeys(TASKS, 1.0)
    assert summary["overall"]["value"] == summary["correct_images"] == summary["correct_prompts"] == 1.0
    assert summary["missing_tasks"] == summary["missing_prompts"] == summary["missing_images"] == []
    assert summary["classes_never_detected"] == []


def test_the_right_images_of_the_wrong_prompts_score_low(files):
    shifted = [{**image, "prompt_index": (image["prompt_index"] + 1) % len(METADATA)} for image in images()]
    for image in shifted:  # every class has colours, so that any prompt may ask for them
        image["colors"] = {name: ["white"] * len(boxes) for name, boxes in image["detections"].items()}
    write_lines(files[1], shifted)
    assert score_files(*files)["overall"]["value"] < 0.5


def test_results_are_in_the_official_format(files):
    rows = images()
    del rows[0]["detections"]["bench"]
    write_lines(files[1], reversed(rows))  # results come in the order of prompts all the same
    summary = score_files(*files)
    results = [json.loads(line) for line in files[2].read_text().splitlines()]
    assert len(results) == 2 * len(METADATA)
    assert [list(row) for row in results] == [
        ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    ] * len(results)
    assert results[0]["filename"] == "00000/samples/0000.png" and results[-1]["filename"] == "00023/samples/0001.png"
    assert results[0]["correct"] is False and "bench" in results[0]["reason"]
    assert results[1]["correct"] is True and results[1]["reason"] == ""
    assert [json.loads(row["metadata"]) for row in results[::2]] == METADATA
    details = json.loads(results[1]["details"])
    assert list(details) == ["bench"] and details["bench"][0] == pytest.approx([200, 200, 210, 210, 0.97])
    assert len(details["bench"]) == 1  # the stray is below the threshold
    # the summary, from the results alone, as the published summary script reckons it
    tags = list(dict.fromkeys(row["tag"] for row in results))
    means = [sum(r["correct"] for r in results if r["tag"] == t) / sum(r["tag"] == t for r in results) for t in tags]
    assert summary["overall"]["value"] == pytest.approx(sum(means) / 6) == pytest.approx((0.875 + 5) / 6)
    assert summary["correct_images"] == 47 / 48 and summary["correct_prompts"] == 1.0
    assert json.loads(summary_path(files[2]).read_text()) == summary
    assert summary_path(files[2]).name == "results.summary.json"


def test_the_command(files, capsys):
    parser = argparse.ArgumentParser()
    geneval.add_arguments(parser)
    arguments = ["--metadata", str(files[0]), "--detections", str(files[1]), "--out", str(files[2])]
    assert geneval.run(parser.parse_args(arguments), {}) == 0
    printed = capsys.readouterr().out
    assert all(tag in printed for tag in (*TASKS, "overall")) and "1.0000" in printed
    # a threshold above every score makes every counting prompt wrong
    geneval.run(parser.parse_args([*arguments, "--counting-threshold", "0.98", "--seed", "3"]), {})
    summary = json.loads(summary_path(files[2]).read_text())
    assert summary["options"]["counting_threshold"] == 0.98 and summary["seed"] == 3
    assert summary["tasks"]["counting"]["value"] == 0.0 and summary["tasks"]["colors"]["value"] == 1.0


def test_options_of_the_command_are_those_of_the_rules():
    assert {name for name, _, _ in geneval.OPTIONS} == set(GenEvalOptions.__dataclass_fields__)
    defaults = GenEvalOptions()
    assert all(f"default {getattr(defaults, name):g}" in text for name, _, text in geneval.OPTIONS)


def test_needs_no_jax():
    code = (
        "import sys, rfjax.evaluation.geneval.files as g; assert 'numpy' not in sys.modules;"
        "import rfjax.evaluation.geneval.rules, rfjax.evaluation.records; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_images_are_an_error_or_reported(files, capsys):
    rows = [row for row in images() if row["prompt_index"] != 5 and (row["prompt_index"], row["sample"]) != (7, 1)]
    write_lines(files[1], rows)
    with pytest.raises(
        ConfigError,
        match=r"lacks every image of 1 metadata row \(5\) and 1 single image \(7/1\), as row/sample; "
        r"24 metadata rows x 2 .*--allow-missing",
    ):
        score_files(*files)
    assert not files[2].exists() and not summary_path(files[2]).exists()
    summary = score_files(*files, allow_missing=True)
    assert summary["missing_prompts"] == [5] and summary["missing_images"] == [[7, 1]]
    assert summary["overall"]["images"] == 45 and summary["overall"]["value"] == 1.0
    text = geneval_files.summary_text(summary)
    assert "left out: every image of 1 metadata row (5) and 1 single image (7/1), as row/sample" in text
    write_lines(files[1], [*rows, *(row for row in images() if row["prompt_index"] == 5)])
    with pytest.raises(ConfigError, match=r"lacks 1 single image \(7/1\), as row/sample;"):  # no word of whole rows
        score_files(*files)


def test_repeated_rows_are_one_prompt_and_said_so(files):
    """Otherwise the summary counts 24 prompts where the metadata has 48 rows, and nothing says why."""
    assert "repeat" not in geneval_files.summary_text(score_files(*files))
    write_lines(files[0], [*METADATA, *METADATA])
    write_lines(files[1], images(metadata=[*METADATA, *METADATA]))
    text = geneval_files.summary_text(score_files(*files))
    assert text.startswith("96 images of 24 prompts (24 of the 48 metadata rows repeat an earlier row): ")


def test_images_per_prompt_says_how_many_are_expected(files):
    with pytest.raises(ConfigError, match=r"24 single images \(0/2, 1/2,.*\.\.\.\).*24 metadata rows x 3 images"):
        score_files(*files, images_per_prompt=3)
    with pytest.raises(ConfigError, match="detections.jsonl:2: sample is 1"):
        score_files(*files, images_per_prompt=1)
    for wrong in (0, 10**9):
        with pytest.raises(ConfigError, match="images per prompt"):
            score_files(*files, images_per_prompt=wrong)


def test_a_task_without_images_is_named(files):
    write_lines(files[1], [row for row in images() if METADATA[row["prompt_index"]]["tag"] != "counting"])
    summary = score_files(*files, allow_missing=True)
    assert summary["missing_tasks"] == ["counting"]
    assert "NOT GenEval's headline" in geneval_files.summary_text(summary)


def test_classes_that_are_never_detected_are_named(files):
    rows = json.loads(json.dumps(images()).replace("computer mouse", "mouse"))
    write_lines(files[1], rows)
    summary = score_files(*files)
    assert summary["classes_never_detected"] == ["computer mouse"]
    assert "computer mouse" in geneval_files.summary_text(summary)


IMAGE = {"prompt_index": 12, "sample": 0, **perfect(METADATA[12])}  # colors: a red bench


def changed(**values):
    return json.dumps({**IMAGE, **values})


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "malformed JSON"),
        ("", "malformed JSON"),
        ("[" * 100_000, "nested too deeply|malformed JSON"),
        ("[1]", "the row is .1.; it must be an object"),
        (json.dumps({"sample": 0, "detections": {}}), "has no 'prompt_index'"),
        (changed(color={}), "unknown key 'color'; did you mean colors"),
        (changed(zzz=1), "unknown key 'zzz'; the keys are"),
        (changed(prompt_index=24), "prompt_index is 24; it must be an integer from 0 to 23"),
        (changed(prompt_index=-1), "prompt_index is -1"),
        (changed(prompt_index=True), "prompt_index is True"),
        (changed(sample=1.0), "sample is 1.0"),
        (changed(sample=10**9), "sample is 1000000000"),
        (changed(detections=[]), "detections is "),
        (changed(detections={"bench": {}}), "boxes of 'bench'"),
        (changed(detections={"bench": [[0, 0, 1, 1]]}), "a box of 'bench'"),
        (changed(detections={"bench": [[0, 0, 1, 1, "0.9"]]}), "a box of 'bench'"),
        (changed(detections={"bench": [[0, 0, 1, 1, True]]}), "a box of 'bench'"),
        (changed(detections={"bench": [[0, 0, 1, float("nan"), 0.9]]}), "NaN is not a number"),
        (changed().replace("200", "1e999"), "not finite"),
        (changed().replace("200", "1" + "0" * 400), "too large"),
        (changed(detections={"bench": [[2, 0, 1, 1, 0.9]]}), "x2 < x1"),
        (changed(detections={"bench": [[0, 0, 1, 1, 90]]}), "outside"),
        (changed(colors={"bench": ["red"]}), "1 colors for 2 boxes"),
        (changed(colors={"bench": ["red", None]}), "a color of 'bench' is None"),
        (changed(colors={"bench": ["Red", "red"]}), "'Red'; did you mean 'red'"),
        (changed(colors={"bench": "red"}), "they must be a list"),
        (changed(colors=["red"]), "colors is"),
        (changed(colors={}), "no colors for 'bench'"),
        (changed()[:-1] + ', "sample": 1}', "'sample' given twice"),
        (json.dumps(images()[0]), "prompt_index 0, sample 0 is already at .*detections.jsonl:1"),
    ],
)
def test_a_bad_detections_row_is_named_and_nothing_is_written(files, line, message):
    write_lines(files[1], [images()[0], images()[1], line + "\n", images()[2]])
    with pytest.raises(ConfigError, match=rf"detections\.jsonl:3: .*({message})") as caught:
        score_files(*files, allow_missing=True)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    assert sorted(os.listdir(files[2].parent)) == ["detections.jsonl", "metadata.jsonl"]


ROW = {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a cow"}


@pytest.mark.parametrize(
    "row, message",
    [
        ({**ROW, "tag": "colours"}, "tag is 'colours'; did you mean colors"),
        ({**ROW, "tag": []}, "tag is"),
        ({**ROW, "exlude": []}, "did you mean exclude"),
        ({**ROW, "prompt": None}, "prompt is None"),
        ({**ROW, "held_out": "no"}, "held_out is 'no'"),
        ({**ROW, "include": {}}, "include is"),
        ({**ROW, "include": []}, "every image is correct"),
        ({"tag": "colors", "include": []}, "has no 'prompt'"),
        ({**ROW, "include": ["cow"]}, r"include\[0\] is 'cow'"),
        ({**ROW, "include": [{"class": "cow"}]}, r"include\[0\] has no 'count'"),
        ({**ROW, "include": [{"class": "cow", "count": 0}]}, "count is 0"),
        ({**ROW, "include": [{"class": "cow", "count": 1, "colour": "red"}]}, "did you mean color"),
        ({**ROW, "exclude": [{"class": "cow", "count": 1, "color": "red"}]}, "unknown key 'color'"),
        ({**ROW, "include": [{"class": "cow", "count": 1, "position": ["above", 0]}]}, "nothing comes before"),
        ({**ROW, "include": ROW["include"] + [{"class": "dog", "count": 1, "position": ["above", 1]}]}, "target is 1"),
        (
            {**ROW, "include": ROW["include"] + [{"class": "dog", "count": 1, "position": ["over", 0]}]},
            "relation is 'over'",
        ),
        (
            {**ROW, "include": ROW["include"] + [{"class": "dog", "count": 1, "position": "above"}]},
            "position is 'above'",
        ),
    ],
)
def test_bad_metadata_is_named(tmp_path, row, message):
    path = write_lines(tmp_path / "metadata.jsonl", [ROW, row])
    with pytest.raises(ConfigError, match=rf"metadata\.jsonl:2: .*{message}"):
        read_metadata(path)


def test_held_out_rows_and_windows_line_ends_are_read(tmp_path):
    rows = [ROW, {**ROW, "held_out": True}]
    path = tmp_path / "metadata.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows)).encode() + b"\r\n\r\n")
    assert read_metadata(path) == rows


def test_unreadable_files_are_named(files, tmp_path):
    with pytest.raises(ConfigError, match="cannot read .*nowhere"):
        score_files(tmp_path / "nowhere.jsonl", *files[1:])
    files[1].write_text("\n\n")
    with pytest.raises(ConfigError, match="detections.jsonl has no rows"):
        score_files(*files)
    files[1].write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match="not UTF-8"):
        score_files(*files)


def test_inputs_are_not_overwritten(files):
    for source in files[:2]:
        with pytest.raises(ConfigError, match="is what this command reads"):
            score_files(*files[:2], source)
    summary_like = files[1].rename(files[1].with_name("a.summary.json"))
    with pytest.raises(ConfigError, match="is what this command reads"):
        score_files(files[0], summary_like, files[0].with_name("a.jsonl"))


def test_a_failed_write_leaves_the_old_results_whole(files, monkeypatch):
    score_files(*files)
    before = [path.read_text() for path in (files[2], summary_path(files[2]))]
    listing = sorted(os.listdir(files[2].parent))
    write_lines(files[1], images()[:24])
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:  # the disk takes the results and not the summary
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RfjaxError, match="cannot write .*results.summary.json: No space left"):
            score_files(*files, allow_missing=True)
    assert [path.read_text() for path in (files[2], summary_path(files[2]))] == before
    assert sorted(os.listdir(files[2].parent)) == listing
    summary_path(files[2]).unlink()
    summary_path(files[2]).mkdir()
    with pytest.raises(ConfigError, match="results.summary.json is a folder"):
        score_files(*files, allow_missing=True)
    assert files[2].read_text() == before[0]
    with pytest.raises(RfjaxError, match="cannot be written"):
        score_files(*files[:2], files[0] / "results.jsonl", allow_missing=True)  # under a file


def test_read_detections_gives_what_judge_takes(files):
    found = read_detections(files[1], METADATA)
    assert len(found) == 48 and judge(found[12, 1], METADATA[12]).correct


@pytest.mark.parametrize("samples", [1, 2])
def test_images_numbered_through_the_prompts_are_read_and_said_so(files, samples):
    """Catches "24 prompts x 24 images are expected" of one image a prompt, numbered by its prompt."""
    usual = score_files(*files, images_per_prompt=2)
    through = [image | {"sample": number} for number, image in enumerate(images(samples))]
    write_lines(files[1], through)
    summary = score_files(*files)
    assert summary["images_per_prompt"] == samples and summary["missing_images"] == []
    assert "numbered through the prompts" in summary["numbering"] and summary["numbering"] in summary_text(summary)
    assert summary["overall"]["value"] == 1.0 and "numbering" not in usual
    write_lines(files[1], through[:-1])
    lost = "1 single image" if samples == 2 else "every image of 1 metadata row"
    with pytest.raises(ConfigError, match=f"lacks {lost}"):
        score_files(*files)
