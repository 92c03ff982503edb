"""Sweeps of the learning rate: optimum, interval, agreement of sizes, and rates taken from a sweep's folder."""

import json
import math
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


def write_run(root, name, loss, overrides, state="done", weights="raw", corpus="shapes"):
    """The folder of a run of a sweep, as training leaves it."""
    config = configs.apply_overrides(configs.from_dict(BASE), overrides | {"data.corpus": corpus})
    train, width = config.train, config.model.width
    more = {"role": "sweep", "starts": [], "hidden": width, "seed": config.seed, "learning_rate": train.learning_rate}
    more |= {"batch_size": train.batch_size, "corpus": corpus}
    planted_study.write_json(root / name / "run.json", planted_study.facts(name, 1, train.steps) | more)
    planted_study.write_json(root / name / "config.json", configs.to_dict(config))
    planted_study.write_json(root / name / "status.json", {"state": state, "step": train.steps, "message": ""})
    if state == "done":
        put_loss(root / name, loss, weights=weights, step=train.steps, corpus=corpus, flops=1e9 * width)
    return root / name


def put_loss(folder, loss, weights="raw", grid="paper-8-n8", step=20, flops=1e9, **key):
    at = {"weights": weights, "grid": grid, "seed": 0, "images": 64 * step, "flops": flops} | key
    planted_study.put(folder, folder.name, step, "validation", planted_study.loss_values(loss), **at)


def write_sweep(root, best=-9.3, sizes=(64, 128), overrides=None, tag="", **more):
    """The folders of a finished sweep, as training leaves them."""
    return [
        write_run(
            root,
            f"{tag}w{width}-{np.log2(rate):g}-{seed}",
            loss,
            {"model.hidden": width, "train.learning_rate": rate, "seed": seed} | (overrides or {}),
            **more,
        )
        for width in sizes
        for rate, losses in parabola(best, seeds=2, spread=0.003).items()
        for seed, loss in enumerate(losses)
    ]


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
        ({"timestep_shift": 3.0}, "config.timestep_shift=1.0, and this one has 3.0"),
        ({"timestep_shift_by_area": True}, "config.timestep_shift_by_area=False"),
        ({"timestep_shift_frames": 0.5}, "config.timestep_shift_frames=0.0"),
        ({"train__tokens_per_batch": 1024}, "config.train.tokens_per_batch=0"),
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


USER = {"model.hidden": 256, "train.role": "run"}


def rate_of(root, **changes):
    """log2 of the rate that the sweep in a folder gives to a wider network."""
    return np.log2(settled_rate(root, configs.apply_overrides(configs.from_dict(BASE), USER | changes)))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"train.steps": 40}, "config.train.steps (20, 40)"),
        ({"timestep_shift": 3.0}, "config.timestep_shift (1.0, 3.0)"),
        ({"train.schedule": "cosine"}, "config.train.schedule (constant, cosine)"),
        ({"train.weight_decay": 0.5, "train.b2": 0.9}, "config.train.b2 (0.999, 0.9), config.train.weight_decay"),
        ({"evaluation.validation.examples": 16}, "config.evaluation.validation.examples (8, 16)"),
    ],
)
def test_runs_that_differ_in_more_than_rate_seed_and_size_are_no_sweep(tmp_path, changes, said):
    """Catches runs of two lengths whose losses are averaged as if they were seeds."""
    write_sweep(tmp_path, sizes=(64,))
    write_sweep(tmp_path, sizes=(64,), overrides=changes, tag="x", state="diverged")
    with pytest.raises(ConfigError, match=re.escape(f"are several sweeps: they differ in {said}")):
        rate_of(tmp_path)


def test_the_runs_of_a_sweep_may_differ_in_what_no_run_learns_from(tmp_path):
    write_sweep(tmp_path, sizes=(64,))
    free = {"name": "b", "train.together": 5, "train.checkpoint_every": 7, "evaluation.geneval.prompts_per_task": 3}
    write_sweep(tmp_path, sizes=(128,), overrides=free)
    assert rate_of(tmp_path) == pytest.approx(-9.3, abs=0.05)


def test_a_sweep_that_has_not_finished_is_refused(tmp_path):
    """Catches a rate that the finished sweep would not give; a run that failed early has no run.json."""
    folders = write_sweep(tmp_path, sizes=(64,))
    planted_study.write_json(folders[3] / "status.json", {"state": "running", "step": 5, "message": ""})
    planted_study.write_json(tmp_path / "y" / "status.json", {"state": "failed", "step": 0, "message": "no memory"})
    said = f"2 of the runs there have not finished: {folders[3].name} (running), y (failed); finish the sweep: rfjax "
    with pytest.raises(ConfigError, match=re.escape(f"{said}study --config CONFIG --workdir {tmp_path}")):
        rate_of(tmp_path)


def test_a_rate_at_which_a_run_diverged_is_no_optimum(tmp_path):
    """Catches rates that are judged by the runs that survived."""
    best = write_sweep(tmp_path, best=-7.4, sizes=(64,))
    diverged = {"state": "diverged", "step": 5, "message": ""}
    for name in ("w64--7-1", "w64--8-0"):
        planted_study.write_json(tmp_path / name / "status.json", diverged)
    with pytest.raises(ConfigError, match=r"largest of its grid, 0.00195312 \(at 0.00390625 1 of 2 runs diverged; at"):
        rate_of(tmp_path)
    for folder in best[2:]:
        planted_study.write_json(folder / "status.json", diverged)
    with pytest.raises(ConfigError, match="width 64 has fewer than two rates at which no run diverged .*; sweep more"):
        rate_of(tmp_path)
    folders = write_sweep(tmp_path / "far", best=-9.3, sizes=(64,))
    put_loss(folders[-1], math.nan)  # a loss that is not finite, at the largest rate
    assert rate_of(tmp_path / "far") == pytest.approx(-9.3, abs=0.05)


def test_a_sweep_is_judged_by_the_loss_that_its_config_asks_for(tmp_path):
    """Catches losses of other examples or of another corpus in place of some runs' own, and two kinds of weights in
    one sweep."""
    folders = write_sweep(tmp_path, sizes=(64,), weights="ema")
    before = rate_of(tmp_path)
    for folder in folders[6:8]:  # as rfjax eval RUN --config.evaluation.validation.examples=96 leaves them
        put_loss(folder, 0.01, weights="ema", grid="paper-8-n96")
        put_loss(folder, 0.01, weights="ema", corpus="zebras")
    assert before == rate_of(tmp_path) == pytest.approx(-9.3, abs=0.05)
    for folder in folders:
        put_loss(folder, 0.2)
    for folder, losses in zip(folders[::2], parabola(-8.3).values(), strict=True):
        put_loss(folder, losses[0])
        put_loss(folder.with_name(folder.name[:-1] + "1"), losses[0])
    assert rate_of(tmp_path) == pytest.approx(-8.3, abs=0.05)  # of the raw weights, which all runs have now
    more = write_sweep(tmp_path, sizes=(128,))
    with pytest.raises(ConfigError, match="no final validation loss of the raw weights") as error:
        for record in (more[0] / "evaluations").iterdir():
            record.unlink()
        rate_of(tmp_path)
    assert f"rfjax eval {more[0]} --weights raw" in str(error.value)


def test_the_report_tells_sweeps_apart_and_says_what_diverged_and_what_is_in_no_sweep(tmp_path, undrawn):
    """Catches formulations, batch sizes and timestep shifts as seeds of one sweep, an optimum of survivors, and runs on
    a second corpus that disappear."""
    kinds = {
        "a": (-9.3, {}, {}),
        "b": (-8.3, {"formulation": "edm(-1.20,1.20)"}, {}),
        "c": (-9.8, {"timestep_shift": 3.0}, {}),
        "d": (-8.8, {"train.batch_size": 32, "train.steps": 40}, {}),
        "e": (-7.3, {}, {"corpus": "digits"}),
    }
    folders = []
    for kind, (best, changes, more) in kinds.items():
        for rate, (loss,) in parabola(best).items():
            state = "diverged" if kind == "e" and rate == GRID[-1] else "done"
            changed = changes | {"train.learning_rate": rate, "train.schedule": "cosine"}
            folders.append(write_run(tmp_path, f"{kind}{np.log2(rate):g}", loss, changed, state=state, **more))
    survivor = {"train.learning_rate": GRID[-1], "train.schedule": "cosine", "seed": 1}
    folders.append(write_run(tmp_path, "survivor", 0.01, survivor, corpus="digits"))
    folders.append(write_run(tmp_path, "ema-alone", 0.3, {"train.learning_rate": 2.0**-6}, weights="ema"))
    folders.append(write_run(tmp_path, "one-rate", 0.3, {"train.b2": 0.9}))
    merge.collect(folders, tmp_path / "results")
    numbers = write_report(tmp_path / "results", tmp_path / "report", resamples=10)
    found = {each["runs"][0]["run"][0]: each for each in numbers["learning_rates"]}
    assert {kind: round(np.log2(each["optimum"]), 2) for kind, each in found.items() if kind != "e"} == {
        kind: best for kind, (best, *_) in kinds.items() if kind != "e"
    }
    assert all(each["low"] is None for kind, each in found.items() if kind != "e")
    names = {kind: rates.name_of(each) for kind, each in found.items()}
    rf = "rf/lognorm(0.00,1.00)"
    assert names == {
        "a": f"depth 1, width 64, mup, on shapes, {rf}, batch size 64, timestep_shift=1.0, 1,280 images",
        "b": "depth 1, width 64, mup, on shapes, edm(-1.20,1.20), batch size 64, 1,280 images",
        "c": f"depth 1, width 64, mup, on shapes, {rf}, batch size 64, timestep_shift=3.0, 1,280 images",
        "d": f"depth 1, width 64, mup, on shapes, {rf}, batch size 32, 2,560 images",
        "e": f"depth 1, width 64, mup, on digits, {rf}, batch size 64, 1,280 images",
    }
    said = "0.00391, the largest of its grid at which no run diverged: no optimum; at 0.00781 1 of 2 runs diverged"
    assert rates.shown(found["e"]) == said
    page, lines = (tmp_path / "report" / "index.html").read_text(), "\n".join(summary_lines(numbers))
    assert said in page and said in lines and "0.00390625: try rates between." in lines
    assert [each["run"] for each in numbers["in_no_sweep"]] == ["ema-alone", "one-rate"]
    for words in (
        "In no sweep of the learning rate: ema-alone, as each was validated with other weights (ema) than most runs",
        "one-rate, as each has no other rate of its size and settings beside it",
    ):
        assert words in page and words in lines
    assert all(run["loss"] for run in numbers["runs"] if run["state"] == "done" and run["run"] != "ema-alone")


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
    sweep |= {"named": [], "diverged": []}
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
