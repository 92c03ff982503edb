"""Finds the best learning rate of a sweep and its interval, and compares the best rates of several sizes. No JAX here.

The optimum is the vertex of the parabola of log loss in log2 rate through the best rate of the grid and its two
neighbours. For the interval, noise with the spread between seeds is added to the mean log losses many times, and the
vertex is computed again each time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000  # number of draws of the noise between seeds, for the interval
NO_NOISE = "unknown: no rate has two seeds"


@dataclass(frozen=True, kw_only=True)
class RateOptimum:
    """The best learning rate of one model size, from runs at a grid of rates. If `best` is the smallest or the largest
    rate of the grid, there is no optimum, and `rate` is `best`."""

    rate: float  # the vertex of the parabola
    best: float  # the best rate of the grid
    edge: str  # "smallest" or "largest" if `best` is that rate of the grid, else ""
    low: float | None  # the 95 % interval; None if it is not known
    high: float | None
    interval_note: str  # why there is no interval, or which ends of the grid the interval reaches; else ""
    step: float  # ratio, above 1, of `best` and the next rate of the grid; the larger ratio if it has two neighbours


def _vertices(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns, for each row of values at the points `x`, where the parabola through the least value and its two
    neighbours has its vertex. If the least value is at an edge of `x`, the result is that edge."""
    best = rows.argmin(axis=1)
    middle = np.clip(best, 1, max(len(x) - 2, 1))
    if len(x) < 3:
        return x[best]
    (x0, x1, x2), places = (x[middle + shift] for shift in (-1, 0, 1)), np.arange(len(rows))
    y0, y1, y2 = (rows[places, middle + shift] for shift in (-1, 0, 1))
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = np.where(curvature == 0, x1, (x0 + x1) / 2 - left / (2 * curvature))
    return np.where((best == 0) | (best == len(x) - 1), x[best], inner)


def find_optimum(losses: Mapping[float, Sequence[float]], seed: int = 0) -> RateOptimum:
    """Finds the best learning rate of one size. `losses` maps each tried rate to the final losses of its seeds; all
    numbers are positive.

    For the interval, random noise (by `seed`) is added to the mean log losses many times, and the best rate and its
    neighbours are found again each time. The noise has the standard deviation of log loss between seeds, pooled over
    rates. Raises ValueError for fewer than two rates.
    """
    if len(losses) < 2:
        raise ValueError("a sweep needs two rates")
    rates = sorted(losses)
    x = np.log2(rates)
    logs = [np.log(np.asarray(losses[rate], float)) for rate in rates]
    y, counts = np.array([each.mean() for each in logs]), np.array([len(each) for each in logs])
    best = int(np.argmin(y))
    edge = "smallest" if best == 0 else "largest" if best == len(rates) - 1 else ""
    near = x[max(best - 1, 0) : best + 2]
    step = 2 ** float(np.diff(near).max())
    low = high = None
    freedom = int((counts - 1).sum())
    note = NO_NOISE
    if freedom:
        spread = math.sqrt(sum(float(((each - each.mean()) ** 2).sum()) for each in logs) / freedom)
        rng = np.random.default_rng(seed)
        # Few seeds do not determine the spread, so each draw has a spread of its own, by the chi-squared distribution.
        drawn = spread * np.sqrt(freedom / rng.chisquare(freedom, DRAWS))
        noise = drawn[:, None] * rng.standard_normal((DRAWS, len(rates))) / np.sqrt(counts)
        ends = np.quantile(_vertices(x, y + noise), (0.025, 0.975))
        low, high = (float(2**end) for end in ends)
        cut = [name for name, at, end in (("smallest", ends[0], x[0]), ("largest", ends[1], x[-1])) if at == end]
        note = f"reaches the {' and the '.join(cut)} rate of the grid" if cut else ""
    return RateOptimum(
        rate=float(2 ** _vertices(x, y[None])[0]),
        best=float(rates[best]),
        edge=edge,
        low=low,
        high=high,
        interval_note=note,
        step=step,
    )


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Whether the optima of several sizes agree. `verdict` is "agree", "apart" or "undecided"; "" for fewer than two
    sizes."""

    verdict: str
    span: float  # the largest optimum divided by the smallest; nan if a size has none; 1 for fewer than two sizes
    sentence: str  # the verdict and its reason


def compare_optima(optima: Mapping[str, RateOptimum]) -> Agreement:
    """Says whether the best learning rates of two or more sizes agree. `optima` maps a size's name to what
    `find_optimum` returned for it.

    The optima agree if the largest is at most one step of the grid above the smallest. Otherwise they are apart if the
    intervals of the smallest and the largest do not overlap. In all other cases, and if any size's best rate is the
    smallest or the largest of its grid, the verdict is undecided.
    """
    if len(optima) < 2:
        return Agreement(verdict="", span=1.0, sentence="")
    inner = {name: one for name, one in optima.items() if not one.edge}
    edges = [name for name, one in optima.items() if one.edge]
    if len(inner) < 2 or edges:
        at = f"{', '.join(edges)} {'is' if len(edges) == 1 else 'are'} best at an edge of the grid"
        return Agreement(verdict="undecided", span=math.nan, sentence=f"whether sizes agree is open: {at}")
    first, last = (pick(inner, key=lambda name: inner[name].rate) for pick in (min, max))
    span, step = inner[last].rate / inner[first].rate, max(one.step for one in inner.values())
    ends = f"{inner[first].rate:.3g} of {first} to {inner[last].rate:.3g} of {last}"
    shown = f"the optima span a factor of {span:.2f} ({ends})"
    if span <= step:
        sentence = f"sizes agree: {shown}, at most one step of the grid ({step:.3g})"
        return Agreement(verdict="agree", span=span, sentence=sentence)
    high, low = inner[first].high, inner[last].low
    known = high is not None and low is not None
    if known and high < low:
        sentence = (
            f"sizes do not agree: {shown}, more than a step of the grid ({step:.3g}), and the intervals are apart"
        )
        return Agreement(verdict="apart", span=span, sentence=sentence)
    why = "an interval is not known" if not known else "their intervals overlap"
    sentence = f"undecided: {shown}, more than a step of the grid ({step:.3g}), and {why}"
    return Agreement(verdict="undecided", span=span, sentence=sentence)
