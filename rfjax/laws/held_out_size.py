"""Holds out the largest depth of a study, and predicts its runs by laws fitted to the other depths.

A law of compute describes only the frontier: the runs that no other run beats in both loss and FLOPs. A run off the
frontier has a higher loss than its compute allows; often it is a large network that saw too few images. A law of
compute cannot predict how much higher; the parametric law, which takes parameters and images, can. So each prediction
says whether it counts. For a run on the frontier, the prediction of the law of compute counts; for any other run, that
of the parametric law.
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
    """The loss that a law predicts for a run left out of its fit, beside the run's actual loss."""

    run: str
    flops: float
    law: str  # name of the law
    counts: bool  # false for a law of compute's prediction of a run off the frontier
    predicted: float
    low: float  # 95 % interval of a new run's loss
    high: float
    actual: float
    relative_error: float  # (predicted - actual) / actual
    covered: bool
    on_frontier: bool  # whether the run is on the whole study's frontier
    better: str | None = None  # for a run off the frontier: a run of no more FLOPs and no higher loss


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The predictions of the largest depth's losses by laws that were fitted to the other depths. For each run, the
    prediction that counts (by the rule in this module's docstring) comes first. A run off the frontier has none that
    counts if the parametric law cannot predict it."""

    depth: int
    fit: Fit  # the law of compute
    predictions: tuple[Prediction, ...]
    parametric: Fit | None = None  # the parametric law; None if all predicted runs are on the frontier
    parametric_reason: str = ""  # why the parametric law cannot predict a run off the frontier, or ""


def choose_headline(saturating: Fit, power: Fit) -> tuple[str, str]:
    """Chooses the law of compute to show.

    Returns (its name, or "" for none; why it is not the saturating law, or "").
    """
    if saturating.identifiable:
        return saturating.law.name, ""
    if power.identifiable:
        return power.law.name, f"the saturating law was not fitted: {saturating.reason}"
    return "", f"{saturating.reason}; nor the power law: {power.reason}"


def hold_out_largest(points: pd.DataFrame, options: FitOptions = DEFAULTS) -> tuple[HeldOut | None, str]:
    """Predicts runs of the largest depth from the other depths. Returns (HeldOut, ""), or (None, the reason).

    `points` has one row for each run, with the marks of `rfjax.laws.study_fits.mark_points`. If runs of the largest
    depth are on the whole study's frontier, the law of compute predicts these runs. Otherwise both the law of compute
    and the parametric law predict the largest depth's run of lowest loss. The law of compute is fitted to the frontier
    of the other depths. The parametric law is fitted to all runs of the other depths at their best learning rate.
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
    """Yields the prediction of each row by a law that was fitted without these rows."""
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
    """Returns the run of lowest loss among the other runs with no more FLOPs and no higher loss.

    That run explains why `row` is off the frontier. Returns None if there is none: then only the means over seeds, by
    which the frontier is judged, put `row` off it.
    """
    better = points[(points["flops"] <= row.flops) & (points["loss"] <= row.loss) & (points["run"] != row.run)]
    return None if better.empty else str(better.nsmallest(1, "loss")["run"].iloc[0])
