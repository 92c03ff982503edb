"""Points of a study that are trained together: which ones, and that the study finds them as if alone."""

import json
import os
import shutil

import numpy as np
import pytest

from rfjax.config import apply_overrides
from rfjax.evaluation.kinds import validation
from rfjax.evaluation.records import read_records
from rfjax.study.cohorts import cohorts
from rfjax.study.size import size_of
from rfjax.study.study import load_study, run_study

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "name": "tiny",
        "model": {"depth": 1, "hidden": 32, "head_size": 16, "patch_size": 4, "position_tokens": 4,
                  "position_span": 4.0, "position_grid": 8},
        "train": {"steps": 6, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 2, "condition_dropout": 0.1,
                  "ema_every": 1, "ema_decay": 0.5, "checkpoint_every": 3, "log_every": 2, "together": 8},
        "evaluation": {"every": 3, "validation": {"examples": 12, "batch_size": 8, "levels": 4},
                       "geneval": {"prompts_per_task": 0},
                       "ranking": {"prompts_per_task": 2, "images_per_prompt": 1, "batch_size": 12,
                                   "samplers": ("2@1", "3@5")}},
    })

def points():
    names = {"rf": "rf", "edm": "edm(-1.20,1.20)", "eps": "eps/linear"}
    return {id: {"formulation": name} for id, name in names.items()}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(config file, folder) of the study, its points trained together."""
    folder = tmp_path_factory.mktemp("together")
    path = folder / "tiny.py"
    path.write_text(CONFIG)
    said = []
    outcomes = run_study(load_study(path), folder / "runs", say=said.append)
    assert [o.error for o in outcomes] == [None] * 3 and [o.run.id for o in outcomes] == ["rf", "edm", "eps"]
    assert len(said) == 1 and said[0].startswith("[1-3/3] rf: ") and said[0].endswith("; with 2 more, the last eps")
    return path, folder / "runs"


def by_key(workdir):
    return {json.dumps(record["key"], sort_keys=True): record for record in read_records(workdir)}


def test_members_are_measured_as_if_alone(finished, tmp_path):
    """Levels, noise or weights of another member, or a program compiled for it, would show in the losses."""
    path, root = finished
    alone = load_study(path, {"train.together": 1})
    assert [o.error for o in run_study(alone, tmp_path)] == [None] * 3
    for point in alone.points:
        ours, theirs = by_key(root / point.id), by_key(tmp_path / point.id)
        assert ours.keys() == theirs.keys()
        kinds = sorted((r["key"]["evaluation"], r["key"]["step"], r["key"]["weights"]) for r in ours.values())
        assert kinds.count(("ranking", 6, "ema")) == kinds.count(("ranking", 6, "raw")) == 2
        assert [k for k in kinds if k[0] == "validation"] == [
            ("validation", s, w) for s in (3, 6) for w in ("ema", "raw")
        ]
        for key, record in ours.items():
            if record["key"]["evaluation"] == "validation":
                got, want = ([value["value"] for value in r["values"]] for r in (record, theirs[key]))
                np.testing.assert_allclose(got, want, rtol=2e-4)
            else:
                distance = [
                    next(v["value"] for v in r["values"] if v["item"] == "overall" and "distance" in v["metric"])
                    for r in (record, theirs[key])
                ]
                np.testing.assert_allclose(*distance, rtol=2e-2)  # of pixels rounded to bytes
    losses = [
        next(r["values"][0]["value"] for k, r in by_key(root / id).items() if '"validation"' in k)
        for id in ("rf", "edm", "eps")
    ]
    assert min(abs(a - b) for a, b in zip(losses, losses[1:], strict=False)) > 1e-2


def test_nothing_is_done_again_and_a_lost_evaluation_is_measured(finished, tmp_path):
    path, root = finished
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    before = by_key(tmp_path / "edm")
    lost = next(
        path
        for path in (tmp_path / "edm" / "evaluations").iterdir()
        if json.loads(path.read_text())["key"]["evaluation"] == "ranking"
    )
    os.remove(lost)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/evaluations/*")}
    assert [o.error for o in run_study(load_study(path), tmp_path)] == [None] * 3
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    again = by_key(tmp_path / "edm")
    assert again.keys() == before.keys()
    for key, record in again.items():
        for ours, theirs in zip(record["values"], before[key]["values"], strict=True):
            assert ours["value"] == pytest.approx(theirs["value"], rel=1e-6)


def test_what_cannot_be_measured_of_one_stops_no_other(finished, tmp_path, monkeypatch):
    path, _ = finished
    real = validation.measure

    def broken(run, *given):
        if run.name.endswith("/edm"):
            raise ValueError("no such thing")
        return real(run, *given)

    monkeypatch.setattr(validation, "measure", broken)
    study = load_study(path, {"evaluation.ranking.prompts_per_task": 0})
    errors = {o.run.id: o.error for o in run_study(study, tmp_path)}
    assert errors == {"rf": None, "edm": "ValueError: no such thing", "eps": None}
    assert len(by_key(tmp_path / "eps")) == 4 and "no such thing" in (tmp_path / "edm" / "error.txt").read_text()


def test_points_that_differ_in_more_are_trained_apart(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    base = load_study(path).points[0].config

    def made(**changes):
        return apply_overrides(base, {key.replace("_", ".", 1): value for key, value in changes.items()})

    configs = {
        "a": made(formulation="rf"),
        "b": made(model_hidden=64),
        "c": made(formulation="v/cos"),
        "d": made(formulation="edm/rf"),
    }
    assert cohorts(configs) == [("a", "c", "d"), ("b",)]
    twos = {id: apply_overrides(config, {"train.together": 2}) for id, config in configs.items()}
    assert cohorts(twos) == [("a", "c"), ("b",), ("d",)]
    ones = {id: apply_overrides(config, {"train.together": 1}) for id, config in configs.items()}
    assert cohorts(ones) == [("a",), ("b",), ("c",), ("d",)]


def test_the_papers_formulations_are_a_study():
    study = load_study("configs/formulations.py")
    assert len(study.points) == 122
    parts = cohorts({point.id: point.config for point in study.points})
    assert [len(part) for part in parts] == [16, 16, 16, 13] * 2
    assert all(len({study.point(id).config.data.corpus for id in part}) == 1 for part in parts)
    assert size_of(study.points[0].config).params == size_of(study.points[60].config).params
