"""Holds out the largest depth of a study, and predicts its runs by the laws of the other depths.

A law of compute describes the frontier: the runs that no other run beats in both loss and FLOPs. A run off the frontier
(often the largest network after too few images) has a higher loss than its compute allows, and such a law does not know
by how much. The law of parameters and images does. So each prediction says whether it counts: that of the law of
compute for a run on the frontier, that of the parametric law for any other run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from rfjax.laws.fitting import DEFAULTS, Fit, FitOptions, fit
from rfjax.laws.laws import PARAMETRIC, POWER, SATURATING
from rfjax.laws.run_frontier import on_frontier


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The loss that one law predicts for a run that its fit has not seen, and the loss that the run reached."""

    run: str
    flops: float
    law: str  # its name
    counts: bool  # False for a law of compute and a run off the frontier, which that law does not describe
    predicted: float
    low: float  # 95 % interval of a new run's loss
    high: float
    actual: float
    relative_error: float  # (predicted - actual) / actual
    covered: bool
    on_frontier: bool  # of the whole study
    better: str | None = None  # for a run off the frontier: a run of no more FLOPs and no higher loss


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The largest depth, predicted by the laws of the other depths: for each run first the prediction that counts."""

    depth: int
    fit: Fit  # the law of compute
    predictions: tuple[Prediction, ...]
    parametric: Fit | None = None  # of the other depths; None if all predicted runs are on the frontier
    parametric_reason: str = ""  # why it predicts nothing although a run is off the frontier, or ""


def choose_headline(saturating: Fit, power: Fit) -> tuple[str, str]:
    """Returns (the name of the law of compute to show, why it is not the saturating law, or "")."""
    if saturating.identifiable:
        return saturating.law.name, ""
    if power.identifiable:
        return power.law.name, f"the saturating law was not fitted: {saturating.reason}"
    return "", f"{saturating.reason}; nor the power law: {power.reason}"


def hold_out_largest(points: pd.DataFrame, options: FitOptions = DEFAULTS) -> tuple[HeldOut | None, str]:
    """Predicts the largest depth from the other depths. Returns (HeldOut, ""), or (None, the reason).

    `points` has one row for each run, with the marks of `rfjax.laws.study_fits.mark_points`. Of the largest depth, the
    runs on the whole study's frontier are predicted; if there are none, the run of lowest loss. The law of compute is
    fitted to the frontier of the other depths, the parametric law to all their runs at their best learning rate.
    """
    if points.empty or points["depth"].nunique() < 2:
        return None, "a depth can be held out only where runs of at least two depths have finished"
    depth = int(points["depth"].max())
    rest = points[points["depth"] < depth]
    fits = [fit(rest[on_frontier(rest)], law, options, held_out=False) for law in (SATURATING, POWER)]
    chosen, reason = choose_headline(*fits)
    if not chosen:
        return None, f"without depth {depth}: {reason}"
    of_compute = next(candidate for candidate in fits if candidate.law.name == chosen)
    largest = points[points["depth"] == depth]
    if largest["frontier"].any():
        return HeldOut(
            depth=depth, fit=of_compute, predictions=tuple(_predict(of_compute, largest[largest["frontier"]], points))
        ), ""
    largest = largest.nsmallest(1, "loss")
    parametric = fit(rest[rest["best_rate"]], PARAMETRIC, options, held_out=False)
    laws = [parametric, of_compute] if parametric.identifiable else [of_compute]
    return HeldOut(
        depth=depth,
        fit=of_compute,
        predictions=tuple(prediction for law in laws for prediction in _predict(law, largest, points)),
        parametric=parametric,
        parametric_reason=parametric.reason,
    ), ""


def _predict(fitted: Fit, rows: pd.DataFrame, points: pd.DataFrame) -> Iterator[Prediction]:
    """The prediction of each row by a law that was fitted without them."""
    x = {name: rows[name].to_numpy(float) for name in fitted.law.variables}
    low, high = fitted.interval(x, new_run=True)
    for row, value, lo, hi in zip(rows.itertuples(), fitted.predict(x), low, high, strict=True):
        on = bool(row.frontier)
        yield Prediction(
            run=row.run,
            flops=float(row.flops),
            law=fitted.law.name,
            counts=on or "flops" not in fitted.law.variables,
            predicted=float(value),
            low=float(lo),
            high=float(hi),
            actual=float(row.loss),
            relative_error=float((value - row.loss) / row.loss),
            covered=bool(lo <= row.loss <= hi),
            on_frontier=on,
            better=None if on else _better_than(row, points),
        )


def _better_than(row, points) -> str | None:
    """The run of lowest loss among the others with no more FLOPs and no higher loss; None if only the mean of several
    seeds is that low."""
    better = points[(points["flops"] <= row.flops) & (points["loss"] <= row.loss) & (points["run"] != row.run)]
    return None if better.empty else str(better.nsmallest(1, "loss")["run"].iloc[0])
