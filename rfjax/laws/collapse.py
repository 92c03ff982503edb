"""Normalises the training curves of compute-optimal runs: (loss - E) / (end - E) against the share of training.

`end` is a run's last loss, and E is the loss that the law approaches with unlimited compute. If the curves of all sizes
collapse onto one, a short run predicts the course of a long run (`rfjax.laws.claims` has the source).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from rfjax.evaluation.intervals import ENDS
from rfjax.laws.fitting import Estimate, Fit
from rfjax.laws.optimal_frontier import OptimalFrontier
from rfjax.laws.run_frontier import on_frontier

FROM = 0.15  # curves are compared from this share of training on
SHARES = np.geomspace(FROM, 1.0, 12)
FEWEST_CHECKPOINTS, FEWEST_SIZES = 4, 3
NEAR_OPTIMUM = 2.0  # a run is compute-optimal if its images are within this factor of the optimal number


@dataclass(frozen=True, kw_only=True, eq=False)
class Collapse:
    """The collapsed curves, or the reason why there are none.

    At each share of training, the logarithms of the curves have a standard deviation over runs; `spread` is the largest
    of these deviations. `noise` is the spread that the scatter of the runs' last losses would cause by itself.
    """

    notes: tuple[str, ...]
    reason: str = ""
    runs: tuple[str, ...] = ()
    params: tuple[float, ...] = ()
    shares: Float[np.ndarray, " shares"] | None = None
    curves: Float[np.ndarray, "runs shares"] | None = None
    spread: Estimate | None = None
    noise: float | None = None


def collapse(points: pd.DataFrame, curves: pd.DataFrame, fitted: Fit, frontier: OptimalFrontier | None) -> Collapse:
    """Normalises one training curve for each size: that of the run whose number of images is nearest to the optimum
    or, without a frontier, of the longest run.

    E is taken from the law `fitted`. `points` has a row for each run, `curves` a row for each checkpoint; both have the
    columns run, loss, params and images.
    """
    chosen, notes = _optimal_runs(points, frontier)
    found = {}
    for run in chosen["run"]:
        rows = curves[(curves["run"] == run) & curves["loss"].notna()].sort_values("images")
        share = rows["images"].to_numpy(float) / float(rows["images"].max()) if len(rows) else np.array([])
        if (share >= FROM).sum() >= FEWEST_CHECKPOINTS and share.min() <= 0.5:
            found[run] = np.log(share), np.log(rows["loss"].to_numpy(float))
    chosen = chosen[chosen["run"].isin(found)]
    if chosen["params"].nunique() < FEWEST_SIZES:
        reason = f"{chosen['params'].nunique()} compute-optimal sizes have them"
        return Collapse(notes=notes, reason=reason)
    start = max(log_x[0] for log_x, _ in found.values())
    at = np.log(SHARES)
    at = at[at >= start - 1e-9]
    losses = np.exp(np.stack([np.interp(at, *found[run]) for run in chosen["run"]]))
    least = float(losses.min())
    offsets = np.concatenate([[fitted.parameters[0]], fitted.draws[:, 0]])
    offsets = np.minimum(offsets, 0.99 * least)  # with E above a loss, the logarithm would not exist
    normal = np.log(losses[None] - offsets[:, None, None])
    normal -= normal[:, :, -1:]
    spreads = normal.std(axis=1, ddof=1).max(axis=1)
    low, high = np.quantile(spreads[1:], ENDS)
    # A curve is divided by its end - E. So the scatter of the end, relative to end - E, moves the whole curve.
    noise = float(fitted.residual_sd * np.median(losses[:, -1]) / (np.median(losses[:, -1]) - offsets[0]))
    return Collapse(
        notes=notes,
        runs=tuple(chosen["run"]),
        params=tuple(chosen["params"].astype(float)),
        shares=np.exp(at),
        curves=np.exp(normal[0]),
        spread=Estimate(value=float(spreads[0]), low=float(low), high=float(high)),
        noise=noise,
    )


def _optimal_runs(points, frontier):
    """Returns (at most one row for each size, notes). The row is the run whose number of images is nearest to the
    optimum; a size without a run within a factor `NEAR_OPTIMUM` is left out. Without a frontier, the row is the size's
    longest run; without FLOPs, all rows are returned."""
    if frontier is None or not {"flops", "images"} <= set(points.columns):
        note = "the longest run of each size; whether these are compute-optimal is not known"
        return (_longest_of_each_size(points) if "flops" in points else points), (note,)
    optimal = frontier.bands(points["flops"].to_numpy(float))["images"]["value"]
    off = np.abs(np.log(points["images"].to_numpy(float) / optimal))
    nearest = points.assign(off=off).sort_values("off", kind="stable").drop_duplicates("params")
    near = nearest[nearest["off"] <= np.log(NEAR_OPTIMUM)]
    far = nearest[nearest["off"] > np.log(NEAR_OPTIMUM)]
    note = f"no run within a factor {NEAR_OPTIMUM:g} of the optimal length: sizes "
    return near, (note + ", ".join(f"{n:.3g}" for n in sorted(far["params"])),) if len(far) else ()


def _longest_of_each_size(points):
    """Returns, for each size, the run that saw the most images. If every size has a run on the frontier, only runs on
    the frontier count."""
    chosen = points[on_frontier(points)]
    chosen = chosen if chosen["params"].nunique() == points["params"].nunique() else points
    return chosen.sort_values("images", kind="stable").drop_duplicates("params", keep="last").sort_values("params")
