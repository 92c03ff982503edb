"""A study's sizes tuned: which runs are taken, and whether a law's slope or only its intercept is said to move."""

import json

import numpy as np
import pytest

from rfjax.errors import ConfigError
from rfjax.laws import tuned
from rfjax.laws.tuned import Change, Shift
from rfjax.tune import study, study_record


def changes_of(x, before, after, measure="geneval"):
    rows = zip(x, before, after, strict=True)
    exact = lambda value: (float(value),) * 3  # noqa: E731
    return [Change(f"run{i}", i, 10.0**c, measure, exact(a), exact(b)) for i, (c, a, b) in enumerate(rows)]


def test_a_slope_that_moves_is_told_from_an_intercept_that_moves():
    """Catches slopes of the scores in place of the changes, log10 for log, and a loss that is not taken as its log."""
    x, wobble = np.array([12.0, 12.5, 13.0, 13.5]), 0.001 * np.array([1, -1, -1, 1])
    steeper = tuned.shifts(changes_of(x, 0.1 * x - 1.0, 0.1 * x - 0.9 + 0.05 * (x - 12.75) + wobble))[0]
    assert steeper.verdict == "the slope changes"
    assert steeper.slope_before == pytest.approx(0.1) and steeper.slope_change[0] == pytest.approx(0.05)
    assert steeper.mean_change[0] == pytest.approx(0.1)
    raised = tuned.shifts(changes_of(x, 0.1 * x - 1.0, 0.1 * x - 0.9 + wobble))[0]
    assert raised.verdict == "only the intercept moves"
    assert (
        tuned.shifts(changes_of(x, 0.1 * x, 0.1 * x + 20 * wobble * [1, 1, -1, 1]))[0].verdict == "no change is shown"
    )
    loss = 0.5 * 10 ** (-0.1 * (x - 12))
    worse = tuned.shifts(changes_of(x, loss, 1.2 * loss * (1 + wobble), tuned.LOSS))[0]
    assert worse.slope_before == pytest.approx(-0.1 * np.log(10)) and worse.mean_change[0] == pytest.approx(
        np.log(1.2), rel=1e-4
    )
    two = tuned.shifts(changes_of(x[:2], x[:2], x[:2] + 1))[0]
    assert isinstance(two, Shift) and two.verdict == "undecided: an interval needs 3 sizes"
    assert not tuned.shifts(changes_of(x[:1], x[:1], x[:1]))


def test_intervals_of_a_line_cover_its_truth():
    rng, x, inside = np.random.default_rng(0), np.array([12.0, 12.4, 13.1, 13.5]), []
    for _ in range(2000):
        fitted = tuned.line(x, 0.3 + 0.2 * (x - x.mean()) + 0.05 * rng.standard_normal(4))
        inside.append([low <= truth <= high for truth, (_, low, high) in zip((0.3, 0.2), fitted, strict=True)])
    assert np.all(np.abs(np.mean(inside, axis=0) - 0.95) < 0.015)


def write_run(study_folder, name, params, flops, seed=0, role="run", state="done"):
    folder = study_folder / name
    folder.mkdir(parents=True)
    record = {"schema": 1, "run": f"s/{name}", "params": params, "flops": flops, "seed": seed, "role": role}
    record |= {
        "depth": 1,
        "hidden": 8,
        "heads": 1,
        "learning_rate": 0.1,
        "batch_size": 1,
        "steps": 1,
        "corpus": "shapes",
    }
    record |= {"corpus_fingerprint": "x", "flops_per_image": 1, "flops_forward_per_image": 1, "hardware": {}}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.json").write_text(json.dumps({"formulation": "rf", "model": {"backbone": "mmdit"}}))
    (folder / "status.json").write_text(json.dumps({"state": state, "step": 1}))
    return folder


def test_the_longest_finished_run_of_each_size_is_tuned(tmp_path):
    """Catches a trunk, a run that has not ended, and the second seed in place of the first."""
    home = tmp_path / "study"
    write_run(home, "b-long", 200, 4.0)
    write_run(home, "b-short", 200, 2.0)
    write_run(home, "b-longer", 200, 9.0, state="running")
    write_run(home, "a-other", 100, 3.0, seed=1, role="branch")
    write_run(home, "a-trunk", 100, 9.0, role="trunk")
    write_run(home, "a-long", 100, 3.0, role="branch")
    assert study.is_study(home) and not study.is_study(home / "a-long") and not study.is_study(tmp_path / "none")
    assert [folder.name for folder in study.largest_runs(home)] == ["a-long", "b-long"]
    made = []
    folders = study.tune_study(
        home, tmp_path / "tuned", "nft", lambda run, folder: made.append((run.name, folder.name))
    )
    assert made == [("a-long", "a-long-nft"), ("b-long", "b-long-nft")]
    assert folders == [tmp_path / "tuned" / "a-long-nft", tmp_path / "tuned" / "b-long-nft"]
    with pytest.raises(ConfigError, match="is the study's own folder"):
        study.tune_study(home, home, "nft", lambda run, folder: None)
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "empty", "a", 100, 1.0, state="failed")
    with pytest.raises(ConfigError, match="holds no finished run to tune"):
        study.largest_runs(tmp_path / "empty")


def test_the_comparison_is_written_and_said(tmp_path):
    x = np.array([12.0, 12.5, 13.0])
    changes = changes_of(x, 0.1 * x, 0.1 * x + 0.2)
    found = json.loads(study_record.write(tmp_path, changes).read_text())
    assert found["shifts"][0]["verdict"] == "only the intercept moves" and len(found["changes"]) == 3
    assert (tmp_path / "tuned.png").read_bytes()[:4] == b"\x89PNG"
    assert "</svg>" in (tmp_path / "tuned.svg").read_text()
    said = "\n".join(study.table(changes))
    assert "1.200 [1.200, 1.200] -> 1.400" in said and "only the intercept moves" in said
