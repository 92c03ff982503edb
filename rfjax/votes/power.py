"""Computes the power of a preference study before anybody votes.

The power is the chance that a win rate's 95 % interval excludes one half. It is computed in three steps.

1. A vote follows Rao and Kupper's model. The difference in log odds has a random part for each rater and one for each
   prompt, with given standard deviations. Integrals over both parts split the variance of one vote into
   v_raters + v_prompts + v_rest. So a win rate has the variance
   v_raters / raters + v_prompts / prompts + v_rest / votes. With fewer than `LEAST_RATERS` raters, intervals
   hold for these raters alone: the first term is left out, and step 2 estimates V_prompts alone.
2. The study will not know this variance. It will estimate it by V_raters + V_prompts - V_votes, at least V_votes
   (`rfjax.votes.clusters`). V_raters and V_prompts are taken as multiples of chi-squared variables with raters - 1 and
   prompts - 1 degrees of freedom.
3. The power is the chance that the interval excludes one half, averaged over these estimates of the variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats
from scipy.special import expit

from rfjax.evaluation.intervals import ENDS
from rfjax.votes.clusters import LEAST_RATERS
from rfjax.votes.study import KeyedStudy

RATES = (0.52, 0.55, 0.6, 0.65, 0.7)  # win rates whose power is shown
WANTED = 0.8  # power at which a difference is called detectable
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(31)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True, kw_only=True)
class Design:
    """What decides the power of one comparison of two runs. `votes` is the number of votes of all raters together."""

    raters: int
    prompts: int
    votes: int
    rater_effect: float = 0.3  # standard deviation over raters of the difference in log odds
    prompt_effect: float = 0.8  # the same over prompts
    ties: float = 0.2  # share of ties between two images that are equally good

    @property
    def fixed_raters(self) -> bool:
        """Whether intervals will hold for these raters alone; the spread between raters then adds no error."""
        return self.raters < LEAST_RATERS

    def _difference(self, rate: float) -> float:
        """The difference of two runs' strengths at which the mean win rate, over all raters and prompts, is `rate`."""
        return float(optimize.brentq(lambda d: self._parts(d)[0] - rate, -60, 60))

    def _parts(self, difference: float) -> tuple[float, float, float, float]:
        """Returns the win rate, and the parts of one vote's variance: v_raters, v_prompts, v_rest."""
        threshold = 2 * math.atanh(self.ties)  # at equal strengths a tie has the probability tanh(log theta / 2)
        raters, prompts = difference + self.rater_effect * _NODES, self.prompt_effect * _NODES
        d = raters[:, None] + prompts
        won, lost = expit(d - threshold), expit(-d - threshold)
        score, square = (1 + won - lost) / 2, won + (1 - won - lost) / 4
        by_rater, by_prompt = score @ _WEIGHTS, _WEIGHTS @ score
        rate = float(_WEIGHTS @ by_rater)
        of_raters, of_prompts = (float(_WEIGHTS @ (means - rate) ** 2) for means in (by_rater, by_prompt))
        whole = float(_WEIGHTS @ square @ _WEIGHTS) - rate**2
        return rate, of_raters, of_prompts, whole - of_raters - of_prompts

    def power(self, rate: float) -> float:
        """The chance that the 95 % interval excludes one half, for a true win rate `rate`; nan without an interval."""
        smallest = self.prompts if self.fixed_raters else min(self.raters, self.prompts)
        if smallest < 2 or self.votes < 1:
            return math.nan
        _, raters, prompts, rest = self._parts(self._difference(rate))
        one = (raters + prompts + rest) / self.votes  # the variance if votes were independent
        of_raters, of_prompts, rest = raters / self.raters, prompts / self.prompts, rest / self.votes
        of_raters = 0.0 if self.fixed_raters else of_raters
        estimated = (of_prompts + rest) * _scaled_chi2(self.prompts - 1)
        if not self.fixed_raters:
            estimated = estimated + (of_raters + rest) * _scaled_chi2(self.raters - 1)[:, None] - one
        # Wilson's interval excludes 1/2 if the win rate's distance from 1/2 exceeds t times the standard error at 1/2.
        half = stats.t.ppf(ENDS[1], smallest - 1) * np.sqrt(np.maximum(estimated, one) * 0.25 / (rate * (1 - rate)))
        error = math.sqrt(of_raters + of_prompts + rest)
        shift = rate - 0.5
        return float(np.mean(stats.norm.sf((half - shift) / error) + stats.norm.cdf((-half - shift) / error)))

    def detectable(self, wanted: float = WANTED) -> float | None:
        """The smallest win rate above one half that has the power `wanted`; None if even a win rate of 0.99 has less
        power."""
        if not self.power(0.99) >= wanted:
            return None
        return float(optimize.brentq(lambda rate: self.power(rate) - wanted, 0.5 + 1e-9, 0.99))


def _scaled_chi2(freedom: int, count: int = 101) -> Float[np.ndarray, " quantiles"]:
    """Returns `count` quantiles, evenly spaced in probability, of chi-squared over its degrees of freedom."""
    return stats.chi2.ppf((np.arange(count) + 0.5) / count, freedom) / freedom


def designs(study: KeyedStudy, **assumed: float) -> dict[str, dict[str, Design]]:
    """Returns {question: {"one against other": the `Design` of this comparison}}. `assumed` has the effects of raters
    and prompts and the share of ties."""
    found: dict[str, dict[tuple[int, int], list[tuple[str, int]]]] = {q.name: {} for q in study.questions}
    for rater in study.raters:
        for name in study.asked.pairs_of(rater):
            pair = study.compared.get(name)
            for question in pair.questions if pair else ():
                one, other = sorted(study.run_of[image] for image in pair.images)
                found[question].setdefault((one, other), []).append((rater, pair.prompt))
    return {
        question: {
            f"{study.runs[one]} against {study.runs[other]}": Design(
                raters=len({rater for rater, _ in asked}),
                prompts=len({prompt for _, prompt in asked}),
                votes=len(asked),
                **assumed,
            )
            for (one, other), asked in sorted(pairs.items())
        }
        for question, pairs in found.items()
    }
