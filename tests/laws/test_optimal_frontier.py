"""The compute-optimal frontier of the parametric law: closed form against a search, its intervals, its refusals."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize

from helpers.planted_tables import parametric_study
from rfjax.laws.budgets import Cost, allocate, measure_cost, optimum
from rfjax.laws.fitting import fit
from rfjax.laws.laws import PARAMETRIC
from rfjax.laws.optimal_frontier import BEYOND, derive
from rfjax.report.axes import looks
from rfjax.report.fit_facts import optimal_frontier_facts
from rfjax.report.frontier_figure import optimal_frontier
from rfjax.results.plain import plain

TRUTH = np.array([0.4, np.log(60), 0.3, np.log(90), 0.25])


@pytest.fixture(scope="module")
def fitted():
    """(table, fit, frontier) of planted runs with noise."""
    table = parametric_study(noise=0.003)
    found = fit(table, PARAMETRIC, resamples=300, held_out=False)
    return table, found, derive(found, table)[0]


def search(parameters, budget, cost):
    """(params, images, loss) of the least loss for a budget, found by a numerical minimiser."""
    offset, log_a, alpha, log_b, beta = parameters

    def images_of(log_n):
        return np.log(budget / cost.kappa) - cost.eta * log_n

    def loss(log_n):
        return offset + np.exp(log_a - alpha * log_n) + np.exp(log_b - beta * images_of(log_n))

    best = optimize.minimize_scalar(loss, bounds=(0, 60), method="bounded", options={"xatol": 1e-11})
    return np.exp(best.x), np.exp(images_of(best.x)), best.fun


@pytest.mark.parametrize("given", [None, 6.0])
def test_the_frontier_is_where_a_search_finds_it(fitted, given):
    """Catches a swapped exponent, an eta that is forgotten in one of the three, and a wrong sign of the loss's power;
    once with the cost of the table, eta 0.9, and once with a given one."""
    table, found, _ = fitted
    frontier, reason = derive(found, table, given)
    cost = Cost(kappa=6.0) if given else measure_cost(table)
    assert reason == "" and (frontier.cost.kappa, frontier.cost.eta) == (cost.kappa, cost.eta)
    told = frontier.to_json()
    for budget in np.array(frontier.flops) * [0.1, 100.0]:
        params, images, loss = search(found.parameters, budget, cost)
        point = frontier.at(budget)
        assert (point.params.value, point.images.value) == pytest.approx((params, images), rel=1e-4)
        assert point.loss.value == pytest.approx(loss, rel=1e-9)
        assert point.images_per_param.value == pytest.approx(images / params, rel=1e-4)
        powers = {  # as they are printed
            name: told[name]["coefficient"] * budget ** (sign * told[name]["exponent"]["value"])
            for name, sign in (("params", 1), ("images", 1), ("loss", -1))
        }
        assert (powers["params"], powers["images"]) == pytest.approx((params, images), rel=1e-4)
        assert told["loss"]["E"]["value"] + powers["loss"] == pytest.approx(loss, rel=1e-9)


def test_intervals_are_those_of_the_parameters_draws(fitted):
    """Catches ends that come from other draws than the parameters', and ends that are exchanged."""
    table, found, frontier = fitted
    budget = 3.0 * frontier.flops[1]
    cost = measure_cost(table)
    each = np.array([search(draw, budget, cost) for draw in found.draws[:300]])
    point = frontier.at(budget)
    for name, drawn in zip(("params", "images", "loss"), each.T, strict=True):
        ends = getattr(point, name)
        assert (ends.low, ends.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), rel=2e-3)
    truth = *optimum(TRUTH, budget, cost), 0.25 / (0.3 + 0.9 * 0.25)
    exponent = frontier.to_json()["params"]["exponent"]
    for value, low, high in zip(
        truth,
        (point.params.low, point.images.low, exponent["low"]),
        (point.params.high, point.images.high, exponent["high"]),
        strict=True,
    ):
        assert low < value < high
    divided = allocate(found, budget, cost).optimal
    assert (divided.params.value, divided.loss.low) == pytest.approx((point.params.value, point.loss.low), rel=1e-3)


def test_it_is_stated_at_the_ends_of_the_runs_and_beyond_with_its_convention(fitted):
    _, _, frontier = fitted
    ((first, *others),) = optimal_frontier_facts({"optimal_frontier": frontier.to_json()})
    assert "params = 0.279·C^0.490 [0.4" in first and "·C^-0.141 [0.1" in first
    assert "(the most of the runs)" in others[1] and "images (7" in others[1] and "a parameter), loss 0.78" in others[1]
    assert others[3] == "cost: 3 · params^0.900 · images FLOPs (measured on 20 runs)"
    assert "2 per multiply-accumulate" in others[4]
    assert frontier.points[2].beyond == pytest.approx(BEYOND)


def test_what_decides_no_frontier_gives_the_reason(fitted):
    """Catches exponents that reach 0 drawn as a frontier, and 6 C N D taken where the table has no compute."""
    table, found, _ = fitted
    assert "has no column flops; give --flops-per-param-image" in derive(found, table.drop(columns="flops"))[1]
    few = parametric_study(noise=0.05).iloc[[0, 5, 10, 15, 1, 6]]
    open_ended = fit(few, PARAMETRIC, resamples=100, held_out=False)
    none, reason = derive(open_ended, few)
    assert none is None and ("reaches 0" in reason or "was not fitted" in reason)
    content = {"optimal_frontier": None, "optimal_frontier_reason": reason}
    assert optimal_frontier_facts(content) == [[f"no compute-optimal frontier of the parametric law: {reason}"]]


def test_a_draw_without_a_bound_is_a_draw_far_out(fitted):
    """Catches an interval that leaves out the draws whose optimal size is 0, and so is too narrow."""
    table, found, _ = fitted
    draws = found.draws.copy()
    draws[:5, 2] = 0.0  # alpha of 5 draws in 300: within the tail, and N* is 0 there
    one, other = (derive(replace(found, draws=d), table)[0].at(1e18) for d in (draws, found.draws))
    assert 0 < one.params.low < other.params.low and np.isfinite(one.images.high)


def test_the_figure_has_a_panel_for_loss_size_and_images(fitted):
    table, _, frontier = fitted
    flops = np.geomspace(*frontier.flops, 5)
    runs = [dict(row, depth=1, best_rate=True) for row in table.to_dict("records")]
    numbers = {
        "runs": runs,
        "band": None,
        "analysis": {"optimal_frontier": frontier.to_json(), "headline": ""},
        "optimal_band": plain({"flops": flops, **frontier.bands(flops)}),
    }
    drawn = optimal_frontier(numbers, looks([1]))
    assert [axis.get_ylabel() for axis in drawn.axes] == ["validation loss", "parameters", "training images"]
    for axis, name in zip(drawn.axes, ("loss", "params", "images"), strict=True):
        assert axis.lines[0].get_ydata()[0] == pytest.approx(frontier.bands(flops)[name]["value"][0])
    assert optimal_frontier(numbers | {"optimal_band": None}, looks([1])) is None
