"""What a design is judged by, and what it chooses."""

import numpy as np
import pytest

from rfjax.errors import ConfigError
from rfjax.evaluation.intervals import STANDARD_ERRORS
from rfjax.laws.budgets import Cost, optimum
from rfjax.laws.design import (
    Information,
    Known,
    Problem,
    Rules,
    Trunk,
    best_log_grid,
    design,
    next_trunks,
    runs_of_lengths,
)
from rfjax.laws.laws import PARAMETRIC

LAW = np.array([0.05, np.log(60.0), 0.3, np.log(900.0), 0.6])
SIZES, STEPS, BATCH, SHARE = np.geomspace(1e5, 1e7, 7), np.array([250, 500, 1000, 2000, 4000]), 32, 0.2
BUDGET = 12 * 6 * 1e6 * BATCH * 4000


def candidates():
    found = []
    for size, params in enumerate(SIZES):
        for branches in runs_of_lengths(STEPS.tolist()):
            lengths = np.array(branches)
            decays = np.round(SHARE * lengths)
            flops = 6 * params * BATCH * ((lengths - decays).max() + decays.sum())
            images = tuple(lengths * float(BATCH))
            found.append(Trunk(size=size, params=float(params), images=images, flops=float(flops)))
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
    with_prior = 1 / (1 / variance + 1)  # of deviation 1
    assert found.half_width == pytest.approx(STANDARD_ERRORS * with_prior**0.5, rel=1e-4)
    assert found.flops == pytest.approx(sum(trunk.flops for trunk in trunks))


def test_a_design_keeps_its_limits_and_beats_the_best_grid():
    """Catches a search that stops early: greedy choice alone is no better than the grid."""
    information = Information(problem(draws=6), candidates())
    found = design(information, Rules(budget=BUDGET))
    of_size = [trunk.size for trunk in found.trunks]
    assert found.flops <= BUDGET and len(of_size) >= 7 and max(map(of_size.count, of_size)) == 2
    grid, said = best_log_grid(information, Rules(budget=BUDGET))
    assert grid.flops <= BUDGET and "sizes (every" in said
    assert found.half_width < 0.85 * grid.half_width
    again = design(information, Rules(budget=BUDGET))
    assert again == found  # the same command gives the same design


def known_trunks(sizes, lengths=4):
    images = tuple(STEPS[:lengths] * float(BATCH))
    return tuple(Known(size=size, params=SIZES[size], images=images) for size in sizes)


def test_what_is_known_counts_and_the_next_trunk_is_the_best():
    """Catches a design of what was trained already: known trunks take up the seeds of their size, count to the least
    number of trunks, and a size on two known seeds needs no third."""
    beside, alone = (
        Information(problem(known=known_trunks(some)), candidates()) for some in ((0, 0, 1, 2, 3, 4, 5), ())
    )
    rules = Rules(budget=BUDGET / 20)
    found = design(beside, rules)
    assert found.half_width < design(alone, rules).half_width
    of_size = [trunk.size for trunk in found.trunks]
    assert 0 not in of_size and all(of_size.count(size) < 2 for size in (1, 2, 3, 4, 5)) and len(of_size) < 7
    (first, half), *_ = next_trunks(beside, rules)
    able = [place for place, trunk in enumerate(beside.candidates) if trunk.flops <= rules.budget and trunk.size > 0]
    assert half == pytest.approx(min(beside.chosen([place]).half_width for place in able))
    assert first.flops <= rules.budget and first.size > 0


def test_every_design_keeps_its_rules():
    """Catches a search that ends with fewer trunks than promised, spends more, or takes a third seed; and one that
    begins where no rule can be met."""
    for share in (1, 5, 20, 60):
        for most_seeds in (2, 3):
            rules = Rules(budget=BUDGET / share, most_seeds=most_seeds)
            information = Information(problem(), candidates())
            found = design(information, rules)
            of_size = [trunk.size for trunk in found.trunks]
            counts = [of_size.count(size) for size in set(of_size)]
            images = {images for trunk in found.trunks for images in trunk.images}
            assert len(of_size) >= 7 and 2 <= max(counts) <= most_seeds and found.flops <= rules.budget
            assert len(set(of_size)) >= 3 and len(images) >= 3
            grid, _ = best_log_grid(information, rules)
            assert grid is None or (grid.flops <= rules.budget and found.half_width <= grid.half_width)


@pytest.mark.parametrize("budget", [1e6, 5e10])
def test_a_budget_without_a_place_for_the_trunks_is_refused(budget):
    with pytest.raises(ConfigError, match="no place for 7 trunks of at most 2 seeds a size"):
        design(Information(problem(), candidates()), Rules(budget=budget))


@pytest.mark.parametrize(("few_sizes", "few_lengths"), [(2, 5), (7, 2)])
def test_a_design_that_decides_no_law_is_refused(few_sizes, few_lengths):
    """Catches an answer that is the ridge's: two sizes or two lengths leave a parameter free."""
    images = set(STEPS[:few_lengths] * float(BATCH))
    some = [each for each in candidates() if each.size < few_sizes and set(each.images) <= images]
    information, rules = Information(problem(), some), Rules(budget=BUDGET, most_seeds=4)
    with pytest.raises(ConfigError, match="decides no law"):
        design(information, rules)
    assert best_log_grid(information, rules) == (None, "") and next_trunks(information, rules) == []
