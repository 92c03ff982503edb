"""Simulated preference studies whose strengths, rater effects, prompt effects and ties are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from rfjax.votes.ballots import Ballots


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A population of votes. Effects are standard deviations, in log odds, of each rater's and each prompt's own
    difference between two runs; `threshold` is log theta of Rao and Kupper; `side` favours the left image."""

    strengths: tuple[float, ...] = (0.6, 0.1, -0.7)
    raters: int = 12
    prompts: int = 60
    share: float = 0.5  # of all pairs that a rater votes on
    rater_effect: float = 0.0
    prompt_effect: float = 0.0
    side: float = 0.3
    threshold: float = 0.25

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(f"run{place}" for place in range(len(self.strengths)))


def draw(planted: Planted, seed: int) -> Ballots:
    """The votes of one study."""
    rng = np.random.default_rng(seed)
    count = len(planted.strengths)
    # A difference of two runs' effects has twice the variance of one.
    of_raters = rng.normal(0, planted.rater_effect / np.sqrt(2), (planted.raters, count))
    of_prompts = rng.normal(0, planted.prompt_effect / np.sqrt(2), (planted.prompts, count))
    one, other = np.triu_indices(count, 1)
    rater, prompt, pair = (
        axis.ravel() for axis in np.meshgrid(np.arange(planted.raters), np.arange(planted.prompts), np.arange(len(one)))
    )
    kept = rng.random(len(rater)) < planted.share
    rater, prompt, pair = rater[kept], prompt[kept], pair[kept]
    swapped = rng.random(len(rater)) < 0.5
    left, right = np.where(swapped, other[pair], one[pair]), np.where(swapped, one[pair], other[pair])
    value = np.array(planted.strengths) + of_raters[rater] + of_prompts[prompt]
    place = np.arange(len(rater))
    return Ballots(
        planted.runs, rater, prompt, left, right, _choose(planted, value[place, left] - value[place, right], rng)
    )


def _choose(planted, difference, rng):
    d = difference + planted.side
    shown = rng.random(len(d))
    won, lost = expit(d - planted.threshold), expit(-d - planted.threshold)
    return np.where(shown < won, 1, np.where(shown > 1 - lost, -1, 0))


def population(planted: Planted, seed: int = 0, votes: int = 400_000) -> Ballots:
    """So many votes, each by another rater on another prompt, that their fit is what a study estimates."""
    rng = np.random.default_rng(seed)
    count = len(planted.strengths)
    one, other = np.triu_indices(count, 1)
    pair, swapped = np.arange(votes) % len(one), (np.arange(votes) // len(one)) % 2 == 1
    left, right = np.where(swapped, other[pair], one[pair]), np.where(swapped, one[pair], other[pair])
    spread = np.hypot(planted.rater_effect, planted.prompt_effect)
    difference = np.array(planted.strengths)[left] - np.array(planted.strengths)[right] + rng.normal(0, spread, votes)
    alone = np.arange(votes)
    return Ballots(planted.runs, alone, alone, left, right, _choose(planted, difference, rng))
