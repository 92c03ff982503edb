"""Estimates what tuning does to a law of pretraining, from measures of each size before and after the tuning.

The law of pretraining is fitted without tuned runs (`limits.ROLES`). Here a line is fitted to a measure's changes
(after minus before) against log10 of the pretraining FLOPs; of the validation loss, the logarithm is taken. The line
gives the mean change over the sizes, and a slope. If the slope's interval excludes zero, tuning changes the law's
slope. If only the interval of the mean change excludes zero, the intercept alone is shown to move. If neither interval
excludes zero, no change is shown. No JAX here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float
from scipy import stats

LOSS = "validation loss"
FEWEST_SIZES = 3  # a line through fewer sizes has no interval
NONE_TUNED: Mapping[str, Sequence[Change]] = MappingProxyType({})  # {tuning method: changes}, if no run is tuned


@dataclass(frozen=True)
class Change:
    """A measure of a run before and after it was tuned, each as (value, low, high) with its 95 % interval."""

    run: str
    params: int
    flops: float  # of the pretraining
    measure: str
    before: tuple[float, float, float]
    after: tuple[float, float, float]


@dataclass(frozen=True)
class Shift:
    """How a measure's change depends on size: its mean over the sizes, and its slope against log10 of the FLOPs."""

    measure: str
    sizes: int
    slope_before: float  # of the measure (of log loss) against log10 of the FLOPs, before the tuning
    slope_after: float
    mean_change: tuple[float, float, float] | None  # with a 95 % interval; None for fewer than `FEWEST_SIZES` sizes
    slope_change: tuple[float, float, float] | None
    before: tuple[float, float, float] | None = None  # the slopes again, with 95 % intervals
    after: tuple[float, float, float] | None = None

    @property
    def verdict(self) -> str:
        """Says in words whether tuning changes the law's slope, only its intercept, or neither."""
        if self.mean_change is None or self.slope_change is None:
            return f"undecided: an interval needs {FEWEST_SIZES} sizes"
        slope, mean = (not low <= 0 <= high for _, low, high in (self.slope_change, self.mean_change))
        if slope:
            return "the slope changes"
        return "only the intercept moves" if mean else "no change is shown"


def line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[tuple[float, float, float], ...] | None:
    """Fits the least-squares line. Returns ((value at the mean of x, low, high), (slope, low, high)).

    The 95 % intervals come from the scatter about the line, by Student's t with n - 2 degrees of freedom. Returns None
    for fewer than `FEWEST_SIZES` different x.
    """
    count, spread = len(x), float(np.square(x - np.mean(x)).sum())
    if len(np.unique(x)) < FEWEST_SIZES:
        return None
    slope = float(((x - x.mean()) * y).sum() / spread)
    rest = y - y.mean() - slope * (x - x.mean())
    error = math.sqrt(float(np.square(rest).sum()) / (count - 2))
    t = float(stats.t.ppf(0.975, count - 2))
    widths = t * error / math.sqrt(count), t * error / math.sqrt(spread)
    return tuple(
        (value, value - width, value + width) for value, width in zip((float(y.mean()), slope), widths, strict=True)
    )


def is_loss(measure: str) -> bool:
    """Returns whether a measure is a loss, whose logarithm is fitted."""
    return measure == LOSS


def shifts(changes: Sequence[Change]) -> list[Shift]:
    """Returns the shift of each measure that was taken at two sizes or more. Of the validation loss the logarithm is
    taken, as in a power law; scores are taken as they are."""
    found = []
    for measure, rows in by_measure(changes).items():
        if len({row.flops for row in rows}) < 2:
            continue
        scale = np.log if is_loss(measure) else np.asarray
        x = np.log10([row.flops for row in rows])
        before, after = (scale(np.array([getattr(row, end)[0] for row in rows])) for end in ("before", "after"))
        slopes = [float(np.polyfit(x, y, 1)[0]) for y in (before, after)]
        fitted = line(x, after - before) or (None, None)
        laws = [(line(x, y) or (None, None))[1] for y in (before, after)]
        found.append(Shift(measure, len({row.flops for row in rows}), *slopes, *fitted, *laws))
    return found


def by_measure(changes: Sequence[Change]) -> dict[str, list[Change]]:
    """Groups the changes by their measure."""
    groups: dict[str, list[Change]] = {}
    for change in changes:
        groups.setdefault(change.measure, []).append(change)
    return groups


def as_plain(changes: Sequence[Change]) -> dict[str, list[dict]]:
    """The changes and their shifts as values for JSON."""
    found = [{**asdict(shift), "verdict": shift.verdict} for shift in shifts(changes)]
    return {"changes": [asdict(change) for change in changes], "shifts": found}
