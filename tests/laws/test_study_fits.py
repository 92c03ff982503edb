"""Which points are fitted, and the largest depth predicted without a look at it."""

import numpy as np
import pandas as pd
import pytest

from helpers import planted_study
from rfjax.errors import ConfigError
from rfjax.laws import fit_source, study_fits
from rfjax.laws.fitting import FitOptions, fit
from rfjax.laws.held_out_size import hold_out_largest
from rfjax.laws.laws import SATURATING
from rfjax.laws.run_frontier import OF_SWEEP
from rfjax.report.fit_facts import held_out_facts
from rfjax.results import merge, results_folder
from rfjax.results.plain import plain


def points(rows):
    """rows of (run, depth, flops, loss[, learning rate]) as `final_points` would give them."""
    frame = pd.DataFrame([(*row, 3e-3)[:5] for row in rows], columns=["run", "depth", "flops", "loss", "learning_rate"])
    frame["params"], frame["images"] = frame["depth"] * 1000, frame["flops"] / frame["depth"] / 1e6
    return frame.assign(frontier=study_fits.on_frontier(frame), best_rate=study_fits.at_best_rate(frame))


def test_a_run_beaten_in_both_is_off_the_frontier():
    frame = points(
        [
            ("a", 1, 1e12, 0.2),
            ("b", 1, 2e12, 0.15),
            ("c", 2, 3e12, 0.16),
            ("d", 2, 4e12, 0.1),
            ("e", 3, 4e12, 0.12),
        ]
    )
    assert frame["frontier"].tolist() == [True, True, False, True, False]


def test_seeds_stand_or_fall_together():
    # One lucky seed below a better configuration must not be on the frontier alone.
    rows = [("a0", 1, 1e12, 0.10), ("a1", 1, 1e12, 0.20), ("b0", 2, 1e12, 0.13), ("b1", 2, 1e12, 0.13)]
    assert points(rows)["frontier"].tolist() == [False, False, True, True]


def test_the_best_learning_rate_is_per_size_and_budget():
    rows = [
        ("a", 1, 1e12, 0.20, 1e-3),
        ("b", 1, 1e12, 0.18, 2e-3),
        ("c", 2, 5e12, 0.11, 1e-3),
        ("d", 2, 5e12, 0.12, 2e-3),
    ]
    assert points(rows)["best_rate"].tolist() == [False, True, True, False]


def test_only_final_checkpoints_of_finished_runs_are_points(study):
    found = results_folder.read(study)
    rows = study_fits.checkpoints(found, study_fits.primary_settings(found))
    assert len(rows) == 11  # seven finals, and depth3's four before the end
    final = study_fits.final_points(rows)
    assert sorted(final["run"]) == sorted(run for run, *_ in planted_study.FINISHED)
    assert (final["step"] == final["steps"]).all()


def test_settings_prefer_the_average_and_the_papers_grid(study):
    found = results_folder.read(study)
    settings = study_fits.primary_settings(found)
    assert (settings.weights, settings.grid, settings.sampler) == ("ema", "paper-8", planted_study.SAMPLER)
    more = pd.concat([found.long, found.long[found.long["metric"] == "loss"].assign(grid="midpoints-8")])
    twice = results_folder.Results(
        **{
            name: getattr(found, name)
            for name in ("wide", "runs", "prompts", "pairs", "replicates", "curves", "samples", "notes", "folder")
        },
        long=more,
    )
    assert study_fits.primary_settings(twice).grid == "paper-8"


def test_no_validation_loss_is_refused(tmp_path):
    merge.collect(planted_study.write_study(tmp_path / "runs", finished=()), tmp_path / "results")
    with pytest.raises(ConfigError, match="no validation loss; evaluate a run first"):
        study_fits.primary_settings(results_folder.read(tmp_path / "results"))


def planted_points(largest_loss=None):
    flops = np.geomspace(1e12, 1e14, 7)
    rows = [(f"r{i}", 1 + i // 2, c, float(planted_study.planted_loss(c))) for i, c in enumerate(flops)]
    if largest_loss:
        rows[-1] = (*rows[-1][:3], largest_loss)
    return points(rows)


def test_the_held_out_depth_is_predicted_from_the_others_alone():
    honest, other = (study_fits.analyse(planted_points(loss), resamples=50).held_out for loss in (None, 0.2))
    assert honest.depth == 4 and honest.fit.n == 6
    assert [p.run for p in honest.predictions] == ["r6"]
    truth = float(planted_study.planted_loss(1e14))
    assert honest.predictions[0].predicted == pytest.approx(truth, rel=1e-6)
    # A different loss at the largest depth changes the verdict and nothing of the prediction.
    by_size, by_compute = other.predictions
    assert by_compute.predicted == honest.predictions[0].predicted
    assert by_compute.actual == 0.2 and not by_compute.covered
    assert by_compute.relative_error == pytest.approx(truth / 0.2 - 1, rel=1e-6)
    # It is then off the frontier: the law of compute does not count, and a better run for no more FLOPs is named.
    assert honest.predictions[0].better is None and honest.predictions[0].counts and honest.parametric is None
    least = planted_points().iloc[:-1].nsmallest(1, "loss")
    assert least["loss"].iloc[0] < 0.2 and by_compute.better == least["run"].iloc[0]
    assert (by_size.law, by_size.counts, by_compute.counts) == ("parametric", True, False)


def test_a_run_off_the_frontier_is_predicted_by_size_and_images():
    """Catches a law of compute whose error on such a run is taken for the study's: 5 sizes on a grid of images, and of
    the largest one run alone, after too few images."""
    rows = [
        (f"n{size}d{length}", 1 + size, 6.0 * params * images, 0.05 + 60 * params**-0.3 + 900 * images**-0.6)
        for size, params in enumerate(np.geomspace(1e5, 1e7, 5))
        for length, images in enumerate(np.geomspace(1e4, 1e6, 4))
        if size < 4 or length == 0
    ]
    frame = points(rows)
    names = frame["run"].str.extract(r"n(\d)d(\d)").astype(int)
    frame["params"], frame["images"] = np.geomspace(1e5, 1e7, 5)[names[0]], np.geomspace(1e4, 1e6, 4)[names[1]]
    found, reason = hold_out_largest(study_fits.mark_points(frame), FitOptions(resamples=30))
    assert not reason and [p.law for p in found.predictions] == ["parametric", "saturating"]
    by_size, by_compute = found.predictions
    assert by_size.relative_error == pytest.approx(0, abs=1e-6) and by_compute.relative_error < -0.1
    said = " ".join(held_out_facts({"held_out": plain(found)})[0])
    assert "predicts frontier runs only" in said and said.index("this prediction counts") < said.index("saturating")
    # Without enough sizes for the parametric law no prediction counts, and the reason is given.
    two = study_fits.mark_points(frame[frame["depth"].isin([1, 2, 5])])
    found, reason = hold_out_largest(two, FitOptions(resamples=30))
    assert not reason and not any(p.counts for p in found.predictions)
    assert "no prediction counts: no parametric law: params takes 2" in " ".join(
        held_out_facts({"held_out": plain(found)})[0]
    )


def test_the_law_of_compute_is_fitted_on_the_frontier_only():
    frame = planted_points()
    worse = pd.concat([frame, frame.iloc[[3]].assign(run="worse", loss=0.5, learning_rate=1e-4)], ignore_index=True)
    worse = points(worse[["run", "depth", "flops", "loss", "learning_rate"]].itertuples(index=False, name=None))
    analysis = study_fits.analyse(worse, resamples=50)
    assert "worse" not in analysis.fits["saturating"].runs and "worse" not in analysis.fits["parametric"].runs
    assert analysis.to_json()["dominated_runs"] == ["worse"]
    expected = fit(frame, SATURATING, resamples=50)
    np.testing.assert_allclose(analysis.fits["saturating"].parameters, expected.parameters)


def test_too_few_runs_fall_back_to_the_power_law_and_say_why():
    analysis = study_fits.analyse(planted_points().iloc[[0, 2, 4]], resamples=50)
    assert analysis.headline == "power"
    assert "3 runs cannot decide 3 parameters" in analysis.headline_reason
    assert analysis.held_out is None and "without depth 3: 2 runs" in analysis.held_out_reason


def test_one_depth_cannot_be_held_out():
    analysis = study_fits.analyse(planted_points().assign(depth=2), resamples=50)
    assert analysis.held_out is None and "two depths" in analysis.held_out_reason


@pytest.mark.parametrize("name", OF_SWEEP)
def test_runs_that_are_no_sweep_of_one_thing_do_not_compete_for_the_best_rate(name):
    frame = points([("a", 1, 1e12, 0.20, 1e-3), ("b", 1, 1e12, 0.18, 2e-3), ("c", 1, 1e12, 0.10, 3e-3)])
    frame[name] = [None, None, "other"]  # as the optimiser, whose default leaves the column empty
    assert study_fits.at_best_rate(frame).tolist() == [False, True, True]
    assert f"{name} (-, other)" in study_fits.mixed(frame) and study_fits.mixed(frame[:2]) == ""
    same_rate = frame.assign(learning_rate=3e-3, **{name: ["one", "one", "other"]})  # c is no third seed of a and b
    assert study_fits.on_frontier(same_rate).tolist() == [False, False, True]


def test_runs_on_pictures_of_another_size_are_left_out_by_name(tmp_path):
    folders = planted_study.write_study(tmp_path / "runs", failed=False)
    for folder in folders:  # depth4's pictures are larger, yet its corpus has the same name
        size = 32 if folder.name == "depth4" else 16
        planted_study.write_json(folder / "config.json", {"data": {"corpus": "shapes", "image_size": size}})
    merge.collect(folders, tmp_path / "runs/results")
    source = fit_source.read_source(
        tmp_path / "runs", rename={}, flops_per_param_image=None, curves=False, largest_losses=0, max_loss=None
    )
    (left,) = source.left_out
    assert "depth4" not in {*source.final["run"], *source.curves["run"]} and len(source.final) == len(folders) - 1
    assert left.run == "depth4" and "latents of 32 pixels a side, and most runs have 16" in left.why
