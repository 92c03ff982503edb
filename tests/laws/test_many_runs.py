"""More than a hundred runs: formulas and folds agree with permutations, refits and each run left out, and say so."""

import numpy as np
import pytest
from scipy import stats

from rfjax.laws import fitting, held_out, score_links
from rfjax.laws.correlation import correlate
from rfjax.laws.laws import PARAMETRIC, SATURATING
from rfjax.laws.noise_levels import by_level
from rfjax.laws.score_links import LINKS, fit_link, left_out_rms
from rfjax.results.many_runs import FOLDS, MANY_RUNS, are_many, folds_of


def scored(n, seed=0, noise=0.03):
    rng = np.random.default_rng(seed)
    loss = rng.uniform(0.1, 0.3, n)
    return loss, np.clip(1 / (1 + np.exp((loss - 0.2) / 0.03)) + noise * rng.standard_normal(n), 0, 1)


def table(n, seed=0):
    rng = np.random.default_rng(seed)
    params, images = 10 ** rng.uniform(6, 8, n), 10 ** rng.uniform(5, 7, n)
    loss = (0.3 + 60 * params**-0.4 + 30 * images**-0.35) * np.exp(0.01 * rng.standard_normal(n))
    columns = {"run": [f"r{i:04d}" for i in range(n)], "params": params, "images": images}
    return fitting.pd.DataFrame(columns | {"flops": 6 * params * images, "loss": loss})


@pytest.fixture
def few(monkeypatch):
    """Turns the rule off: `few()` makes any number of runs few."""

    def turn_off():
        for module in (held_out, score_links):
            monkeypatch.setattr(module, "are_many", lambda runs: False)

    return turn_off


def test_a_hundred_runs_are_few_and_one_more_are_many():
    """Numbers of up to 100 runs must stay what they were."""
    assert not are_many(MANY_RUNS) and are_many(MANY_RUNS + 1)
    for n, said in ((100, "20,000 random orders"), (101, "by the limits for more than 100 runs")):
        assert said in correlate(*scored(n), resamples=100).p_method


def test_p_values_of_many_runs_are_scipys():
    """n in place of n - 2 degrees of freedom, or a one-sided p."""
    loss, score = scored(140, noise=0.9)
    score = np.random.default_rng(1).permutation(score) - 0.3 * loss
    found = {c.name: c.p for c in correlate(loss, score, resamples=100).coefficients}
    assert found["Pearson"] == pytest.approx(stats.pearsonr(loss, score).pvalue, rel=1e-9)
    assert found["Spearman"] == pytest.approx(stats.spearmanr(loss, score).pvalue, rel=1e-9)
    assert found["Kendall"] == pytest.approx(stats.kendalltau(loss, score, method="asymptotic").pvalue, rel=1e-9)


def test_a_perfect_correlation_of_many_runs_has_a_p_of_0_and_no_warning():
    """1 - r^2 is 0, or below it by rounding."""
    x = np.arange(120.0)
    assert {c.p < 1e-30 for c in correlate(x, 3 - 2 * x, resamples=100).coefficients} == {True}


def test_folds_are_even_and_keep_a_trunk_together():
    """A trunk's branches in two folds would predict each other."""
    sizes = np.bincount(folds_of(np.arange(333)))
    assert len(sizes) == FOLDS and sizes.max() - sizes.min() <= 1
    trunks = np.repeat(np.arange(70), 3)
    folds = folds_of(trunks)
    assert all(len(set(folds[trunks == trunk])) == 1 for trunk in range(70))
    assert len(np.unique(folds_of(np.repeat(np.arange(8), 20)))) == 8


def test_left_out_in_folds_is_close_to_each_left_out(few):
    """A run's error came from the refit of another fold, which had seen it."""
    rows = table(110)
    found = fitting.fit(rows, PARAMETRIC, resamples=100).left_out
    assert found.folds == FOLDS and found.to_json()["folds"] == FOLDS and found.reason == ""
    few()
    alone = fitting.fit(rows, PARAMETRIC, resamples=100).left_out
    assert alone.folds is None and "folds" not in alone.to_json()
    np.testing.assert_allclose(found.relative_errors, alone.relative_errors, atol=2.5e-3)
    assert found.rms == pytest.approx(alone.rms, rel=0.02)


def test_a_fold_that_cannot_be_predicted_is_named_with_its_own_reason():
    """The reason was looked up by the run's place among the runs, where refits are by fold."""
    rows = table(101)
    rows["flops"] = np.where(np.arange(101) == 57, 1e9, 1e10)  # two values; without run 57 a single one
    found = held_out.leave_one_out(
        SATURATING,
        fitting.HUBER,
        rows["run"].tolist(),
        np.log(rows[["flops"]].to_numpy()),
        np.log(rows["loss"].to_numpy()),
        np.array([0.1, 0.0, 0.3]),
    )
    assert found.reason.startswith("101 of 101 runs cannot be predicted from the others (without r0000: flops takes")


@pytest.mark.parametrize("name", list(LINKS))
def test_a_links_interval_along_its_tangent_is_close_to_that_of_refits(name, few):
    """A covariance without the inverse, or with the noise of the mean instead of its draws."""
    loss, score = scored(101)
    if name == "exponential":
        score = np.clip(0.9 - 0.02 * np.exp(12 * loss) + 0.02 * np.random.default_rng(2).standard_normal(101), 0, 1)
    ends = {}
    for kind in ("tangent", "refits"):
        if kind == "refits":
            few()
        fitted = fit_link(loss, score, LINKS[name], resamples=2000)
        both = [np.subtract(*fitted.interval([0.12, 0.2, 0.28], new_run=new)[::-1]) for new in (False, True)]
        ends[kind] = np.concatenate(both)
    np.testing.assert_allclose(ends["tangent"], ends["refits"], rtol=0.12)


def test_the_search_in_groups_finds_the_same_link(few):
    """Groups of unlike losses, or losses out of order, would start the fit in another minimum."""
    loss, score = scored(130)
    many = {name: fit_link(loss, score, link, resamples=2) for name, link in LINKS.items()}
    few()
    for name, link in LINKS.items():
        assert many[name].rms == pytest.approx(fit_link(loss, score, link, resamples=2).rms, rel=1e-6)


def test_a_straight_line_has_a_narrow_interval_by_the_exponential_too():
    """Along a line the exponential's three parameters are one too many: their own draws then run away."""
    loss = np.random.default_rng(0).uniform(0.1, 0.3, 400)
    score = np.clip(0.9 - 2 * loss + 0.02 * np.random.default_rng(1).standard_normal(400), 0, 1)
    low, high = fit_link(loss, score, LINKS["exponential"], resamples=500).interval([0.15, 0.25], new_run=False)
    assert (high - low < 0.02).all() and (low < 0.9 - 2 * np.array([0.15, 0.25])).all()


def test_scores_left_out_in_folds_are_close_to_each_left_out(few):
    """Folds of the wrong runs: a score predicted with itself among the fitted has too small an error."""
    loss, score = scored(104)
    levels = by_level({0.5: loss}, score, resamples=100)
    assert levels[0].folds == FOLDS and levels[0].to_json()["folds"] == FOLDS
    few()
    assert levels[0].left_out_rms == pytest.approx(left_out_rms(loss, score), rel=0.01)
    assert "folds" not in by_level({0.5: loss[:30]}, score[:30], resamples=100)[0].to_json()
