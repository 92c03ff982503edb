"""A study of clips through the real command: what it measures, what table and page have, and the shipped configs."""

import json
import re
import shutil

import numpy as np
import pytest

from rfjax import cli
from rfjax.data.motion_worlds import WORLDS
from rfjax.errors import ConfigError
from rfjax.evaluation.records import read_records
from rfjax.report.temporal_scores import gallery
from rfjax.results import results_folder
from rfjax.results.columns import ITEMS, Measure
from rfjax.study.study import load_study
from rfjax.training.loop import evaluation_steps

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = [  # of configs/motion.py, in seconds
    "--config.model.head_size=16",
    "--config.train.batch_size=8",
    "--config.train.warmup_steps=1",
    "--config.train.log_every=2",
    "--config.evaluation.sampler.steps=1",
    "--config.evaluation.validation.examples=12",
    "--config.evaluation.validation.batch_size=12",
    "--config.evaluation.temporal.prompts_per_task=3",
    "--config.evaluation.temporal.clips_per_prompt=2",
    "--config.evaluation.temporal.batch_size=18",
]
TINY = """
from rfjax.config import load_file
base = load_file("motion")

def get_config():
    config = base.get_config()
    config.name = "tiny"
    config.model.hidden, config.model.depth = 32, 1
    config.train.steps, config.train.branches, config.train.warmup_steps = 64, (2, 8, 64), 1
    return config

def points():
    return {"a": {}, "b": {"model.depth": 2, "train.steps": 8, "train.branches": (4, 8)}}
"""
IDS = ["a-steps2", "a-steps8", "a-steps64", "b-steps4", "b-steps8"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(config file, folder) of a tiny study that the command has run."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "tiny.py").write_text(TINY)
    assert cli.main(["study", f"--config={folder / 'tiny.py'}", f"--workdir={folder / 'runs'}", *SMALL]) == 0
    return folder / "tiny.py", folder / "runs"


def records_of(folder, evaluation):
    return [record for record in read_records(folder) if record["key"]["evaluation"] == evaluation]


def test_branches_have_one_record_each_and_trunks_none(finished):
    """Catches a trunk that is scored, a record per floor, and a key without its sampler."""
    _, root = finished
    for id in IDS:
        (record,) = records_of(root / id, "temporal")
        assert record["key"]["sampler"] == "euler-1-cfg4-shift1-3x2" and record["key"]["corpus"] == "motion:first-4"
        values = {(value["metric"], value["item"]): value for value in record["values"]}
        assert values["temporal", "motion"]["n"] == 6 and values["temporal", "frames_right"]["n"] == 18
        assert values["temporal", "direction_right"]["n"] == 12
        assert values["temporal_floor_null", "direction_right"]["n"] == 6  # one clip a prompt
        assert all(value["low"] <= value["value"] <= value["high"] for value in values.values())
        assert len(records_of(root / id, "temporal_ceiling")) == len(records_of(root / id, "samples")) == 1
    assert not read_records(root / "a-trunk")


def test_the_table_has_a_column_for_each_score_and_floor(finished):
    _, root = finished
    table = results_folder.read(root / "results")
    row = table.wide[(table.wide["run"] == "tiny/a-steps8") & (table.wide["weights"] == "ema")].iloc[0]
    for name in ("temporal_motion", "temporal_direction_right", "temporal_floor_shuffled_direction_right"):
        assert Measure.parse(name).format() == name
        assert np.isfinite(row[[name, f"{name}_low", f"{name}_high", f"{name}_n"]].to_numpy(float)).all()
    assert np.isfinite(row["loss"])  # of one row: a score stands beside its loss
    measured = {(r["evaluation"], r["metric"]): set() for r in table.long.to_dict("records")}
    for r in table.long.to_dict("records"):
        measured[r["evaluation"], r["metric"]].add(r["item"])
    for (evaluation, metric), items in measured.items():
        if evaluation.startswith("temporal"):
            assert items <= set(ITEMS[evaluation, metric])


def test_the_same_command_measures_nothing_again(finished, capsys):
    config, root = finished
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/evaluations/*")}
    assert cli.main(["study", f"--config={config}", f"--workdir={root}", *SMALL]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in root.glob("*/evaluations/*")}
    said = capsys.readouterr().out
    assert "direction right (soft)" in said and "GenEval overall" not in said
    assert re.search(r"temporal GenEval of a-steps\d+: direction_right .* \(highest floor ", said)


def test_its_detections_score_the_same_by_the_command(finished, tmp_path, capsys):
    """Catches detections of other clips than those that were scored: the other way to the strict scores."""
    _, root = finished
    (folder,) = (root / "a-steps64" / "temporal").iterdir()
    words = [
        f"--{name}={folder / file}" for name, file in (("metadata", "metadata.jsonl"), ("detections", "clips.jsonl"))
    ]
    assert cli.main(["temporal", *words, f"--out={tmp_path / 'out.jsonl'}"]) == 0
    summary = (
        json.loads((tmp_path / "out_summary.json").read_text()) if (tmp_path / "out_summary.json").exists() else None
    )
    summary = summary or json.loads(next(tmp_path.glob("*summary*")).read_text())
    (record,) = records_of(root / "a-steps64", "temporal")
    values = {value["item"]: value["value"] for value in record["values"] if value["metric"] == "temporal"}
    for group in summary["groups"].values():
        for task, estimate in group["tasks"].items():
            assert values[task] == pytest.approx(estimate["value"])


def test_eval_prints_each_score_beside_its_floors(finished, tmp_path, capsys):
    _, root = finished
    shutil.copytree(root / "a-steps8", tmp_path / "copy")
    before = records_of(tmp_path / "copy", "temporal")
    assert cli.main(["eval", str(tmp_path / "copy")]) == 0
    assert [r["values"] for r in records_of(tmp_path / "copy", "temporal")] == [r["values"] for r in before]
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.split()[:2] == ["temporal", "direction_right"]]
    assert "floors: reversed " in line and "null " in line
    assert not any("temporal_floor" in line for line in lines)


def test_the_page_plays_clips_and_shows_them_at_three_computes(finished):
    """Catches a page without motion, one that cannot be printed, and a gallery of other prompts or sizes."""
    _, root = finished
    numbers = json.loads((root / "report" / "report.json").read_text())
    html = (root / "report" / "index.html").read_text()
    assert [row["run"] for row in numbers["gallery"]] == ["a-steps2", "a-steps8", "a-steps64"]
    assert html.count("data:image/webp;base64,") == html.count("class=printed") >= 3 + len(IDS)
    assert "Motion against compute" in html and "no finished run has a GenEval score" not in html
    assert "Temporal GenEval: Direction right (soft)" in html
    assert {"temporal_against_compute", "loss_against_temporal"} <= {
        path.stem for path in (root / "report" / "figures").iterdir()
    }
    sheets = results_folder.read(root / "results").samples
    assert all(sheet.webp and (root / "results" / sheet.webp).is_file() for sheet in sheets)
    assert all(sheet.prompts == sheets[0].prompts and len(sheet.prompts) == 9 for sheet in sheets)


def test_a_gallery_is_of_one_trunk_and_of_its_shares_of_compute():
    def row(run, flops, **more):
        return {"run": run, "flops": flops, "final": True, "webp": "x", **more}

    trunks = {"a": 1, "b": 1, "c": 1, "d": 2, "e": 2, "f": 2}
    rows = [row("a", 1.0), row("b", 4.2), row("c", 32.0), row("d", 2.0), row("e", 90.0), row("f", 100.0)]
    assert [each["run"] for each in gallery(rows, trunks)] == ["a", "b", "c"]  # the other size has no 1 of 32
    assert gallery([row("a", 1.0, webp=""), *rows[1:]], trunks) == []
    assert gallery([row("a", 1.0, final=False), *rows[1:]], trunks) == []


@pytest.mark.parametrize("name", ["motion", "motion_full"])
def test_a_shipped_study_has_a_gallery(name):
    study = load_study(name)
    assert all(point.config.evaluation.temporal.prompts_per_task == 40 for point in study.points)
    shortest, *_, longest = min((point.config.train.branches for point in study.points), key=lambda b: b[0])
    assert longest == 32 * shortest and 4 * shortest in {
        length for point in study.points for length in point.config.train.branches
    }


def test_the_study_for_a_gpu_takes_its_first_steps(tmp_path):
    """On tiny dimensions: frames, tasks and evaluation are the config's own."""
    words = ["--config=motion_full", f"--workdir={tmp_path}", "--point=depth2", *SMALL, "--config.train.steps=2"]
    words += ["--config.model.hidden=16", "--config.model.depth=1", "--config.model.patch_size=8"]
    words += ["--config.train.branches=(2,)", "--config.train.compute_dtype=float32"]
    assert cli.main(["study", *words]) == 0
    (record,) = records_of(tmp_path / "depth2-steps2", "temporal")
    tasks = {value["item"] for value in record["values"] if value["metric"] == "temporal"}
    assert set(WORLDS["full"].tasks) <= tasks


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
