"""Score from loss: links recovered, the largest run predicted, levels of t told apart."""

import numpy as np
import pytest

from rfjax.errors import ConfigError
from rfjax.laws.noise_levels import by_level
from rfjax.laws.score_links import LINKS, fit_link, left_out_rms, predict_largest

LOSS = np.array([0.37, 0.29, 0.27, 0.21, 0.20, 0.187])
EXPONENTIAL = {"eps": 0.7, "k": 0.05, "gamma": 6.0}
LOGISTIC = {"middle": 0.22, "width": 0.05}


def exponential(loss):
    return 0.7 - 0.05 * np.exp(6.0 * loss)


def logistic(loss):
    return 1 / (1 + np.exp((loss - 0.22) / 0.05))


@pytest.mark.parametrize(
    ("name", "curve", "truth"), [("exponential", exponential, EXPONENTIAL), ("logistic", logistic, LOGISTIC)]
)
def test_noise_free_links_come_back(name, curve, truth):
    """Wrong units inside (loss goes from 0 to 1) or a grid that misses would change a parameter."""
    found = fit_link(LOSS, curve(LOSS), LINKS[name], resamples=50)
    assert found.parameters == pytest.approx(truth, rel=1e-5)
    assert found.predict([0.15]) == pytest.approx(curve(np.array([0.15])), rel=1e-6)
    assert found.rms < 1e-8 and found.isotonic_rms < 1e-12


@pytest.mark.parametrize("noise", [0.001, pytest.param(0.02, marks=pytest.mark.full)])
@pytest.mark.parametrize(("name", "curve"), [("exponential", exponential), ("logistic", logistic)])
def test_intervals_of_a_new_run_cover(name, curve, noise):
    """Six runs: normal instead of t quantiles would cover four times in five; draws left on a grid, at
    little noise, hardly ever."""
    rng = np.random.default_rng(0)
    held, covered, inside = 0.17, [], []
    for _ in range(150):
        found = fit_link(LOSS, curve(LOSS) + noise * rng.standard_normal(6), LINKS[name], resamples=300)
        low, high = found.interval([held], new_run=True)
        covered.append(low[0] <= curve(held) + noise * rng.standard_normal() <= high[0])
        low, high = found.interval([held], new_run=False)
        inside.append(low[0] <= found.predict([held])[0] <= high[0])
    assert 0.89 <= np.mean(covered) <= 0.995
    assert np.mean(inside) > 0.97  # the point belongs to its own interval


@pytest.mark.parametrize(("name", "curve"), [("exponential", exponential), ("logistic", logistic)])
def test_without_noise_an_interval_is_its_point(name, curve):
    found = fit_link(LOSS, curve(LOSS), LINKS[name], resamples=50)
    low, high = found.interval([0.15], new_run=False)
    assert low == pytest.approx(curve(0.15), abs=1e-6) and high == pytest.approx(curve(0.15), abs=1e-6)


def test_a_straight_line_is_the_edge_of_the_exponential():
    """Parameters that run off to infinity, and an interval that leaves the point outside."""
    score = 0.9 - 1.5 * (LOSS - 0.1)
    found = fit_link(LOSS, score, LINKS["exponential"], resamples=50)
    assert abs(found.parameters["eps"]) < 50
    low, high = found.interval([0.15], new_run=True)
    assert low[0] <= found.predict([0.15])[0] <= high[0]


def test_the_largest_does_not_depend_on_the_order_of_rows():
    """Among runs of equal size the last row chosen; a size that is not known taken for the largest."""
    runs, size, score = np.array([f"r{i}" for i in range(6)]), np.array([1, 1, 2, 2, 4, 4]), logistic(LOSS)
    order = np.arange(6)[::-1]
    forward = predict_largest(LOSS, score, size, runs, resamples=10)
    backward = predict_largest(LOSS[order], score[order], size[order], runs[order], resamples=10)
    assert [one.run for one in forward] == [one.run for one in backward] == ["r5", "r5"]
    with pytest.raises(ConfigError, match="the size of r2 is not finite"):
        predict_largest(LOSS, score, [1, 1, np.nan, 2, 4, 4], runs, resamples=10)


def test_the_largest_is_predicted_from_the_others_alone():
    runs = [f"r{i}" for i in range(6)]
    size = [1, 1, 2, 2, 3, 4]
    honest = predict_largest(LOSS, logistic(LOSS), size, runs, resamples=50)
    score = logistic(LOSS)
    score[-1] = 0.9
    other = predict_largest(LOSS, score, size, runs, resamples=50)
    by_name = {p.link: p for p in honest}
    assert by_name["logistic"].run == "r5" and by_name["logistic"].n == 5
    assert by_name["logistic"].predicted == pytest.approx(logistic(0.187), rel=1e-5)
    for mine, theirs in zip(honest, other, strict=True):  # its own score decides the error alone
        assert theirs.predicted == mine.predicted and theirs.error == pytest.approx(mine.predicted - 0.9)
    assert not {p.link: p for p in other}["logistic"].covered


def test_scatter_that_no_falling_curve_follows_shows_in_the_isotonic_fit():
    wavy = np.array([0.1, 0.3, 0.2, 0.4, 0.3, 0.5])
    found = fit_link(LOSS, wavy, LINKS["logistic"], resamples=20)
    assert found.isotonic_rms == pytest.approx(np.sqrt(4 * 0.05**2 / 6))  # two pooled pairs
    assert found.rms > found.isotonic_rms
    smooth = fit_link(LOSS, logistic(LOSS) ** 3, LINKS["logistic"], resamples=20)
    assert smooth.isotonic_rms == 0 and smooth.rms > 1e-3  # falling, but not logistic


@pytest.mark.parametrize(
    ("loss", "score", "reason"),
    [
        (LOSS[:3], logistic(LOSS[:3]), "3 runs cannot decide 3 parameters"),
        (np.full(5, 0.2), np.linspace(0, 1, 5), "all runs have the same loss"),
        (LOSS, np.full(6, 0.3), "all runs have the same score"),
        (LOSS, LOSS, "the score does not fall with the loss"),
    ],
)
def test_links_refuse(loss, score, reason):
    found = fit_link(loss, score, resamples=10)
    assert reason in found.reason
    with pytest.raises(ConfigError, match="cannot predict"):
        found.predict([0.2])


def test_links_refuse_what_is_no_number():
    with pytest.raises(ConfigError, match="not finite"):
        fit_link([0.1, np.nan, 0.3], [0.1, 0.2, 0.3])
    with pytest.raises(ConfigError, match="2 losses and 3 scores"):
        fit_link([0.1, 0.2], [0.1, 0.2, 0.3])


def test_the_level_that_makes_the_score_comes_first():
    """Score follows the loss at t = 0.5; the other levels are noisier copies of it."""
    rng = np.random.default_rng(0)
    loss = np.linspace(0.4, 0.2, 10)
    score = logistic(loss) + 0.003 * rng.standard_normal(10)
    losses = {0.25: loss + 0.03 * rng.standard_normal(10), 0.5: loss, 0.75: loss + 0.02 * rng.standard_normal(10)}
    found = {level.t: level for level in by_level(losses, score, resamples=400)}
    assert found[0.5].share_first > 0.8
    assert sum(level.share_first for level in found.values()) == pytest.approx(1)
    assert found[0.5].left_out_rms < 0.5 * min(found[0.25].left_out_rms, found[0.75].left_out_rms)
    spearman = {c.name: c.value for c in found[0.5].coefficients}["Spearman"]
    assert spearman < -0.9


def test_levels_that_tie_share_the_place():
    loss = np.linspace(0.4, 0.2, 6)
    found = by_level({0.25: loss, 0.5: loss.copy()}, logistic(loss) + [0, 0.01, 0, 0.01, 0, 0], resamples=50)
    assert [level.share_first for level in found] == [0.5, 0.5]
    with pytest.raises(ConfigError, match="the loss at t=0.5 is not there"):
        by_level({0.5: np.r_[loss[:5], np.nan]}, loss)


def test_left_out_errors_need_enough_runs():
    assert left_out_rms(LOSS[:3], logistic(LOSS[:3])) is None
    assert left_out_rms(LOSS, logistic(LOSS)) < 1e-6


def test_a_branch_is_predicted_from_other_trunks_alone():
    """Catches a trunk's shorter branches that tell of its longest, and a short branch taken for the largest run, since
    steps500 comes after steps2000 in the order of letters."""
    loss, score = np.concatenate([LOSS, [0.3, 0.35]]), np.concatenate([logistic(LOSS), [0.9, 0.95]])
    runs = [*(f"r{i}" for i in range(5)), "big-steps2000", "big-steps500", "big-steps1000"]
    size, flops, trunks = [1, 1, 2, 2, 3, 4, 4, 4], [1, 2, 1, 2, 1, 4, 1, 2], [0, 0, 1, 1, 2, 3, 3, 3]
    found = predict_largest(loss, score, size, runs, flops=flops, trunks=trunks, resamples=50)
    assert {(one.run, one.n) for one in found} == {("big-steps2000", 5)}
    by_name = {one.link: one for one in found}
    assert by_name["logistic"].predicted == pytest.approx(logistic(LOSS[5]), rel=1e-5)
    assert left_out_rms(loss[:6], score[:6], trunks=trunks[:6]) < 1e-4 < left_out_rms(loss, score, trunks=trunks)


def test_branches_of_a_trunk_are_not_independent_runs():
    """Catches intervals as if 18 branches of 6 trunks were 18 runs: their common noise is then taken for none."""
    rng = np.random.default_rng(1)
    trunks = np.repeat(np.arange(6), 3)
    loss = np.repeat(LOSS, 3) * np.tile([1.15, 1.05, 1.0], 6)
    covered, widths = [], []
    for _ in range(50):
        shared = 0.04 * rng.standard_normal(7)
        score = logistic(loss) + shared[trunks] + 0.01 * rng.standard_normal(18)
        new = logistic(0.17) + shared[6] + 0.01 * rng.standard_normal()
        found = [fit_link(loss, score, LINKS["logistic"], trunks=t, resamples=100) for t in (None, trunks)]
        ends = [each.interval([0.17], new_run=True) for each in found]
        covered.append([low[0] <= new <= high[0] for low, high in ends])
        widths.append([(high - low)[0] for low, high in (each.interval([0.17], new_run=False) for each in found)])
    assert np.mean(covered, axis=0)[1] >= 0.88, np.mean(covered, axis=0)
    assert np.divide(*np.mean(widths, axis=0)[::-1]) > 1.3
    assert "6 trunks" in found[1].method and "fewer than 8 trunks" in found[1].method and "trunk" not in found[0].method
    many = fit_link(np.tile(loss, 7), np.tile(score, 7), LINKS["logistic"], trunks=np.arange(126) // 3, resamples=50)
    assert "42 trunks" in many.method and "fewer" not in many.method
