"""The covariance of estimates from votes that share raters and prompts, and the intervals from it.

The error of an estimate is a sum over votes; a vote's term is called its influence. Votes of one rater are correlated,
and so are votes on one prompt. The covariance is therefore V_raters + V_prompts - V_votes (Cameron, Gelbach and Miller
2011). For V_raters, influences are summed within each rater, and the squares of the sums are added. V_prompts does the
same within each prompt, and V_votes for each rater's votes on one prompt. A variance is taken to be at least that of
independent votes. With fewer than `LEAST_RATERS` raters, the covariance is V_prompts alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from rfjax.evaluation.intervals import ENDS

LEAST_RATERS = 5  # with fewer raters, the spread between them is not estimated: intervals hold for these raters alone


@dataclass(frozen=True, kw_only=True)
class Number:
    """An estimate with its standard error and 95 % interval, which are None if the votes do not determine them."""

    value: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    n: int  # votes


@dataclass(frozen=True, eq=False)
class Clusters:
    """The rater and the prompt of each vote, from which variances and intervals are computed."""

    rater: Int[np.ndarray, " votes"]
    prompt: Int[np.ndarray, " votes"]

    def __post_init__(self):
        cells = self.prompt * (1 + self.rater.max(initial=0)) + self.rater
        places = {"raters": self.rater, "prompts": self.prompt, "cells": cells}
        found = {name: np.unique(values, return_inverse=True) for name, values in places.items()}
        object.__setattr__(self, "_places", {name: place.reshape(-1) for name, (_, place) in found.items()})
        object.__setattr__(self, "_counts", {name: len(values) for name, (values, _) in found.items()})

    @property
    def raters(self) -> int:
        return self._counts["raters"]

    @property
    def prompts(self) -> int:
        return self._counts["prompts"]

    @property
    def fixed_raters(self) -> bool:
        """Whether intervals hold for these raters alone, because there are too few to generalise to other raters."""
        return self.raters < LEAST_RATERS

    @property
    def smallest(self) -> int:
        """The smaller of the numbers of raters and of prompts; the number of prompts if intervals hold for these raters
        alone (`fixed_raters`)."""
        return self.prompts if self.fixed_raters else min(self.raters, self.prompts)

    @property
    def freedom(self) -> int:
        """Degrees of freedom of Student's t. Below 1 there is no interval."""
        return self.smallest - 1

    @property
    def quantile(self) -> float:
        """Student's t at the upper end of a 95 % interval; nan without degrees of freedom."""
        return float(stats.t.ppf(ENDS[1], self.freedom)) if self.freedom > 0 else math.nan

    @property
    def method(self) -> str:
        """How the intervals were made, in words."""
        if self.freedom < 1:
            return f"none: {self.prompts} prompt{'s'[: self.prompts != 1]} cannot show a spread"
        t = f"Student's t with {self.freedom} degrees of freedom"
        if self.fixed_raters:
            return f"over {self.prompts} prompts; {self.raters} raters are too few to stand for others: fixed; {t}"
        return f"over {self.raters} raters and {self.prompts} prompts (two-way cluster-robust); {t}"

    def meat(
        self, influence: Float[np.ndarray, "votes k"]
    ) -> tuple[Float[np.ndarray, "k k"], Float[np.ndarray, "k k"]]:
        """Returns two covariances of the sum of the influences: the clustered covariance before its lower bound is
        applied, and that of independent votes, which is the lower bound."""
        n = len(influence)
        alone = influence.T @ influence * (n / (n - 1) if n > 1 else 1.0)
        parts = {name: self._summed(influence, name) for name in ("raters", "prompts", "cells")}
        if self.fixed_raters:
            return parts["prompts"], alone
        return parts["raters"] + parts["prompts"] - parts["cells"], alone

    def _summed(self, influence, name):
        count = self._counts[name]
        sums = np.zeros((count, influence.shape[1]))
        np.add.at(sums, self._places[name], influence)
        return sums.T @ sums * (count / (count - 1) if count > 1 else 1.0)

    def variance(self, influence: Float[np.ndarray, " votes"]) -> float:
        """The variance of the sum of the influences, at least that of independent votes."""
        whole, alone = self.meat(influence[:, None])
        return max(float(whole[0, 0]), float(alone[0, 0]))

    def number(self, value: float, variance: float, n: int) -> Number:
        """Returns the estimate `value` with a symmetric interval of Student's t."""
        if self.freedom < 1:
            return Number(value=value, n=n)
        stderr = math.sqrt(variance)
        half = self.quantile * stderr
        return Number(value=value, stderr=stderr, low=value - half, high=value + half, n=n)

    def share(self, scores: Float[np.ndarray, " votes"]) -> Number:
        """Returns the mean of scores in [0, 1] with Wilson's interval.

        The interval takes an effective number of votes: the number of independent votes whose mean would have the same
        variance. If all scores are equal, the variance is 0 and gives no such number; the effective
        number is then `smallest`.
        """
        n, value = len(scores), float(scores.mean())
        if self.freedom < 1:
            return Number(value=value, n=n)
        variance = self.variance((scores - value) / n)
        spread = value * (1 - value)
        effective = spread / variance if variance > 1e-15 and spread > 0 else float(self.smallest)
        t2 = self.quantile**2 / effective
        middle = (value + t2 / 2) / (1 + t2)
        half = math.sqrt(t2 * spread + t2**2 / 4) / (1 + t2)
        low, high = max(0.0, middle - half), min(1.0, middle + half)
        return Number(value=value, stderr=math.sqrt(variance), low=low, high=high, n=n)
