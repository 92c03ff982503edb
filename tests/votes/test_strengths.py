"""Strengths against closed forms and planted ones, and what is said where the votes cannot tell them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logit

from helpers.planted_votes import Planted, draw, population
from rfjax.votes import strengths
from rfjax.votes.ballots import Ballots
from rfjax.votes.strengths import BRADLEY_TERRY, MODELS, RAO_KUPPER, Problem, fit_strengths, unconnected_groups

PARTS = "rater prompt left right choice".split()


def ballots(rows, runs=("A", "B"), raters=6):
    """Ballots from rows (left, right, choice, how often), whose raters and prompts take turns."""
    flat = np.array([row[:3] for row in rows for _ in range(row[3])]).reshape(-1, 3)
    place = np.arange(len(flat))
    return Ballots(tuple(runs), place % raters, place // raters, flat[:, 0], flat[:, 1], flat[:, 2])


# A wins 12 and loses 6 on the left, wins 12 and loses 6 on the right; 4 ties.
BALANCED = [(0, 1, 1, 12), (0, 1, -1, 6), (1, 0, -1, 12), (1, 0, 1, 6), (0, 1, 0, 2), (1, 0, 0, 2)]


def test_two_runs_have_closed_forms():
    """Catches a wrong slope, a tie that is not half a win, and a threshold on the wrong side."""
    votes = ballots(BALANCED)
    found = fit_strengths(votes, BRADLEY_TERRY)
    assert found.differences["A", "B"].value == pytest.approx(logit(26 / 40), abs=1e-9)
    assert found.side.value == pytest.approx(0, abs=1e-9) and found.theta is None
    found = fit_strengths(votes, RAO_KUPPER)
    won, lost = logit(24 / 40), logit(12 / 40)  # s(d - log theta) and s(-d - log theta)
    assert found.differences["A", "B"].value == pytest.approx((won - lost) / 2, abs=1e-9)
    assert np.log(found.theta) == pytest.approx(-(won + lost) / 2, abs=1e-9)
    shares = {24: 24 / 40, 12: 12 / 40, 4: 4 / 40}
    assert found.log_likelihood == pytest.approx(sum(n * np.log(p) for n, p in shares.items()), abs=1e-9)


def test_the_side_is_no_strength():
    """A pair of equal runs of which the left image wins twice in three."""
    votes = ballots([(0, 1, 1, 20), (0, 1, -1, 10), (1, 0, 1, 20), (1, 0, -1, 10)])
    for model in MODELS:
        found = fit_strengths(votes, model)
        assert found.differences["A", "B"].value == pytest.approx(0, abs=1e-9)
        assert found.side.value == pytest.approx(np.log(2), abs=1e-9)
    assert "nobody chose a tie" in found.notes[0] and found.theta == 1.0


@pytest.mark.parametrize("ties", [False, True])
def test_slopes_are_those_of_the_likelihood(ties):
    rng = np.random.default_rng(0)
    design, choice, weight = rng.normal(size=(9, 3)), rng.integers(-1, 2, 9).astype(float), rng.uniform(1, 2, 9)
    problem = Problem(design, choice, weight, ties)
    at = np.array([0.3, -0.2, 0.5, 0.4])[: 3 + ties]
    rows, hessian = problem.slopes(at)
    step = 1e-5
    for place, unit in enumerate(np.eye(len(at))):
        up, down = at + step * unit, at - step * unit
        numeric = (problem.likelihood(up) - problem.likelihood(down)) / (2 * step)
        assert (weight @ rows)[place] == pytest.approx(numeric, rel=1e-6, abs=1e-8)
        numeric = (weight @ problem.slopes(up)[0] - weight @ problem.slopes(down)[0]) / (2 * step)
        np.testing.assert_allclose(hessian[place], numeric, rtol=1e-5, atol=1e-7)


def test_planted_strengths_are_recovered():
    """Of many independent votes, to three standard errors: strengths, side and theta of Rao and Kupper's model."""
    planted = Planted(strengths=(0.8, 0.1, -0.9), side=0.4, threshold=0.3)
    found = fit_strengths(population(planted, votes=30_000), RAO_KUPPER)
    for run, strength in zip(planted.runs, planted.strengths, strict=True):
        number = found.strengths[run]
        assert abs(number.value - strength) < 3 * number.stderr < 0.1
    assert abs(found.side.value - 0.4) < 3 * found.side.stderr
    assert np.log(found.theta) == pytest.approx(0.3, abs=0.03)


def test_the_order_of_votes_is_irrelevant():
    votes = draw(Planted(prompts=10), 0)
    order = np.random.default_rng(0).permutation(len(votes))
    mixed = Ballots(votes.runs, *(getattr(votes, name)[order] for name in PARTS))
    for model in MODELS:
        one, other = fit_strengths(votes, model), fit_strengths(mixed, model)
        for pair, number in one.differences.items():
            for name in ("value", "low", "high"):
                assert getattr(number, name) == pytest.approx(getattr(other.differences[pair], name), abs=1e-10)


def test_a_run_that_wins_all_has_no_interval_and_the_others_have():
    """Catches an interval of width zero about a number that only the added votes decide."""
    rest = draw(Planted(strengths=(0.2, -0.2), prompts=20), 0)
    all_won = ballots([(2, 0, 1, 15), (0, 2, -1, 15), (1, 2, -1, 15), (2, 1, 1, 15)], runs="ABC")
    parts = (np.concatenate([getattr(rest, name), getattr(all_won, name)]) for name in PARTS)
    votes = Ballots(("A", "B", "C"), *parts)
    for model in MODELS:
        found = fit_strengths(votes, model)
        assert "C wins every comparison with the other runs" in found.notes[-1] and "added" in found.notes[-1]
        assert found.differences["C", "A"].value > 3 and found.differences["C", "A"].low is None
        assert found.strengths["C"].low is None and found.strengths["A"].low is None
        near = found.differences["A", "B"]
        assert near.low < near.value < near.high
        alone = fit_strengths(replace(rest, runs=("A", "B")), model).differences["A", "B"]
        assert near.value == pytest.approx(alone.value, abs=0.05) and near.stderr == pytest.approx(
            alone.stderr, rel=0.1
        )


def test_a_side_that_decides_all_is_named():
    votes = ballots([(0, 1, 1, 10), (1, 0, 1, 10)])
    found = fit_strengths(votes, BRADLEY_TERRY)
    assert "order the runs, or the sides" in found.notes[0]
    assert found.differences["A", "B"].value == pytest.approx(0, abs=1e-9) and found.differences["A", "B"].low is None
    assert found.side.value > 2 and found.side.low is None


def test_runs_on_one_side_alone_leave_the_side_out():
    found = fit_strengths(ballots([(0, 1, 1, 20), (0, 1, -1, 10)]), BRADLEY_TERRY)
    assert found.side is None and "cannot be told" in found.notes[0]
    assert found.differences["A", "B"].value == pytest.approx(np.log(2), abs=1e-9)


def test_ties_alone_give_no_interval():
    """Catches an interval of width zero about equal strengths."""
    for model in MODELS:
        found = fit_strengths(ballots([(0, 1, 0, 9), (1, 0, 0, 9)]), model)
        assert found.differences["A", "B"].value == pytest.approx(0, abs=1e-12)
        assert found.differences["A", "B"].low is None and found.side.low is None and found.theta is None
        assert found.notes == ("every vote is a tie: the strengths are equal, and have no intervals",)


def test_unconnected_runs_are_found():
    votes = ballots([(0, 1, 1, 3), (1, 0, 1, 3), (2, 3, 0, 2)], runs="ABCDE")
    assert unconnected_groups(votes) == [[0, 1], [2, 3], [4]]
    assert unconnected_groups(ballots(BALANCED)) == [[0, 1]]


def test_elo_has_odds_of_ten_to_one_at_400_points():
    number = fit_strengths(ballots(BALANCED), BRADLEY_TERRY).strengths["A"]
    elo = strengths.as_elo(number)
    assert elo.value - 1000 == pytest.approx(400 * number.value / np.log(10))
    assert elo.high - elo.low == pytest.approx(400 * (number.high - number.low) / np.log(10))
