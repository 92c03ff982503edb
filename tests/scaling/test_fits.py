"""Fits recover planted laws, cover them, and refuse what they cannot know."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special

from rfjax.errors import ConfigError
from rfjax.scaling import optimise
from rfjax.scaling.fits import MIN_RUNS_TO_RESAMPLE, fit
from rfjax.scaling.laws import LAWS, PARAMETRIC, POWER, SATURATING

TRUTH = {"E": 0.045, "a": 2.0e3, "b": 0.34}


def frame(loss, **columns):
    return pd.DataFrame({"run": [f"run{i:03d}" for i in range(len(loss))], "loss": loss, **columns})


def planted_loss(flops):
    return TRUTH["E"] + TRUTH["a"] * flops ** -TRUTH["b"]


def planted(n, noise=0.0, rng=None, *, offset=TRUTH["E"], low=1e12, high=2e14):
    """n runs whose loss is offset + a * flops^-b times (1 + noise)."""
    flops = np.geomspace(low, high, n)
    loss = offset + TRUTH["a"] * flops ** -TRUTH["b"]
    if noise:
        loss = loss * np.exp(noise * rng.standard_normal(n))
    return frame(loss, flops=flops)


def random_law(law, rng):
    """(table without noise, true parameters by name) for a law with everything drawn."""
    n = 12 if len(law.terms) == 1 else 30
    ranges = {"flops": (1e12, 1e16), "params": (1e5, 1e8), "images": (1e4, 1e7)}
    columns = {v: np.exp(rng.uniform(*np.log(ranges[v]), n)) for v in law.variables}
    truth, loss = {}, np.zeros(n)
    if law.offset:
        truth["E"] = rng.uniform(0.02, 0.1)
        loss += truth["E"]
    for term in law.terms:
        x = columns[term.variable]
        exponent, level = rng.uniform(0.15, 0.6), rng.uniform(0.05, 0.3)
        truth[term.exponent] = exponent
        truth[term.coefficient] = level * np.exp(np.log(x).mean()) ** exponent
        loss += truth[term.coefficient] * x**-exponent
    return frame(loss, **columns), truth


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_noise_free_laws_come_back(law):
    # Would fail for a wrong derivative, a start grid that misses, or centring not undone.
    for seed in range(20):
        table, truth = random_law(law, np.random.default_rng(seed))
        found = fit(table, law, resamples=4)
        assert found.identifiable, found.reason
        assert found.converged and found.objective < 1e-20
        for name, value in truth.items():
            assert found.estimates[name].value == pytest.approx(value, rel=1e-6), (seed, name)


def test_no_other_optimiser_goes_lower():
    # The objective written again from scipy's own pieces, minimised by scipy from our optimum and
    # from elsewhere: a wrong Huber loss, or a minimum that is none, would show.
    rng = np.random.default_rng(3)
    table, _ = random_law(PARAMETRIC, rng)
    table["loss"] *= np.exp(0.01 * rng.standard_t(3, len(table)))
    found = fit(table, PARAMETRIC, resamples=4)
    x, y = np.log(table[["params", "images"]].to_numpy()), np.log(table["loss"].to_numpy())

    def objective(theta):
        log_e, log_a, alpha, log_b, beta = theta
        logs = np.stack([np.full(len(y), log_e), log_a - alpha * x[:, 0], log_b - beta * x[:, 1]])
        return special.huber(1e-3, special.logsumexp(logs, axis=0) - y).sum()

    e, *rest = found.parameters
    ours = np.array([np.log(e), *rest])
    assert objective(ours) == pytest.approx(found.objective, rel=1e-9)
    for start in (ours, ours + 0.3 * rng.standard_normal(5)):
        options = {"xatol": 1e-10, "fatol": 1e-16, "maxiter": 20_000, "maxfev": 20_000}
        theirs = optimize.minimize(objective, start, method="Nelder-Mead", options=options)
        assert theirs.fun > found.objective * (1 - 1e-6)


def test_units_of_compute_change_nothing_but_the_coefficient():
    table = planted(7, 0.01, np.random.default_rng(0))
    petaflops = table.assign(flops=table["flops"] / 1e15)
    here, there = (fit(t, SATURATING, resamples=200) for t in (table, petaflops))
    for name in ("E", "b"):
        for end in ("value", "low", "high"):
            assert getattr(there.estimates[name], end) == pytest.approx(
                getattr(here.estimates[name], end), rel=1e-6
            )
    assert np.log(there.estimates["a"].value) == pytest.approx(
        np.log(here.estimates["a"].value) - here.estimates["b"].value * np.log(1e15), abs=1e-6
    )
    x = np.array([3e14, 1e16])
    np.testing.assert_allclose(there.predict({"flops": x / 1e15}), here.predict({"flops": x}), rtol=1e-8)
    for new_run in (False, True):
        a, b = here.interval({"flops": x}, new_run=new_run), there.interval({"flops": x / 1e15}, new_run=new_run)
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_order_of_rows_changes_nothing():
    table = planted(9, 0.01, np.random.default_rng(0))
    here, there = fit(table, resamples=50), fit(table.iloc[::-1], resamples=50)
    assert here.to_json() == there.to_json()
    np.testing.assert_array_equal(here.draws, there.draws)


def test_one_wild_run_does_not_bend_the_law():
    table = planted(20)
    table.loc[11, "loss"] *= 1.5
    robust, squares = fit(table, resamples=4), fit(table, delta=np.inf, resamples=4)
    assert robust.estimates["b"].value == pytest.approx(TRUTH["b"], rel=0.01)
    assert abs(squares.estimates["b"].value - TRUTH["b"]) > 5 * abs(robust.estimates["b"].value - TRUTH["b"])


@pytest.mark.parametrize(
    ("table", "law", "words"),
    [
        (planted(3), SATURATING, "3 runs cannot decide 3 parameters; at least 4"),
        (planted(2), POWER, "2 runs cannot decide 2 parameters"),
        (planted(6).assign(flops=1e12), SATURATING, "flops takes 1 distinct value;"),
        (planted(6).assign(flops=[1e12] * 3 + [1e13] * 3), SATURATING, "flops takes 2 distinct values"),
        (planted(8).assign(params=np.geomspace(1e5, 1e7, 8), images=1e5), PARAMETRIC, "images takes 1 distinct"),
        (planted(8).assign(loss=0.1), SATURATING, "the loss is the same for every run"),
        (planted(8).assign(loss=np.linspace(0.1, 0.2, 8)), POWER, "does not fall with flops"),
    ],
)
def test_under_identified_fits_refuse(table, law, words):
    found = fit(table, law, resamples=20)
    assert not found.identifiable and words in found.reason
    assert found.estimates is None
    with pytest.raises(ConfigError, match="cannot predict"):
        found.predict({v: [1e14] for v in law.variables})


def test_pure_power_law_reaches_an_offset_of_zero():
    low_at_zero = []
    for seed in range(5):
        found = fit(planted(7, 0.01, np.random.default_rng(seed), offset=0.0), resamples=200)
        low_at_zero.append(found.estimates["E"].low < 1e-9)
        if found.estimates["E"].value == 0:
            assert any("E is at its bound 0" in w for w in found.warnings)
    assert all(low_at_zero)


def test_intervals_cover():
    # Studies of five runs, where n - k is 2 and a bootstrap with a fixed noise scale (normal
    # instead of t) covers four times in five.
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(40):
        table = planted(6, 0.004, rng)
        held = table.iloc[-1]
        found = fit(table.iloc[:-1], resamples=150)
        low, high = found.interval({"flops": [held["flops"]]}, new_run=True)
        e, b = found.estimates["E"], found.estimates["b"]
        covered.append(
            [e.low <= TRUTH["E"] <= e.high, b.low <= TRUTH["b"] <= b.high, low[0] <= held["loss"] <= high[0]]
        )
    assert np.sum(covered) >= 106 and (np.sum(covered, axis=0) >= 34).all(), np.sum(covered, axis=0)


def test_a_new_run_is_less_certain_than_the_law():
    found = fit(planted(7, 0.01, np.random.default_rng(1)), resamples=300)
    x = {"flops": np.geomspace(1e12, 1e15, 5)}
    low, high = found.interval(x, new_run=False)
    new_low, new_high = found.interval(x, new_run=True)
    assert (new_high - new_low > high - low).all()
    assert ((low < found.predict(x)) & (found.predict(x) < high)).all()


def test_resampling_weights_are_repeated_runs():
    # A bootstrap that ignored its weights, or used the wrong rows, would give the unweighted fit.
    table = planted(8, 0.02, np.random.default_rng(2))
    counts = np.array([2, 0, 1, 1, 2, 0, 1, 1])
    x, y = np.log(table[["flops"]].to_numpy()), np.log(table["loss"].to_numpy())
    start = optimise.starts(SATURATING, x - x.mean(), y)
    weighted = optimise.minimise(
        SATURATING,
        start,
        (x - x.mean())[None],
        y[None],
        1e-3,
        weights=np.tile(counts.astype(float), (len(start), 1)),
    )
    rows = np.repeat(np.arange(8), counts)
    repeated = optimise.minimise(SATURATING, start, (x - x.mean())[rows][None], y[rows][None], 1e-3)
    assert weighted.objective.min() == pytest.approx(repeated.objective.min(), rel=1e-9)
    plain = optimise.minimise(SATURATING, start, (x - x.mean())[None], y[None], 1e-3)
    assert abs(weighted.objective.min() / plain.objective.min() - 1) > 0.01


@pytest.mark.parametrize(
    ("n", "words"), [(MIN_RUNS_TO_RESAMPLE, "bootstrap over runs"), (7, "parametric bootstrap")]
)
def test_the_method_of_the_intervals_is_recorded(n, words):
    found = fit(planted(n, 0.01, np.random.default_rng(0)), resamples=50)
    assert found.method.startswith(words)
    assert (found.estimates["b"].stderr is None) == (n < MIN_RUNS_TO_RESAMPLE)
    assert found.to_json()["interval_method"] == found.method


def test_replicated_seeds_never_leave_an_undecidable_resample(monkeypatch):
    # Eight runs at three computes: most resamples would lose one of the computes, and with it E.
    flops = np.repeat([1e12, 1e13, 1e14], [6, 1, 1])
    loss = planted_loss(flops) * np.exp(0.002 * np.random.default_rng(0).standard_normal(8))
    seen, minimise = [], optimise.minimise
    monkeypatch.setattr(optimise, "minimise", lambda *a, **k: seen.append(k.get("weights")) or minimise(*a, **k))
    assert fit(frame(loss, flops=flops), resamples=100).identifiable
    counts = seen[-1]
    assert counts.shape == (100, 8) and (counts.sum(axis=1) == 8).all()
    assert (counts[:, 6:] > 0).all() and (counts[:, :6].sum(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="flops"), "needs the column 'flops'; the table has run, loss"),
        (lambda t: t.assign(loss=t["loss"].where(t.index != 2, -0.1)), "loss of run 'run002' is -0.1"),
        (lambda t: t.assign(flops=t["flops"].where(t.index != 4)), "flops of run 'run004' is nan"),
        (lambda t: t.assign(run="same"), "run 'same' occurs more than once"),
    ],
)
def test_bad_tables_are_refused_by_name(change, words):
    with pytest.raises(ConfigError) as error:
        fit(change(planted(6)))
    assert words in str(error.value)
