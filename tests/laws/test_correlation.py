"""Correlations with exact p-values for a handful of runs."""

import numpy as np
import pytest
from scipy import stats

from rfjax.errors import ConfigError
from rfjax.laws import correlation
from rfjax.laws.correlation import correlate, permutation_orders, permutation_p, redraw_prompts


def by_name(found):
    return {c.name: c for c in found.coefficients}


def test_four_runs_in_perfect_order_cannot_be_significant():
    found = by_name(correlate([0.16, 0.11, 0.09, 0.08], [0.1, 0.2, 0.3, 0.4]))
    for name in ("Spearman", "Kendall"):
        assert found[name].value == -1
        assert found[name].p == pytest.approx(2 / 24)  # not the 0.0 of a normal approximation


@pytest.mark.parametrize("ties", [False, True])
def test_values_and_exact_p_agree_with_scipy(ties):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=6), rng.uniform(size=6)
    y[:3] += 0.5 * np.argsort(np.argsort(x[:3]))
    y = np.clip(y, 0, 1)
    if ties:
        y[1], x[4] = y[2], x[5]
    found = by_name(correlate(x, y))
    references = {
        "Pearson": lambda v: stats.pearsonr(x, v)[0],
        "Pearson of arcsine √score": lambda v: stats.pearsonr(x, np.arcsin(np.sqrt(v)))[0],
        "Spearman": lambda v: stats.spearmanr(x, v)[0],
        "Kendall": lambda v: stats.kendalltau(x, v)[0],
    }
    for name, statistic in references.items():
        assert found[name].value == pytest.approx(statistic(y), abs=1e-12)
        extreme = stats.permutation_test(
            (y,), statistic, permutation_type="pairings", n_resamples=np.inf
        ).null_distribution
        p = np.mean(np.abs(extreme) >= abs(statistic(y)) - 1e-10)
        assert found[name].p == pytest.approx(p, abs=1e-12)


def test_many_runs_get_random_orders_and_never_p_zero():
    x = np.arange(12.0)
    found = correlate(x, 1 - x / 12)
    assert found.p_method == "two-sided, 20,000 random orders"
    assert by_name(found)["Spearman"].p == pytest.approx(1 / (correlation.PERMUTATIONS + 1))


def test_intervals_hold_the_value_and_narrow_with_runs():
    rng = np.random.default_rng(0)
    widths = []
    for n in (6, 40):
        x = rng.normal(size=n)
        c = by_name(correlate(x, np.clip(0.5 - 0.2 * x + 0.1 * rng.normal(size=n), 0, 1)))["Pearson"]
        assert c.low <= c.value <= c.high
        widths.append(c.high - c.low)
    assert widths[1] < widths[0] / 1.5


def test_prompts_are_redrawn_with_their_images_together():
    # Forty prompts a task whose four images agree: the spread is that of 40 coins, not of 160.
    rng = np.random.default_rng(1)
    right = 4.0 * rng.integers(0, 2, (3, 80))
    scores = redraw_prompts(["a"] * 40 + ["b"] * 40, right, np.full((3, 80), 4.0), resamples=4000, seed=0)
    assert set(scores) == {"a", "b", "overall"}
    np.testing.assert_allclose(scores["overall"], (scores["a"] + scores["b"]) / 2)
    share = right[0, :40].mean() / 4
    assert scores["a"][:, 0].mean() == pytest.approx(share, abs=0.01)
    assert scores["a"][:, 0].std() == pytest.approx((share * (1 - share) / 40) ** 0.5, rel=0.05)


def test_prompts_are_redrawn_once_for_all_runs():
    right = np.tile(np.random.default_rng(2).integers(0, 5, 50).astype(float), (2, 1))
    scores = redraw_prompts(["a"] * 50, right, np.full((2, 50), 4.0), resamples=100)
    np.testing.assert_array_equal(scores["overall"][:, 0], scores["overall"][:, 1])


def test_uncertain_scores_widen_the_interval():
    loss, score = np.linspace(0.2, 0.1, 8), np.linspace(0.1, 0.4, 8)
    noisy = np.clip(score + 0.15 * np.random.default_rng(3).standard_normal((2000, 8)), 0, 1)
    alone, both = correlate(loss, score), correlate(loss, score, redrawn=noisy)
    assert by_name(both)["Pearson"].high > by_name(alone)["Pearson"].high + 0.1
    assert both.interval_method.startswith("two-level bootstrap over 8 runs")
    assert alone.interval_method.startswith("bootstrap over 8 runs")


@pytest.mark.parametrize(
    ("loss", "score", "reason"),
    [
        ([0.1, 0.2], [0.3, 0.2], "2 runs with both"),
        ([0.1, 0.1, 0.1], [0.3, 0.2, 0.1], "all runs have the same loss"),
        ([0.1, 0.2, 0.3], [0.0, 0.0, 0.0], "all runs have the same score"),
    ],
)
def test_nothing_to_correlate_is_said(loss, score, reason):
    found = correlate(loss, score)
    assert found.coefficients == () and found.reason.startswith(reason)


def test_three_runs_have_a_p_but_no_interval():
    found = correlate([0.3, 0.2, 0.1], [0.1, 0.2, 0.3])
    assert by_name(found)["Spearman"].low is None and "too few" in found.interval_method


def test_scores_that_redraw_to_nothing_have_no_interval():
    found = correlate([0.3, 0.2, 0.1, 0.05], [0.0, 0.0, 0.0, 0.1], redrawn=np.zeros((2000, 4)))
    assert all(c.low is None and c.high is None for c in found.coefficients)


@pytest.mark.parametrize(("loss", "score"), [([1.0, 2.0], [0.1]), ([1.0, 2.0, np.nan], [0.1, 0.2, 0.3])])
def test_bad_input_is_refused(loss, score):
    with pytest.raises(ConfigError):
        correlate(loss, score)


def test_a_p_from_all_orders_is_exact_and_one_from_a_sample_counts_the_order_seen():
    """Four in perfect order are as extreme as 2 of 24; a sample of orders would give any number near it."""
    rng = np.random.default_rng(0)
    orders, _ = permutation_orders(4, rng)
    ranks = np.arange(4.0) - 1.5
    assert permutation_p(1.0, ranks[orders] @ ranks / (ranks @ ranks), 4) == pytest.approx(2 / 24, abs=1e-15)
    orders, _ = permutation_orders(12, rng)
    assert permutation_p(1.0, np.zeros(len(orders)), 12) == 1 / (len(orders) + 1)
