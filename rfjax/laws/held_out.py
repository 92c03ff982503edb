"""Measures how well a law predicts runs that its fit has not seen: the headline of every fit.

Leave-one-out refits without each run in turn. Leave-largest-out predicts the largest run from the others, which is how
scaling laws are used. Laws with and without the offset E are compared by these errors, not by how closely they follow
the points that they were fitted to. Many runs (`rfjax.results.many_runs`) are left out in folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rfjax.laws.identifiability import refusal
from rfjax.laws.laws import Law
from rfjax.laws.minimiser import minimise, starts
from rfjax.laws.misfits import Loss
from rfjax.results.many_runs import are_many, folds_of

MANY = 40  # with more points than this, refits start only at the whole fit's minimum: one point less moves it little


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """The relative error of each run's loss, predicted by a refit without this run, its whole trunk or its fold. An
    error is None if the runs that remain do not determine the law, or if the refit did not converge."""

    runs: tuple[str, ...]
    relative_errors: tuple[float | None, ...]  # predicted / actual - 1
    reason: str = ""  # why some errors are None, or ""
    folds: int | None = None  # the number of folds in which runs were left out; None if there were no folds

    @property
    def rms(self) -> float | None:
        """The root mean square of the runs' relative errors of prediction; None unless every run could be predicted."""
        if any(error is None for error in self.relative_errors):
            return None
        return float(np.sqrt(np.mean(np.square(self.relative_errors))))

    def to_json(self) -> dict:
        errors = dict(zip(self.runs, self.relative_errors, strict=True))
        content = {"rms_relative_error": self.rms, "relative_errors": errors, "reason": self.reason}
        return content if self.folds is None else content | {"folds": self.folds}


@dataclass(frozen=True, kw_only=True)
class LargestOut:
    """The largest run or runs predicted from the smaller ones, with 95 % intervals of a new run."""

    runs: tuple[str, ...]
    actual: tuple[float, ...]
    predicted: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    reason: str = ""  # why there is no prediction, or ""

    @property
    def relative_error(self) -> float | None:
        """The relative error of the prediction: for a single largest run with its sign, for several their root mean
        square."""
        if not self.predicted:
            return None
        errors = np.array(self.predicted) / np.array(self.actual) - 1
        return float(errors[0]) if len(errors) == 1 else float(np.sqrt(np.mean(errors**2)))

    @property
    def covered(self) -> bool | None:
        """Whether each of the largest runs lies within its interval; None without a prediction."""
        if not self.predicted:
            return None
        return all(low <= a <= high for low, a, high in zip(self.low, self.actual, self.high, strict=True))

    def to_json(self) -> dict:
        return vars(self) | {"relative_error": self.relative_error, "covered": self.covered}


def leave_one_out(
    law: Law,
    loss: Loss,
    runs: Sequence[str],
    log_x: Float[np.ndarray, "n v"],
    log_loss: Float[np.ndarray, " n"],
    parameters: Float[np.ndarray, " k"],
    trunks: Int[np.ndarray, " n"] | None = None,
    *,
    covariance: Float[np.ndarray, "n n"] | None = None,
) -> LeftOut:
    """Predicts each run by a refit without it, and returns the errors. With `trunks`, the refit also lacks the other
    runs of the same trunk. With many runs, each refit leaves out a fold of runs. `log_x` must be centred as it was in
    the fit of `parameters`. With `covariance`, the covariance of the runs' noise, the refits are by generalised least
    squares, and `loss` must be the squared loss."""
    n = len(runs)
    units, refit = np.arange(n) if trunks is None else trunks, np.arange(n)  # refit[i] is the refit that predicts run i
    if many := are_many(n):
        units = refit = folds_of(units)
    out = units[np.unique(refit, return_index=True)[1], None] == units[None]  # a row for each refit
    refusals = [refusal(law, log_x[~left], log_loss[~left]) for left in out]
    errors: list[float | None] = [None] * n
    chosen = np.flatnonzero([not why for why in refusals])
    if len(chosen):
        start = parameters[None]
        if n <= MANY:
            start = np.concatenate([start, starts(law, log_x, log_loss)])
        each = (
            {"weights": 1.0 - out[chosen]} if covariance is None else {"precision": _of_kept(covariance, out[chosen])}
        )
        each = {name: np.repeat(array, len(start), axis=0) for name, array in each.items()}
        found = minimise(law, np.tile(start, (len(chosen), 1)), log_x, log_loss, loss, **each)
        objective = np.where(found.converged, found.objective, np.inf).reshape(len(chosen), len(start))
        best = objective.argmin(axis=1)
        refitted = found.parameters.reshape(len(chosen), len(start), -1)[np.arange(len(chosen)), best]
        for row, left in enumerate(chosen):
            if np.isfinite(objective[row, best[row]]):
                for i in np.flatnonzero(refit == left):
                    errors[i] = float(np.exp(law.log_loss(refitted[row], log_x[i : i + 1])[0] - log_loss[i]) - 1)
    missing = [i for i, error in enumerate(errors) if error is None]
    reason = ""
    if missing:
        why = refusals[refit[missing[0]]] or "the optimiser did not converge"
        reason = f"{len(missing)} of {n} runs cannot be predicted from the others (without {runs[missing[0]]}: {why})"
    folds = len(out) if many else None
    return LeftOut(runs=tuple(runs), relative_errors=tuple(errors), reason=reason, folds=folds)


def _of_kept(covariance, out):
    """Returns the inverse covariance of the runs that each refit keeps, [refits, n, n]; rows and columns of the runs
    that a refit leaves out are zero. `out` [refits, n] marks the runs that are left out."""
    precision = np.zeros((len(out), *covariance.shape))
    for row, left in enumerate(out):
        kept = np.ix_(~left, ~left)
        precision[row][kept] = np.linalg.inv(covariance[kept])
    return precision
