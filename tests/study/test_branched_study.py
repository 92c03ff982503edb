"""A study whose points are trunks with branches: what is trained, in which order, where, and what a failure costs."""

import json

import jax
import numpy as np
import pytest

from helpers.training_tiny import rows
from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation.records import read_records
from rfjax.launch.target import CommonOptions
from rfjax.launch.tasks import make_launch
from rfjax.laws.study_fits import primary_settings
from rfjax.plan.targets import parse_target
from rfjax.results.merge import collect
from rfjax.study import study as studies
from rfjax.study.dry_run import dry_run_lines
from rfjax.study.planned_runs import runs_of
from rfjax.study.run import run_config
from rfjax.study.study import load_study, run_study
from rfjax.training import checkpoint

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "name": "tiny",
        "model": {"depth": 1, "hidden": 32, "head_size": 16, "patch_size": 4, "position_tokens": 4,
                  "position_span": 4.0, "position_grid": 8},
        "train": {"steps": 8, "branches": (5, 8), "schedule": "wsd", "decay_shape": "1-sqrt", "batch_size": 8,
                  "learning_rate": 1e-2, "warmup_steps": 2, "condition_dropout": 0.1, "ema_every": 1,
                  "ema_decay": 0.5, "checkpoint_every": 3, "log_every": 2, "together": 2},
        "evaluation": {"validation": {"examples": 12, "batch_size": 8, "levels": 4},
                       "geneval": {"prompts_per_task": 3, "few_prompts_per_task": 2, "images_per_prompt": 1,
                                   "batch_size": 12},
                       "sampler": {"steps": 1}},
    })

def points():
    return {"rf": {}, "edm": {"formulation": "edm(-1.20,1.20)"}}
"""
IDS = ["rf-trunk", "rf-steps5", "rf-steps8", "edm-trunk", "edm-steps5", "edm-steps8"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(study, its folder, what was said), its points trained together."""
    folder = tmp_path_factory.mktemp("branched")
    (folder / "tiny.py").write_text(CONFIG)
    study, said = load_study(folder / "tiny.py"), []
    outcomes = run_study(study, folder / "runs", say=said.append)
    assert [o.run.id for o in outcomes] == IDS and not any(o.error for o in outcomes)
    return study, folder / "runs", said


def test_trunks_come_first_and_branches_alone_are_measured(finished):
    """Catches a trunk's losses among those of a law, and branches measured before they are annealed."""
    _, root, said = finished
    assert [line.split(":")[0] for line in said] == ["[1-2/6] rf-trunk", "[3-4/6] rf-steps5", "[5-6/6] rf-steps8"]
    for id in IDS:
        steps = {record["key"]["step"] for record in read_records(root / id)}
        assert steps - {-1} == ({int(id[-1])} if "steps" in id else set()), id  # -1: of the detector's ceiling
    record = json.loads((root / "edm-steps8" / "run.json").read_text())
    assert (record["run"], record["point"], record["role"]) == ("tiny/edm-steps8", "edm", "branch")
    left = {"path": str(root / "edm-trunk"), "run": "tiny/edm-trunk", "step": 6}
    assert left.items() <= record["trunk"].items() and record["trunk"]["images"] == 6 * 8
    assert record["flops"] == record["flops_per_image"] * 8 * 8  # what it would have cost alone
    table = collect([root / id for id in IDS], root / "results", passed_over=[root / "copy"])
    assert table.notes == ("copy is no run of the study's points: it is not in the table",)
    assert set(table.long["run"]) == {f"tiny/{id}" for id in IDS if "steps" in id}
    assert set(table.long["final"][table.long["step"] > 0]) == {1}
    runs = table.runs.set_index("run").loc[[f"tiny/{id}" for id in IDS]]
    assert runs["role"].tolist() == ["trunk", "branch", "branch"] * 2 and runs["trunk_step"].tolist()[1:3] == [4, 6]
    assert (runs["spent_flops"] / runs["flops_per_image"] / 8).tolist() == [6, 1, 2] * 2  # steps each took itself
    seconds = [json.loads((root / id / "run.json").read_text())["train_seconds"] for id in IDS]
    spent = runs["spent_seconds"].tolist()
    assert spent[0] == seconds[0] and 0 < spent[2] < seconds[2]


def test_short_branches_are_scored_by_few_prompts_and_the_longest_by_all_too(finished):
    """Catches a law's scores under two settings, and a record by few prompts that is named as one by all."""
    _, root, _ = finished
    found = {}
    for id in IDS:
        for record in read_records(root / id):
            if record["key"]["evaluation"] == "geneval":
                images = record["values"][0]["n"]
                found.setdefault(id, {})[record["key"]["sampler"].split("-")[-1]] = images
    few, both = {"2x1": 12}, {"2x1": 12, "3x1": 18}
    assert found == {"rf-steps5": few, "rf-steps8": both, "edm-steps5": few, "edm-steps8": both}
    table = collect([root / id for id in IDS], root / "results")
    assert primary_settings(table).sampler.endswith("-2x1")  # what all branches have


def test_a_branch_of_a_cohort_is_the_run_alone_to_rounding(finished, tmp_path):
    """Catches moments, averages or rows that a branch loses where several are trained together."""
    study, root, _ = finished
    branch = study.points[1].runs[1]
    run_config(branch.config, tmp_path / "alone", evaluate=False)
    ours, theirs = (checkpoint.restore_params(path, 5, "ema")[0] for path in (root / branch.id, tmp_path / "alone"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), ours, theirs)
    for one, other in zip(rows(root / branch.id), rows(tmp_path / "alone"), strict=True):
        assert one["step"] == other["step"] and abs(one["loss"] - other["loss"]) < 1e-4 * other["loss"]


def test_the_same_command_trains_nothing_again(finished):
    study, root, _ = finished
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/checkpoints/*")}
    assert not any(outcome.error for outcome in run_study(study, root, say=lambda line: None))
    assert before == {path: path.stat().st_mtime_ns for path in root.glob("*/checkpoints/*")}


def test_costs_are_told_alone_and_spent(finished):
    """Catches a plan that pays for each branch whole: 8 steps at the last length, 6 + 1 + 2 in all."""
    study, _, _ = finished
    lines = dry_run_lines(study)
    assert [line.split()[0] for line in lines[2:8]] == IDS and "spent" in lines[1]
    assert any("Spent: " in line and "69%" in line for line in lines)  # 2 x (6 + 1 + 2) of 2 x (5 + 8) steps
    from rfjax.plan.point_plan import plan_point

    settings = {"compiler": None, "search": False, "price": None, "say": lambda line: None}
    plan = plan_point(study.points[0], parse_target("h100x8"), **settings)
    alone = studies.Point("a", study.points[0].runs[2].config)
    assert plan.cost.days == pytest.approx(plan_point(alone, parse_target("h100x8"), **settings).cost.days * 9 / 8)


def test_a_point_is_one_task_of_a_launch(finished, tmp_path):
    """Catches a job that waits for another's checkpoint."""
    study, _, _ = finished
    options = CommonOptions()
    where = {"config": tmp_path / "tiny.py", "config_there": tmp_path / "tiny.py", "workdir": "w", "out": tmp_path}
    assert [task.point for task in make_launch(study, {}, **where, options=options).points] == ["rf", "edm"]


def test_a_trunk_that_failed_is_named_by_its_branches(finished, monkeypatch, tmp_path):
    """Catches branches that begin anew, or that hide what happened to their trunk."""
    study, _, _ = finished
    real = studies._train_and_measure

    def fail(study, run, root, stop):
        if run.role == "trunk":
            raise RfjaxError("the disk is full")
        real(study, run, root, stop)

    monkeypatch.setattr(studies, "_train_and_measure", fail)
    with pytest.raises(RfjaxError, match="the disk is full"):
        studies.run_point(study, study.points[0], tmp_path)
    one = studies.Study("tiny", tuple(studies.Point(p.id, p.config) for p in study.points[:1]))
    said = [outcome.error for outcome in run_study(one, tmp_path, say=lambda line: None)]
    assert said[0] == "the disk is full"
    assert all(
        f"its trunk rf-trunk failed before step {step}" in error for step, error in zip((4, 6), said[1:], strict=True)
    )


def test_folders_of_two_points_are_never_one(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(
        CONFIG.replace('"edm":', '"rf-trunk":').replace('{"formulation"', '{"train.branches": (), "formulation"')
    )
    with pytest.raises(ConfigError, match="two runs of .* would lie in the folder rf-trunk"):
        load_study(path)


def test_a_config_of_branches_is_no_single_run(tmp_path, capsys):
    from rfjax.cli import main

    (tmp_path / "tiny.py").write_text(CONFIG)
    assert main(["train", f"--config={tmp_path / 'tiny.py'}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "give the config to rfjax study" in capsys.readouterr().err


def test_a_branch_by_hand(finished, tmp_path, capsys):
    """The trunk's config, a length, and all else as the study does."""
    from rfjax.cli import main

    study, root, _ = finished
    words = [f"--branch={root / 'rf-trunk'}@4", f"--workdir={tmp_path / 'hand'}", "--no-evaluation"]
    assert main(["train", *words, "--config.train.steps=8"]) == 2
    assert "leaves its trunk at step 6" in capsys.readouterr().err
    assert main(["train", *words]) == 2 and "needs the branch's whole length" in capsys.readouterr().err
    assert main(["train", *words, "--config.train.steps=5"]) == 0
    assert rows(tmp_path / "hand")[-1]["step"] == rows(root / "rf-steps5")[-1]["step"] == 5
    ours, theirs = (checkpoint.restore_params(path, 5, "raw")[0] for path in (tmp_path / "hand", root / "rf-steps5"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), ours, theirs)


def test_a_point_without_branches_is_one_run(finished):
    config = finished[0].points[0].runs[1].config
    (run,) = runs_of("a", config)
    assert (run.id, run.role, run.own_steps, run.trunk(finished[1], "s")) == ("a", "run", 5, None)
