"""Intervals over raters and prompts: their formula, their limits, and how often they hold the truth."""

from collections import Counter

import numpy as np
import pytest

from helpers.planted_votes import Planted, draw, files_of, keyed, population, votes_of, with_lazy_raters
from rfjax.votes.ballots import ballots_of
from rfjax.votes.clusters import Clusters
from rfjax.votes.raters import judge
from rfjax.votes.strengths import MODELS, fit_strengths, wins_of


def test_the_covariance_is_that_of_the_formula():
    """Against sums in plain Python, for votes of which some share both rater and prompt."""
    rng = np.random.default_rng(0)
    rater, prompt = rng.integers(0, 6, 50), rng.integers(0, 4, 50)
    influence = rng.normal(size=(50, 2))

    def summed(keys):
        sums = {}
        for key, row in zip(keys, influence, strict=True):
            sums[key] = sums.get(key, 0) + row
        return sum(np.outer(s, s) for s in sums.values()) * len(sums) / (len(sums) - 1)

    cells = list(zip(rater.tolist(), prompt.tolist(), strict=True))
    whole, alone = Clusters(rater, prompt).meat(influence)
    np.testing.assert_allclose(whole, summed(rater.tolist()) + summed(prompt.tolist()) - summed(cells))
    np.testing.assert_allclose(alone, influence.T @ influence * 50 / 49)
    assert max(Counter(cells).values()) > 1


def test_a_variance_is_at_least_that_of_independent_votes():
    rater, prompt = (axis.ravel() for axis in np.mgrid[:6, :6])
    influence = np.where((rater + prompt) % 2, 1.0, -1.0)  # sums of zero in every row and column
    clusters = Clusters(rater, prompt)
    assert clusters.meat(influence[:, None])[0][0, 0] < 0
    assert clusters.variance(influence) == pytest.approx(36 * 36 / 35)


def test_few_raters_are_fixed_and_it_is_said():
    rater, prompt = (axis.ravel() for axis in np.mgrid[:4, :9])
    few = Clusters(rater, prompt)
    assert few.fixed_raters and few.freedom == 8 and "4 raters are too few to stand for others" in few.method
    rater, prompt = (axis.ravel() for axis in np.mgrid[:5, :9])
    assert not Clusters(rater, prompt).fixed_raters and Clusters(rater, prompt).freedom == 4
    alone = Clusters(np.arange(6), np.zeros(6, int))
    assert alone.share(np.array([1.0, 0, 1, 1, 0, 1])).low is None and "cannot show a spread" in alone.method


def test_equal_scores_do_not_make_an_interval_of_no_width():
    rater, prompt = (axis.ravel() for axis in np.mgrid[:8, :30])
    found = Clusters(rater, prompt).share(np.ones(240))
    assert found.value == found.high == 1.0 and 0.5 < found.low < 0.65  # as of eight votes
    tied = Clusters(rater, prompt).share(np.full(240, 0.5))
    assert tied.low < 0.3 and tied.high > 0.7


def coverage(planted, tmp_path, studies, lazy=2, votes_of_truth=400_000):
    """How often intervals hold the population's difference of two runs, side effect and win rate, over simulated
    studies with lazy raters, who are left out by their checks."""
    study = keyed(planted, tmp_path)
    whole = population(planted, votes=votes_of_truth)
    truth = {model: fit_strengths(whole, model) for model in MODELS}
    rate = wins_of(whole.of_runs(0), 0)[0].mean()
    hits, missed = Counter(), 0
    for seed in range(studies):
        votes = votes_of(study.asked, with_lazy_raters(draw(planted, seed), lazy, seed), lazy, seed)
        out = {one.rater for one in judge(study, votes) if one.left_out}
        assert not out - set(study.raters[:lazy])
        missed += lazy - len(out)
        ballots = ballots_of(study, [vote for vote in votes if vote.rater not in out], "aesthetics")
        for model in MODELS:
            found = fit_strengths(ballots, model)
            pairs = {"side": (found.side, truth[model].side.value)}
            pairs |= {pair: (found.differences[pair], n.value) for pair, n in truth[model].differences.items()}
            for name, (number, value) in pairs.items():
                hits[model, name] += number.low <= value <= number.high
        of_run = ballots.of_runs(0)
        share = Clusters(of_run.rater, of_run.prompt).share(wins_of(of_run, 0)[0])
        hits["win rate"] += share.low <= rate <= share.high
    return {name: count / studies for name, count in hits.items()}, missed / studies


def test_intervals_hold_the_truth_of_a_few_studies(tmp_path):
    """Catches an interval over votes alone, which would hold it in a third of these studies."""
    planted = Planted(rater_effect=0.8, prompt_effect=0.8, raters=10, prompts=20)
    found, _ = coverage(planted, tmp_path, 25, votes_of_truth=60_000)
    assert min(found.values()) >= 0.8 and len(found) == 15


@pytest.mark.full
@pytest.mark.parametrize("effect", [0.0, 0.3, 0.8])
def test_intervals_hold_the_truth_of_400_studies(effect, tmp_path):
    """With a side effect, ties, and two lazy raters of fourteen; the shares are in docs/votes.md."""
    found, missed = coverage(Planted(rater_effect=effect, prompt_effect=effect, raters=14, prompts=60), tmp_path, 400)
    print({str(name): round(share, 3) for name, share in found.items()}, "lazy raters kept a study:", missed)
    assert 0.90 <= min(found.values()) and max(found.values()) <= 0.99


def test_files_of_the_planted_study_are_a_studys(tmp_path):
    study, key = files_of(Planted(prompts=3))
    assert len(study.pairs) == 9 + 12 and len(key.images) == 9 + 6
