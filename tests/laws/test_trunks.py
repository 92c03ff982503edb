"""Fits of runs that share trunks: the noise between trunks and within, and what is left out with what."""

import numpy as np
import pandas as pd
import pytest

from rfjax.errors import ConfigError
from rfjax.laws import trunks as shared
from rfjax.laws.comparison import compare
from rfjax.laws.correlation import correlate, resampled_runs
from rfjax.laws.fitting import fit
from rfjax.laws.laws import PARAMETRIC, POWER
from rfjax.laws.misfits import HUBER, LOSSES
from rfjax.laws.profile_likelihood import profile
from rfjax.laws.trunk_likelihood import generalised_refits, likelihood_ends
from rfjax.report.fit_facts import fit_fact
from rfjax.results.foreign_table import read_table

SIZES, LENGTHS = np.geomspace(1e5, 1e7, 4), np.geomspace(1e4, 1e5, 4)
SQUARES = LOSSES["squares-log"]
EXPONENTS = {"E": 0.05, "alpha": 0.3, "beta": 0.6}


def law(params, images):
    return 0.05 + 60 * params**-0.3 + 900 * images**-0.6


def branched(seed, between, within, sizes=SIZES, seeds=2):
    """A table of trunks, of the smallest size `seeds`, with a branch of each length."""
    rng, rows = np.random.default_rng(seed), []
    for size, params in enumerate(sizes):
        for copy in range(seeds if size == 0 else 1):
            trunk, moved = f"n{size}s{copy}", between * rng.standard_normal()
            for images in LENGTHS:
                loss = law(params, images) * np.exp(moved + within * rng.standard_normal())
                rows.append((f"{trunk}d{images:.0f}", trunk, params, images, params * images, loss))
    return pd.DataFrame(rows, columns=["run", "trunk", "params", "images", "flops", "loss"])


def test_the_likelihood_is_that_of_the_mixed_model():
    """Catches a wrong projection: against the restricted likelihood written out with the whole covariance."""
    rng = np.random.default_rng(0)
    trunks = np.repeat(np.arange(4), 3)
    jacobian, residuals = rng.standard_normal((12, 3)), rng.standard_normal(12) * 0.01
    found = shared.scatter(rng, jacobian, residuals, trunks, rng.standard_normal((12, 2)), 20_000)
    member = np.eye(4)[trunks]
    grid = np.geomspace(1e-4, 0.3, 60)

    def log_posterior(between, within):
        inverse = np.linalg.inv(between**2 * member @ member.T + within**2 * np.eye(12))
        cross = jacobian.T @ inverse
        inner = cross @ jacobian
        left = residuals @ (inverse - cross.T @ np.linalg.inv(inner) @ cross) @ residuals
        value = 0.5 * np.linalg.slogdet(inverse)[1] - 0.5 * np.linalg.slogdet(inner)[1] - 0.5 * left
        for scale, assumed in ((between, shared.ASSUMED_BETWEEN), (within, shared.ASSUMED_WITHIN)):
            value += np.log(scale) - np.log1p((scale / assumed) ** 2)
        return value

    table = np.array([[log_posterior(b, w) for w in grid] for b in grid])
    weight = np.exp(table - table.max())
    for drawn, axis in ((found.between, 1), (found.within, 0)):
        share = np.cumsum(weight.sum(axis)) / weight.sum()
        for level in (0.1, 0.5, 0.9):
            assert np.interp(level, share, np.log(grid)) == pytest.approx(np.log(np.quantile(drawn, level)), abs=0.12)


def labelled(**trunks):
    """A table of runs, with the trunks that they name."""
    return pd.DataFrame({"run": list(trunks), "trunk": list(trunks.values())})


def test_a_trunk_shares_the_number_of_its_branches_and_theirs():
    """Catches a run, the run that is trained again without some of its batches, and its branches by hand that count as
    independent; a trunk that is in no row; and names in a circle, which never end."""
    table = labelled(a="", b="a", c="b", d="gone", e="gone", f=None, x="y", y="x", z="x", same="same")
    groups = table.groupby(shared.trunks_of(table))["run"].agg("".join)
    assert groups.tolist() == ["f", "same", "abc", "de", "xyz"]  # runs without branches first: draws depend on it
    assert shared.are_shared(shared.trunks_of(table[:2])) and not shared.are_shared(shared.trunks_of(table[5:6]))
    assert shared.trunks_of(table[["run"]]).tolist() == np.argsort(np.argsort(table["run"])).tolist()
    assert shared.roots_of(table) == ["a", "a", "a", "gone", "gone", "f", "x", "x", "x", "same"]


def test_branches_share_a_trunk_through_a_run_that_is_left_out():
    """Catches branches of a trunk, and of the same trunk trained again, that are independent as no trunk is a point."""
    table = labelled(trunk="", again="trunk", early="trunk", late="again", other="")
    points = table[table["run"].isin(["early", "late", "other"])]
    assert len(set(shared.trunks_of(points))) == 3
    found = shared.with_roots(points, table)
    assert found["trunk"].tolist() == ["trunk", "trunk", ""] and len(set(shared.trunks_of(found))) == 2
    assert shared.with_roots(points[["run"]], table).columns.tolist() == ["run"]


def test_planted_noise_is_found():
    many = branched(1, 0.03, 0.004, sizes=np.geomspace(1e5, 1e7, 7))
    found = fit(many, POWER, resamples=5, held_out=False, intervals="runs")
    assert found.scatter is None and "8 trunks, whole" in found.method  # as many as can be resampled
    assert fit(many, POWER, resamples=5, held_out=False).scatter.trunks == 8
    crowd = pd.concat([many.assign(run=many["run"] + f"-{n}", trunk=many["trunk"] + f"-{n}") for n in range(4)])
    assert fit(crowd, POWER, resamples=5, held_out=False).scatter is None  # 128 runs: covariances would grow too large
    table = branched(2, 0.03, 0.004)
    found = fit(table, PARAMETRIC, resamples=150, held_out=False)
    between, within = (found.scatter.to_json()[name] for name in ("between", "within"))
    assert between["low"] < 0.03 < between["high"] and within["low"] < 0.004 < within["high"]
    assert found.scatter.two_seeds == 1 and found.scatter.trunks == 5
    fact = " ".join(fit_fact(fit(table, PARAMETRIC, resamples=10).to_json()))
    assert "noise of the 5 trunks" in fact and "1 size with several seeds" in fact and "optimistic" in fact


def test_a_law_of_compute_counts_sizes_and_not_lengths():
    """Catches "3 sizes with several seeds" where one size has two seeds of three lengths each."""
    trunks = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    log_x = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    jacobian, residuals = np.ones((8, 1)), np.linspace(-0.01, 0.01, 8)
    found = shared.scatter(np.random.default_rng(0), jacobian, residuals, trunks, log_x, 2)
    assert found.two_seeds == 1 and found.trunks == 3


def test_refits_and_ends_are_those_of_generalised_least_squares():
    """Catches branches that are taken as independent, and a wrong covariance: of a power law, which is linear in its
    logarithms, the estimate and its spread are known."""
    rng = np.random.default_rng(0)
    trunks = np.repeat(np.arange(5), 4)
    log_x = (np.repeat([-2.0, -1.0, 0.0, 1.0, 2.0], 4) + np.tile([-0.5, -0.2, 0.2, 0.5], 5))[:, None]
    log_loss = 0.1 - 0.3 * log_x[:, 0] + 0.03 * rng.standard_normal(5)[trunks] + 0.004 * rng.standard_normal(20)
    count = 4000
    known = shared.Scatter(trunks=5, two_seeds=0, ratio=7.5, between=np.full(count, 0.03), within=np.full(count, 0.004))
    inverse = np.linalg.inv(0.03**2 * (trunks[:, None] == trunks) + 0.004**2 * np.eye(20))
    jacobian = np.column_stack([np.ones(20), -log_x[:, 0]])
    covariance = np.linalg.inv(jacobian.T @ inverse @ jacobian)
    best, spread = (covariance @ jacobian.T @ inverse @ log_loss)[1], np.sqrt(covariance[1, 1])
    data = (log_x, log_loss, trunks, known)
    draws = generalised_refits(rng, POWER, np.array([0.0, 0.2]), *data).parameters
    assert draws[:, 1].mean() == pytest.approx(best, abs=0.1 * spread)
    assert draws[:, 1].std() == pytest.approx(spread, rel=0.05)
    ends = likelihood_ends(POWER, 1, np.array([0.0, 0.2]), draws, *data)
    np.testing.assert_allclose(ends, [best - 1.96 * spread, best + 1.96 * spread], atol=0.02 * spread)


def test_estimates_and_left_out_runs_are_those_of_generalised_least_squares():
    """Catches an estimate that counts a trunk's branches as independent points, and a left-out run or trunk that is
    still in the covariance: a power law is linear in its logarithms, so each refit has a closed form."""
    table = branched(0, 0.03, 0.004)
    found = fit(table, POWER, resamples=40)
    assert found.generalised and found.loss_function.startswith("generalised least squares")
    trunks, design = shared.trunks_of(table), np.column_stack([np.ones(len(table)), -np.log(table["flops"])])
    covariance = np.eye(len(table)) + found.scatter.ratio**2 * (trunks[:, None] == trunks)
    log_loss = np.log(table["loss"].to_numpy())

    def closed_form(kept):
        weighted = design[kept].T @ np.linalg.inv(covariance[np.ix_(kept, kept)])
        return np.linalg.solve(weighted @ design[kept], weighted @ log_loss[kept])

    np.testing.assert_allclose(found.parameters, closed_form(np.full(len(table), True)), rtol=1e-7)
    place = {run: row for row, run in enumerate(table["run"])}
    for left_out, units in ((found.left_out, np.arange(len(table))), (found.trunk_out, trunks)):
        for run, error in zip(left_out.runs, left_out.relative_errors, strict=True):
            row = place[run]
            expected = np.exp(design[row] @ closed_form(units != units[row]) - log_loss[row]) - 1
            assert error == pytest.approx(expected, abs=1e-7), run
    other = fit(table, POWER, resamples=300, seed=1, held_out=False)
    np.testing.assert_array_equal(found.parameters, other.parameters)  # no draw decides the estimate


def test_a_trunk_is_one_sample():
    """Catches trunks that are resampled although they are few, and a loss that the user names and that is not taken."""
    table = branched(0, 0.03, 0.004)
    alone = fit(table.drop(columns="trunk"), PARAMETRIC, resamples=80, held_out=False)
    together = fit(table, PARAMETRIC, resamples=80, held_out=False)
    named = fit(table, PARAMETRIC, loss=HUBER, resamples=80, held_out=False)
    assert alone.scatter is None and together.scatter.trunks == 5
    np.testing.assert_array_equal(alone.parameters, named.parameters)
    assert not named.generalised and (together.parameters != named.parameters).all()
    for each in (*together.estimates.values(), *named.estimates.values()):
        assert each.low <= each.value <= each.high
    with pytest.raises(ConfigError, match="need 8 trunks and 10 runs, not 5 trunks"):
        fit(table, PARAMETRIC, resamples=10, intervals="runs")
    with pytest.raises(ConfigError, match="share 5 trunks"):
        profile(together, "E")


def test_leaving_out_means_leaving_out_a_trunk():
    """Catches a run that is predicted from the other branches of its own trunk, which share its luck."""
    table = branched(3, 0.03, 0.002)
    found = fit(table, PARAMETRIC, loss=SQUARES, resamples=5)
    assert found.trunk_out.rms > 1.2 * found.left_out.rms
    row = 9
    rest = fit(table[table["trunk"] != table["trunk"][row]], PARAMETRIC, loss=SQUARES, resamples=5, held_out=False)
    at = {name: [table[name][row]] for name in ("params", "images")}
    place, expected = found.runs.index(table["run"][row]), rest.predict(at)[0] / table["loss"][row] - 1
    assert found.trunk_out.relative_errors[place] == pytest.approx(expected, abs=1e-6)
    assert compare({"a": found})["laws"]["a"]["leave_one_out_rms"] == found.trunk_out.rms
    smaller = fit(table[table["params"] < SIZES[-1]], PARAMETRIC, loss=SQUARES, resamples=5, held_out=False)
    largest = {"params": [SIZES[-1]], "images": [LENGTHS[-1]]}
    assert found.largest_out.predicted[0] == pytest.approx(smaller.predict(largest)[0], rel=1e-6)


def test_a_correlation_over_branches_resamples_trunks():
    """Catches branches that are resampled as if they were independent, and a p that does not say that it is too low."""
    loss, score = np.arange(1.0, 7.0), np.array([0.6, 0.5, 0.4, 0.3, 0.25, 0.2])
    for trunks, said in ((np.array([0, 0, 1, 1, 2, 2]), "branches of 3 trunks"), (np.arange(6), "")):
        found = correlate(loss, score, trunks=trunks, resamples=100)
        assert ("optimistic" in found.p_method) == bool(said) and said in found.p_method
        assert ("3 trunks are too few" in found.interval_method) == bool(said)
    rng = np.random.default_rng(0)
    trunks = np.repeat(np.arange(6), 4)
    loss = np.repeat(rng.standard_normal(6), 4) + 0.1 * rng.standard_normal(24)
    score = 0.5 - 0.1 * np.repeat(rng.standard_normal(6), 4) - 0.05 * loss
    alone, together = (
        {c.name: c.high - c.low for c in correlate(loss, score, **how).coefficients} for how in ({}, {"trunks": trunks})
    )
    assert all(together[name] > 1.3 * alone[name] for name in alone)


def test_a_resample_has_whole_trunks():
    """Catches a trunk of which one branch is drawn and another is not, and a branch that is never drawn."""
    even = np.array([3, 3, 0, 0, 5, 5, 9, 9])[[0, 2, 4, 6, 1, 3, 5, 7]]  # no order of rows is needed
    drawn = resampled_runs(8, 200, np.random.default_rng(0), even)
    counts = np.array([np.bincount(row, minlength=8) for row in drawn])
    for trunk in np.unique(even):
        assert (counts[:, even == trunk] == counts[:, even == trunk][:, :1]).all()
    assert counts.max() > 1 and (counts > 0).any(axis=0).all()
    uneven = np.array([0, 1, 1, 1, 2, 3])
    counts = np.array([np.bincount(r, minlength=6) for r in resampled_runs(6, 3000, np.random.default_rng(0), uneven)])
    np.testing.assert_allclose(counts[:, 1:4].mean(0), counts[:, 1:4].mean(), rtol=0.1)
    assert ((counts @ np.eye(4)[uneven] > 0).sum(axis=1) >= 3).all()


def test_runs_without_trunks_are_as_before():
    table = branched(3, 0.0, 0.01)
    found = [fit(t, POWER, resamples=50) for t in (table.drop(columns="trunk"), table.assign(trunk=""))]
    np.testing.assert_array_equal(found[0].draws, found[1].draws)
    assert found[1].trunk_out is None and "leave_trunk_out" not in found[1].to_json()


@pytest.mark.full
@pytest.mark.parametrize(
    ("sizes", "seeds", "between", "within"), [(4, 2, 0.02, 0.005), (3, 2, 0.03, 0.005), (4, 1, 0.01, 0.005)]
)
def test_intervals_cover_as_often_as_they_say(sizes, seeds, between, within):
    """200 studies: the exponents, and a run of a new trunk at three times the largest size and length."""
    rng, covered = np.random.default_rng(5), []
    for study in range(200):
        table = branched(study, between, within, np.geomspace(1e5, 1e7, sizes), seeds)
        found = fit(table, PARAMETRIC, resamples=300, held_out=False)
        if not found.identifiable:
            continue
        new = law(3e7, 3e5) * np.exp(between * rng.standard_normal() + within * rng.standard_normal())
        low, high = found.interval({"params": [3e7], "images": [3e5]}, new_run=True)
        ends = [found.estimates[name] for name in EXPONENTS]
        inside = [each.low <= true <= each.high for each, true in zip(ends, EXPONENTS.values(), strict=True)]
        covered.append([*inside, low[0] <= new <= high[0]])
    assert len(covered) >= 180 and (np.mean(covered, axis=0) >= 0.88).all(), np.mean(covered, axis=0)


@pytest.mark.parametrize("none", ["-", "none", "NaN", "n/a"])
def test_a_sign_for_no_trunk_is_no_trunk_of_that_name(none, tmp_path):
    (tmp_path / "runs.csv").write_text(f"run,loss,trunk\na,3,{none}\nb,2,{none}\nc,1,t\nd,0.9,t\n")
    table = read_table(tmp_path / "runs.csv")
    assert table["trunk"].tolist() == ["", "", "t", "t"] and len(set(shared.trunks_of(table))) == 3
    (tmp_path / "named.csv").write_text(f"run,loss,trunk\n{none},3,\nb,2,{none}\n")  # a run that is called so
    assert len(set(shared.trunks_of(read_table(tmp_path / "named.csv")))) == 1
