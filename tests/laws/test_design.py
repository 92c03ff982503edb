"""What a design is judged by, and what it chooses."""

import numpy as np
import pytest

from rfjax.errors import ConfigError
from rfjax.laws.budgets import Cost, optimum
from rfjax.laws.design import HALF_WIDTH, Information, Problem, Trunk, best_log_grid, design, next_trunks
from rfjax.laws.laws import PARAMETRIC

LAW = np.array([0.05, np.log(60.0), 0.3, np.log(900.0), 0.6])
SIZES, STEPS, BATCH, SHARE = np.geomspace(1e5, 1e7, 7), np.array([250, 500, 1000, 2000, 4000]), 32, 0.2
BUDGET = 12 * 6 * 1e6 * BATCH * 4000


def candidates():
    found = []
    for size, params in enumerate(SIZES):
        for last in range(len(STEPS)):
            for first in range(max(0, last - 3), last + 1):
                lengths = STEPS[first : last + 1]
                decays = np.round(SHARE * lengths)
                flops = 6 * params * BATCH * ((lengths - decays).max() + decays.sum())
                found.append(Trunk(size=size, params=params, images=tuple(lengths * float(BATCH)), flops=float(flops)))
    return found


def problem(draws=1, known=(), **changes):
    """Draws with doubt about the exponents, each term the same amid the sizes and lengths."""
    rng, rows = np.random.default_rng(0), np.tile(LAW, (draws, 1))
    for row in rows[1:]:
        for place, centre in ((2, np.log(1e6)), (4, np.log(3e4))):
            exponent = row[place] * np.exp(0.2 * rng.standard_normal())
            row[place - 1] += (exponent - row[place]) * centre
            row[place] = exponent
    settings = {"between": 0.01, "within": 0.005, "target": 10 * BUDGET, "cost": Cost()} | changes
    return Problem(draws=rows, known=known, **settings)


def test_the_variance_is_that_of_generalised_least_squares():
    """Against one covariance matrix of all runs at once. Catches noise between trunks that branches do not share."""
    trunks = [candidates()[place] for place in (3, 9, 33, 40, 55, 60, 60)]
    found = Information(problem(), candidates()).chosen([3, 9, 33, 40, 55, 60, 60])
    runs = [(number, trunk.params, images) for number, trunk in enumerate(trunks) for images in trunk.images]
    number, params, images = (np.array(column, float) for column in zip(*runs, strict=True))
    noise = 0.01**2 * (number[:, None] == number) + 0.005**2 * np.eye(len(runs))
    jacobian = PARAMETRIC.jacobian(LAW, np.log(np.stack([params, images], axis=1)))
    best = np.log([np.ravel(optimum(LAW[None], 10 * BUDGET, Cost()))])
    goal = PARAMETRIC.jacobian(LAW, best)[0]
    variance = goal @ np.linalg.solve(jacobian.T @ np.linalg.solve(noise, jacobian), goal)
    assert found.half_width == pytest.approx(HALF_WIDTH * variance**0.5, rel=1e-4)
    assert found.flops == pytest.approx(sum(trunk.flops for trunk in trunks))


def test_a_design_keeps_its_limits_and_beats_the_best_grid():
    """Catches a search that stops early: greedy choice alone is no better than the grid."""
    information = Information(problem(draws=6), candidates())
    found = design(information, BUDGET)
    of_size = [trunk.size for trunk in found.trunks]
    assert found.flops <= BUDGET and len(of_size) >= 7 and max(map(of_size.count, of_size)) == 2
    grid, said = best_log_grid(information, BUDGET)
    assert grid.flops <= BUDGET and "sizes x" in said
    assert found.half_width < 0.85 * grid.half_width
    again = design(information, BUDGET)
    assert again == found  # the same command gives the same design


def test_what_is_known_counts_and_the_next_trunk_is_the_best():
    known = tuple((np.full(4, params), np.array([8e3, 16e3, 32e3, 64e3])) for params in SIZES[:5])
    alone, beside = (Information(problem(known=some), candidates()) for some in ((), known))
    assert design(beside, BUDGET).half_width < design(alone, BUDGET).half_width
    (first, half), *_ = next_trunks(beside, BUDGET / 4)
    widths = [beside.chosen([place]).half_width for place in np.flatnonzero(beside.flops <= BUDGET / 4).tolist()]
    assert half == pytest.approx(min(widths)) and first.flops <= BUDGET / 4


@pytest.mark.parametrize("budget", [1e6, 5e10])
def test_a_budget_without_a_place_for_the_trunks_is_refused(budget):
    with pytest.raises(ConfigError, match="no place for 7 trunks of at most 2 seeds a size"):
        design(Information(problem(), candidates()), budget)
