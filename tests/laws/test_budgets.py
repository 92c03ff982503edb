"""Compute-optimal allocation against numerical minimisation, and what fixed steps cost."""

import numpy as np
import pytest
from scipy import optimize

from helpers.planted_tables import HOFFMANN, parametric_study
from rfjax.errors import ConfigError
from rfjax.laws.budgets import Cost, allocate, measure_cost, optimum
from rfjax.laws.fitting import fit
from rfjax.laws.laws import PARAMETRIC
from rfjax.report.fit_facts import allocation_fact


@pytest.mark.parametrize("cost", [Cost(), Cost(kappa=0.7, eta=0.85)])
@pytest.mark.parametrize("budget", [1e18, 5.76e23])
def test_the_optimum_is_where_a_search_finds_it(budget, cost):
    """Catches a swapped A and B, a forgotten eta, or 6 C for C / 6."""

    def loss(log_n):
        log_d = np.log(budget / cost.kappa) - cost.eta * log_n
        e, log_a, alpha, log_b, beta = HOFFMANN
        return e + np.exp(log_a - alpha * log_n) + np.exp(log_b - beta * log_d)

    found = optimize.minimize_scalar(loss, bounds=(5, 60), method="bounded", options={"xatol": 1e-10})
    n, d = optimum(HOFFMANN, budget, cost)
    assert np.log(n) == pytest.approx(found.x, abs=1e-5)
    assert cost.kappa * n**cost.eta * d == pytest.approx(budget, rel=1e-12)


def test_a_study_is_allocated_with_intervals_that_hold_the_planted_optimum():
    table = parametric_study(noise=0.003)
    cost = measure_cost(table)
    assert (cost.kappa, cost.eta, cost.worst) == pytest.approx((3.0, 0.9, 0.0), abs=1e-9)
    truth = np.array([0.4, np.log(60), 0.3, np.log(90), 0.25])
    found = allocate(fit(table, PARAMETRIC, resamples=400, held_out=False), 3e19, cost, fixed_images=1e8)
    n, d = optimum(truth, 3e19, cost)
    for estimate, value in (
        (found.optimal.params, n),
        (found.optimal.images, d),
        (found.exponent, 0.25 / (0.3 + 0.9 * 0.25)),
    ):
        assert estimate.low < value < estimate.high
        assert estimate.low < estimate.value < estimate.high
    # The fixed design: all of the budget into the size, and a loss that is no better.
    assert 3.0 * found.fixed.params.value**0.9 * 1e8 == pytest.approx(3e19, rel=1e-9)
    assert found.excess_loss.value == pytest.approx(found.fixed.loss.value / found.optimal.loss.value - 1)
    assert found.excess_loss.low > 0
    far = allocate(fit(table, PARAMETRIC, resamples=50, held_out=False), 1e24, cost)
    assert "params" in far.warnings[0] and "times beyond the runs (1e+07 to 1e+09)" in far.warnings[0]


def test_what_lies_beyond_the_runs_is_said_and_by_what_factor():
    """A fixed-steps design puts the whole budget into the size, and leaves the runs long before the optimum does."""
    fitted = fit(parametric_study(noise=0.003), PARAMETRIC, resamples=50, held_out=False)
    largest = 3.0 * 1e9**0.9 * 1e10
    found = allocate(fitted, 25 * largest, Cost(kappa=3.0, eta=0.9), fixed_images=1e10)
    assert found.beyond["budget"] == pytest.approx(25) and found.beyond["fixed_params"] == pytest.approx(
        25 ** (1 / 0.9)
    )
    assert found.beyond["fixed_images"] == pytest.approx(1)
    assert any(line.startswith("fixed steps: params 3.57e+10 is 35.7 times beyond the runs") for line in found.warnings)
    first, second, *_ = allocation_fact(found.to_json())
    assert first.endswith("; 25 times the FLOPs of the largest run") and second.endswith(
        "; 35.7 times the largest size"
    )
    assert Cost(kappa=3.0, eta=0.9).params(1e308, 1.0) == np.inf  # absurd, and no traceback
    within = allocation_fact(allocate(fitted, largest / 2, Cost(kappa=3.0, eta=0.9), fixed_images=1e10).to_json())
    assert not any("times" in line for line in within)


def test_noise_free_runs_give_the_closed_form():
    table = parametric_study()
    found = allocate(fit(table, PARAMETRIC, resamples=50, held_out=False), 1e18, measure_cost(table))
    n, _ = optimum(np.array([0.4, np.log(60), 0.3, np.log(90), 0.25]), 1e18, Cost(kappa=3.0, eta=0.9))
    assert found.optimal.params.value == pytest.approx(n, rel=1e-5)
    assert found.warnings == ()


def test_what_cannot_be_allocated_is_refused():
    table = parametric_study()
    refused = fit(table.head(5), PARAMETRIC, resamples=20)
    with pytest.raises(ConfigError, match="cannot divide a budget"):
        allocate(refused, 1e18, Cost())
    with pytest.raises(ConfigError, match="not the saturating law"):
        allocate(fit(table, resamples=20, held_out=False), 1e18, Cost())
    with pytest.raises(ConfigError, match="the budget is -1"):
        allocate(fit(table, PARAMETRIC, resamples=20, held_out=False), -1.0, Cost())
    with pytest.raises(ConfigError, match="needs the column 'images'"):
        measure_cost(table.drop(columns="images"))
