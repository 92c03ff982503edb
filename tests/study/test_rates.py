"""Sweeps of the learning rate: optimum, interval, agreement of sizes, and rates taken from a sweep's folder."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from helpers import planted_study
from rfjax import config as configs
from rfjax.cli import main
from rfjax.errors import ConfigError
from rfjax.report import rates
from rfjax.report.write import summary_lines, write_report
from rfjax.results import merge
from rfjax.study.cohorts import cohorts
from rfjax.study.rate_optimum import compare_optima, find_optimum
from rfjax.study.settled_rate import settled_rate
from rfjax.study.study import load_study

GRID = tuple(2.0**-power for power in (11, 10, 9, 8, 7))


def parabola(best, rates=GRID, seeds=1, spread=0.0, rng=None):
    """{rate: losses} whose logarithm is a parabola in log2 rate, with noise."""
    noise = (rng or np.random.default_rng(0)).normal(size=(len(rates), seeds)) * spread
    return {
        rate: np.exp(0.05 * (np.log2(rate) - best) ** 2 - 1 + noise[place]).tolist() for place, rate in enumerate(rates)
    }


def test_the_optimum_is_the_parabolas_and_an_edge_is_flagged():
    """Catches a vertex in rate instead of its logarithm, the grid's best for the optimum, and an optimum claimed
    outside the grid."""
    found = find_optimum(parabola(-9.3))
    assert np.log2(found.rate) == pytest.approx(-9.3, abs=1e-9) and found.best == 2.0**-9 and not found.edge
    assert found.low is None and "no rate has two seeds" in found.interval_note and found.step == 2
    uneven = find_optimum(parabola(-9.3, rates=(2.0**-11, 2.0**-9.5, 2.0**-8.6, 2.0**-7)))
    assert np.log2(uneven.rate) == pytest.approx(-9.3, abs=1e-9)
    for best, edge, rate in ((-12, "smallest", GRID[0]), (-6, "largest", GRID[-1])):
        found = find_optimum(parabola(best))
        assert (found.edge, found.rate) == (edge, pytest.approx(rate))


def test_the_interval_covers_as_often_as_it_says():
    """Catches noise of one run for that of a mean of seeds, and a spread taken as known: 95 % intervals of 200 planted
    sweeps of two seeds, whose curve is no parabola's worst case, must hold the optimum in 90 to 100 % of cases."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(200):
        found = find_optimum(parabola(-9.3, seeds=2, spread=0.015, rng=rng))
        held += found.low <= 2.0**-9.3 <= found.high
    assert 180 <= held <= 200


def test_sizes_agree_within_a_step_of_the_grid_or_are_apart_beyond_their_intervals():
    def optima(**bests):
        rng = np.random.default_rng(2)
        return {name: find_optimum(parabola(best, seeds=2, spread=0.003, rng=rng)) for name, best in bests.items()}

    assert compare_optima(optima(a=-9.3, b=-8.6)).verdict == "agree"
    assert compare_optima(optima(a=-9.8, b=-8.1)).verdict == "apart"
    assert compare_optima({"a": find_optimum(parabola(-9.8)), "b": find_optimum(parabola(-8.1))}).verdict == "undecided"
    edge = compare_optima(optima(a=-9.3, b=-5))
    assert edge.verdict == "undecided" and "b is best at an edge" in edge.sentence
    assert compare_optima(optima(a=-9)).verdict == ""


BASE = {
    "model": {"depth": 1, "hidden": 64, "head_size": 32, "patch_size": 4, "parametrization": "mup", "base_width": 64},
    "data": {"corpus": "shapes", "image_size": 16},
    "train": {"role": "sweep", "steps": 20},
    "evaluation": {"validation": {"examples": 8}},
}


def write_sweep(root, best=-9.3, sizes=(64, 128), overrides=None):
    """The folders of a finished sweep, as training leaves them."""
    folders = []
    for width in sizes:
        for rate, losses in parabola(best, seeds=2, spread=0.003).items():
            for seed, loss in enumerate(losses):
                name = f"w{width}-{rate:g}-{seed}"
                config = configs.apply_overrides(
                    configs.from_dict(BASE),
                    {"model.hidden": width, "train.learning_rate": rate, "seed": seed} | (overrides or {}),
                )
                more = {"role": "sweep", "starts": [], "hidden": width, "seed": seed, "learning_rate": rate}
                facts = planted_study.facts(name, 1, 20) | more
                planted_study.write_json(root / name / "run.json", facts)
                planted_study.write_json(root / name / "config.json", configs.to_dict(config))
                planted_study.write_json(root / name / "status.json", {"state": "done", "step": 20, "message": ""})
                where = {"weights": "raw", "grid": "paper", "seed": 0, "images": 1280, "flops": 1e9 * width}
                values = planted_study.loss_values(loss)
                planted_study.put(root / name, name, 20, "validation", values, **where)
                folders.append(root / name)
    return folders


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    return root, write_sweep(root)


def write_config(path, source, **changes):
    base = json.loads(json.dumps(BASE)) | {"name": "user"}
    base["train"] = {"steps": 20}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            base[section][name] = value
        else:
            base[section] = value
    path.write_text(
        f"def get_config():\n    return {base!r}\n"
        f"def points():\n    return {{'a': {{'train.learning_rate': {source!r}, 'model.hidden': 256}},"
        " 'b': {'train.learning_rate': 0.5}}\n"
    )
    return path


def test_a_study_takes_the_rate_of_a_sweep(swept, tmp_path):
    """The geometric mean of the sizes' optima, at a width that was not swept; the other point keeps its number."""
    root, _ = swept
    study = load_study(write_config(tmp_path / "user.py", f"from:{root}"))
    assert np.log2(study.point("a").config.train.learning_rate) == pytest.approx(-9.3, abs=0.05)
    assert study.point("b").config.train.learning_rate == 0.5
    overridden = load_study(tmp_path / "user.py", {"train.learning_rate": f"from:{root}"})
    assert {point.config.train.learning_rate for point in overridden.points} == {
        study.point("a").config.train.learning_rate
    }


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"formulation": "rf/mode(1.29)"}, r"have config.formulation=rf/lognorm\(0.00,1.00\)"),
        ({"data": {"corpus": "digits", "image_size": 16}}, "config.data.corpus=shapes, and this one has digits"),
        ({"model__parametrization": "standard", "model__base_width": 0}, "config.model.parametrization=mup"),
        ({"train__optimizer": "muon"}, "config.train.optimizer=adamw"),
    ],
)
def test_a_rate_of_a_sweep_with_another_setting_is_refused(swept, tmp_path, changes, said, capsys):
    """Before anything is trained: by the dry run too."""
    root, _ = swept
    config = write_config(tmp_path / "user.py", f"from:{root}", **changes)
    assert main(["study", f"--config={config}", f"--workdir={tmp_path / 'runs'}", "--dry-run"]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_a_sweep_that_settles_nothing_is_refused(swept, tmp_path):
    """No sweep there, an optimum at an edge, and under standard a size that was not swept."""
    root, _ = swept
    config = configs.apply_overrides(configs.from_dict(BASE), {"model.hidden": 256})
    with pytest.raises(ConfigError, match="no finished run of a sweep"):
        settled_rate(tmp_path, config)
    with pytest.raises(ConfigError, match="another corpus .* f00d"):
        settled_rate(root, config, fingerprint="beef")
    write_sweep(tmp_path / "edge", best=-6, sizes=(64,))
    with pytest.raises(ConfigError, match="is the largest of its grid"):
        settled_rate(tmp_path / "edge", config)
    standard = {"model.parametrization": "standard", "model.base_width": 0}
    write_sweep(tmp_path / "standard", sizes=(64,), overrides=standard)
    with pytest.raises(ConfigError, match="no sweep of depth 1, width 256"):
        settled_rate(tmp_path / "standard", configs.apply_overrides(config, standard))


def test_a_study_that_is_a_sweep_alone_has_a_report(swept, tmp_path, undrawn):
    """Catches a law of mistuned runs, and a page that refuses a study without points."""
    _, folders = swept
    merge.collect(folders, tmp_path / "results")
    numbers = write_report(tmp_path / "results", tmp_path / "report", resamples=50)
    assert numbers["compares"] == "rates" and numbers["analysis"] is None
    assert [(each["hidden"], each["parametrization"]) for each in numbers["learning_rates"]] == [
        (64, "mup"),
        (128, "mup"),
    ]
    assert all(each["low"] < 2.0**-9.3 < each["high"] for each in numbers["learning_rates"])
    assert [each["verdict"] for each in numbers["rate_agreement"]] == ["agree"]
    assert len(numbers["runs"]) == len(folders) and all(run["loss"] for run in numbers["runs"])
    page, lines = (tmp_path / "report" / "index.html").read_text(), summary_lines(numbers)
    assert "Learning rates" in page and "sizes agree" in page and [line for line in lines if "sizes agree" in line]


def test_each_setting_has_its_panel_and_names_what_is_not_the_default():
    """Catches rates of two parametrisations in one panel, where equal rates mean different steps."""
    rows = [("mmdit", "standard", "adamw"), ("mmdit", "mup", "adamw"), ("dit", "mup", "muon"), ("mmdit", "mup", "muon")]
    runs = [{"learning_rate": rate, "loss": loss} for rate, loss in ((1e-3, 0.4), (2e-3, 0.3), (4e-3, 0.5))]
    sweep = {"depth": 1, "hidden": 64, "images": 10, "runs": runs, "best": 2e-3, "optimum": 1.9e-3, "at_edge": False}
    sweeps = [sweep | {"low": None, "high": None} | dict(zip(rates.SETTINGS, row, strict=True)) for row in rows]
    sweeps.append(sweeps[1] | {"hidden": 128})
    figure = rates.learning_rate_figure({"learning_rates": sweeps}, {1: ("k", "o")})
    shown = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in shown] == ["mup", "standard", "dit, mup, muon", "mup, muon"]
    assert [len([line for line in axis.lines if len(line.get_xdata()) == 3]) for axis in shown] == [2, 1, 1, 1]
    alone = rates.learning_rate_figure({"learning_rates": sweeps[:1]}, {1: ("k", "o")})
    assert [axis.get_title() for axis in alone.axes] == [""]


def test_the_shipped_sweeps_train_a_sizes_rates_in_one_program(monkeypatch):
    """Catches a sweep whose points cannot join, and one that has another role."""
    transfer = Path(__file__).parents[2] / "analysis" / "rates_transfer.py"
    for source, points, programs in (("shapes_rates", 30, 6), (transfer, 2 * (15 * 5 + 4 * 2 + 4 + 4 * 5), 2 * 24)):
        study = load_study(source)
        parts = cohorts({point.id: point.config for point in study.points})
        assert (len(study.points), len(parts)) == (points, programs)
        assert {run.role for run in study.runs} == {"sweep"}
        assert all(len({study.point(id).config.train.learning_rate for id in part}) == len(part) for part in parts)
    monkeypatch.setenv("TRANSFER_WIDTHS", "64")
    assert len(load_study(transfer).points) == 2 * (9 * 5 + 3 * 2 + 2 * 5)
