"""A study of clips through the real command: what it measures, what table and page have, and the shipped configs."""

import json
import re
import shutil

import numpy as np
import pytest

from rfjax import cli
from rfjax.data.motion_worlds import TASKS
from rfjax.errors import ConfigError
from rfjax.evaluation.records import read_records
from rfjax.report.temporal_scores import gallery
from rfjax.results import results_folder
from rfjax.results.columns import ITEMS, Measure
from rfjax.study.study import load_study
from rfjax.training.kept_steps import evaluation_steps

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = [  # of a shipped study, in seconds
    "--config.model.head_size=16",
    "--config.model.hidden=16",
    "--config.model.depth=1",
    "--config.model.patch_size=8",
    "--config.train.compute_dtype=float32",
    "--config.train.batch_size=8",
    "--config.train.warmup_steps=1",
    "--config.evaluation.sampler.steps=1",
    "--config.evaluation.validation.examples=12",
    "--config.evaluation.validation.batch_size=12",
    "--config.evaluation.temporal.prompts_per_task=3",
    "--config.evaluation.temporal.clips_per_prompt=2",
    "--config.evaluation.temporal.batch_size=30",
]
SHORT = ["--config.train.steps=2", "--config.train.branches=(2,)"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a point of configs/motion_full.py, trunk and branch, that the command has run and reported."""
    folder = tmp_path_factory.mktemp("clips")
    words = ["study", "--config=motion_full", f"--workdir={folder}", *SMALL, *SHORT]
    assert cli.main([*words, "--point=depth2"]) == cli.main([*words, "--collect"]) == 0
    return folder


def records_of(folder, evaluation):
    return [record for record in read_records(folder) if record["key"]["evaluation"] == evaluation]


def test_a_branch_has_one_record_and_a_trunk_none(finished):
    """Catches a trunk that is scored, a record per floor, and a key without its sampler."""
    assert not read_records(finished / "depth2-trunk")
    (record,) = records_of(finished / "depth2-steps2", "temporal")
    assert record["key"]["sampler"] == "euler-1-cfg4-shift1-3x2" and record["key"]["corpus"] == "motion:full-8"
    values = {(value["metric"], value["item"]): value for value in record["values"]}
    assert [item for metric, item in values if metric == "temporal" and item in TASKS] == list(TASKS)
    assert values["temporal", "motion"]["n"] == 6 and values["temporal", "frames_right"]["n"] == 60
    assert values["temporal", "direction_right"]["n"] == 42  # seven of the tasks move
    assert values["temporal_floor_null", "direction_right"]["n"] == 21  # one clip a prompt
    assert all(value["low"] <= value["value"] <= value["high"] for value in values.values())
    (truth,) = records_of(finished / "depth2-steps2", "temporal_ceiling")
    assert truth["key"]["sampler"] == "ground truth-3x2" and truth["values"][0]["value"] == 1.0


def test_the_table_has_a_column_for_each_score_and_floor(finished):
    table = results_folder.read(finished / "results")
    (row,) = table.wide[table.wide["weights"] == "ema"].to_dict("records")  # a score stands beside its loss
    assert np.isfinite(row["loss"])
    assert 0 < row["temporal_floor_ground_truth_velocity_error"] < 0.1
    for name in ("temporal_motion", "temporal_direction_right", "temporal_floor_shuffled_direction_right"):
        assert Measure.parse(name).format() == name
        assert np.isfinite([row[name + end] for end in ("", "_low", "_high", "_n")]).all()
    for (evaluation, metric), found in table.long.groupby(["evaluation", "metric"]):
        assert set(found["item"]) <= set(ITEMS[evaluation, metric]) or metric == "loss"


def test_a_perfect_model_is_right_and_so_are_its_detections_by_the_command(finished, tmp_path, monkeypatch):
    """Catches clips judged by other prompts than their own, in the record or in the files: the other way to scores."""

    def ground_truth(run, programs, params, sampler, settings, ids, conditions, label, unit):
        prompts = run.corpus.evaluation_prompts(settings.prompts_per_task, settings.seed)
        clips = [run.corpus.render_prompt(prompts[index], 100 * index + sample) for index, sample in ids.tolist()]
        return run.corpus.to_latents(np.stack(clips))

    monkeypatch.setattr("rfjax.evaluation.kinds.temporal.latents_of", ground_truth)
    shutil.copytree(finished / "depth2-steps2", tmp_path / "run")
    assert cli.main(["eval", str(tmp_path / "run"), "--config.evaluation.validation.examples=2"]) == 0
    (folder,) = (tmp_path / "run" / "temporal").iterdir()
    files = {"metadata": folder / "metadata.jsonl", "detections": folder / "clips.jsonl"}
    words = [f"--{name}={file}" for name, file in files.items()]
    assert cli.main(["temporal", *words, f"--out={tmp_path / 'out.jsonl'}"]) == 0
    summary = json.loads(next(path for path in tmp_path.glob("out*") if path.name != "out.jsonl").read_text())
    scored = {task: e["value"] for group in summary["groups"].values() for task, e in group["tasks"].items()}
    assert scored == dict.fromkeys(TASKS, 1.0)
    (record,) = records_of(tmp_path / "run", "temporal")
    values = {value["item"]: value["value"] for value in record["values"] if value["metric"] == "temporal"}
    assert {task: values[task] for task in TASKS} == scored and values["direction_right"] == 1.0
    assert values["velocity_error"] < 0.1 and values["velocity_found"] == 1.0


def test_eval_prints_each_score_beside_its_floors(finished, tmp_path, capsys):
    """Also catches samples that depend on the attempt: a second measurement gives the same numbers."""
    shutil.copytree(finished / "depth2-steps2", tmp_path / "copy")
    before = records_of(tmp_path / "copy", "temporal")
    assert cli.main(["eval", str(tmp_path / "copy")]) == 0
    assert [r["values"] for r in records_of(tmp_path / "copy", "temporal")] == [r["values"] for r in before]
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.split()[:2] == ["temporal", "direction_right"]]
    assert "floors: reversed " in line and "null " in line
    # Nothing that this run draws is found, so no clip has a velocity error, and that is said.
    (line,) = [line for line in lines if line.split()[:2] == ["temporal", "velocity_found"]]
    assert line.split()[2] == "0.0000" and "n=18" in line
    assert not any("temporal_floor" in line for line in lines)


def test_the_page_plays_clips_and_can_be_printed(finished):
    html = (finished / "report" / "index.html").read_text()
    assert "Velocity error in pixels a frame, on prompts" in html and "detector's own" in html
    assert html.count("data:image/webp;base64,") == html.count("class=printed") == 1
    assert "Motion against compute" in html and "no finished run has a GenEval score" not in html
    assert "Temporal GenEval: Direction right (soft) is " in html and "ground truth, by the detector" in html
    assert (finished / "report" / "figures" / "temporal_against_compute.png").is_file()
    (sheet,) = results_folder.read(finished / "results").samples
    assert sheet.webp and (finished / "results" / sheet.webp).is_file() and len(sheet.prompts) == len(TASKS)


def test_a_gallery_is_of_one_trunk_and_of_its_shares_of_compute():
    def row(run, flops, **more):
        return {"run": run, "flops": flops, "final": True, "webp": "x", **more}

    trunks = {"a": 1, "b": 1, "c": 1, "d": 2, "e": 2, "f": 2}
    rows = [row("a", 1.0), row("b", 4.2), row("c", 32.0), row("d", 2.0), row("e", 90.0), row("f", 100.0)]
    assert [each["run"] for each in gallery(rows, trunks)] == ["a", "b", "c"]  # the other size has no 1 of 32
    assert gallery([row("a", 1.0, webp=""), *rows[1:]], trunks) == []
    assert gallery([row("a", 1.0, final=False), *rows[1:]], trunks) == []


@pytest.mark.parametrize("name", ["motion", "motion_full"])
def test_a_shipped_study_has_lengths_for_a_gallery(name):
    for point in load_study(name).points:
        assert point.config.evaluation.temporal.prompts_per_task == 40
    lengths = [point.config.train.branches for point in load_study(name).points]
    assert any({each[-1] // 32, each[-1] // 8} <= set(each) for each in lengths)


def test_what_cannot_be_scored_is_refused_before_anything_is_written(tmp_path, capsys):
    words = ["train", "--config=shapes", f"--workdir={tmp_path / 'run'}"]
    assert cli.main([*words, "--config.evaluation.temporal.prompts_per_task=4"]) == 2
    assert "needs clips with prompts: set config.data.corpus=motion" in capsys.readouterr().err
    clips = ["--config.data.corpus=motion", "--config.data.frames=4"]
    assert cli.main([*words, *clips]) == 2
    assert "has clips, and GenEval scores images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="prompts_per_task is 1; intervals are made by resampling.*no temporal"):
        load_study("motion", {"evaluation.temporal.prompts_per_task": 1})


def test_checkpoints_are_scored_at_their_own_cadence():
    """Catches a cadence that keeps checkpoints of a run without such scores."""
    every = {"evaluation.temporal.every": 1500}
    assert evaluation_steps(load_study("motion", every).points[0].config) == {1500, 3000, 4000}
    off = every | {"evaluation.temporal.prompts_per_task": 0}
    assert evaluation_steps(load_study("motion", off).points[0].config) == {4000}


GALLERY = """
from rfjax.config_files import load_file
base = load_file("motion")

def get_config():
    config = base.get_config()
    config.name = "tiny"
    config.train.steps, config.train.branches, config.train.warmup_steps = 64, (2, 8, 64), 1
    config.train.together = 2
    return config

def points():
    return {"a": {}, "b": {"formulation": "edm(-1.20,1.20)"}}
"""


@pytest.mark.full
def test_a_study_trained_together_shows_its_clips_at_three_computes(tmp_path, capsys):
    """Catches clips of a cohort under one run's name, a gallery of other prompts, and scores made twice."""
    (tmp_path / "tiny.py").write_text(GALLERY)
    words = ["study", f"--config={tmp_path / 'tiny.py'}", f"--workdir={tmp_path / 'runs'}", *SMALL]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "direction right (soft)" in said and "GenEval overall" not in said
    assert re.search(r"temporal GenEval of [ab]-steps\d+: direction_right .* \(highest floor ", said)
    ids = [f"{point}-steps{length}" for point in "ab" for length in (2, 8, 64)]
    values = [records_of(tmp_path / "runs" / id, "temporal")[0]["values"] for id in ids]
    assert values[2] != values[5]  # of one length, two formulations
    numbers = json.loads((tmp_path / "runs" / "report" / "report.json").read_text())
    (trunk,) = {row["run"].split("-")[0] for row in numbers["gallery"]}
    assert [row["run"] for row in numbers["gallery"]] == [f"{trunk}-steps{length}" for length in (2, 8, 64)]
    figures = {path.stem for path in (tmp_path / "runs" / "report" / "figures").iterdir()}
    assert {"temporal_against_compute", "loss_against_temporal"} <= figures
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/evaluations/*")}
    assert cli.main(words) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/evaluations/*")}
