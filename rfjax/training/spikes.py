"""Warns of spikes and of a climbing loss, because such a run may be about to diverge.

The detector uses only the numbers that every step returns anyway. Its memory is part of a checkpoint's facts, so a
resumed run warns at the same steps as an uninterrupted run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NotRequired, TypedDict

import numpy as np

HISTORY = 128  # steps that are remembered
LEAST = 32  # steps before the first warning; the loss's level is its median over this many finite steps
DEVIATIONS = 6.0  # a spike is more than this many deviations above the median, in logarithms
# A spike is at least exp(6 x 0.27) = 5 times the median: in healthy runs on real pictures, in batches of 16, the
# gradient norm reached 4.2 times.
SMALLEST_DEVIATION = 0.27
CLIMB = 1.5  # the loss has climbed if its level is more than this many times the lowest level so far
QUIET = 128  # for this many steps after a warning no other warning of the same kind is given


class Memory(TypedDict):
    """The detector's memory. `values` has the last finite values of each name, `quiet` the step of the last warning of
    each kind, and `lowest` the lowest median of the loss so far."""

    values: dict[str, list[float]]
    quiet: dict[str, int]
    lowest: NotRequired[float | None]


class SpikeDetector:
    """Warns of a value far above the values before (a spike), and of a loss whose median has climbed."""

    def __init__(self, memory: Memory | None = None):
        memory = memory or {"values": {}, "quiet": {}}
        self._values = {name: list(values) for name, values in memory["values"].items()}
        self._quiet, self._lowest = dict(memory["quiet"]), memory.get("lowest")

    def memory(self) -> Memory:
        return {
            "values": {name: list(values) for name, values in self._values.items()},
            "quiet": dict(self._quiet),
            "lowest": self._lowest,
        }

    def see(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Takes the values of a step by name; one of the names is "loss". Returns warnings, as sentences.

        Values that are not finite are ignored: such a step was skipped, and training reports that separately.
        """
        warnings = []
        for name, value in values.items():
            if not math.isfinite(value):
                continue
            before = self._values.setdefault(name, [])
            middle, limit = _limit(before)
            if len(before) >= LEAST and value > limit and self._speaks(f"spike of {name}", step):
                warnings.append(
                    f"the {name} is {value:.4g}, {value / middle:.3g} times its median over the {len(before)} steps "
                    "before"
                )
            before.append(value)
            del before[:-HISTORY]
        return warnings + self._climb(step)

    def _climb(self, step: int) -> list[str]:
        losses = self._values.get("loss", [])[-LEAST:]
        if len(losses) < LEAST:
            return []
        level = float(np.median(losses))
        self._lowest = level if self._lowest is None else min(level, self._lowest)
        if level <= CLIMB * self._lowest or not self._speaks("climb", step):
            return []
        return [f"the loss has climbed: its median over {LEAST} steps is {level:.4g}, and was {self._lowest:.4g}"]

    def _speaks(self, kind: str, step: int) -> bool:
        """Whether a warning of this kind (spike or climb) may be given at `step`; if so, notes it. After a warning,
        none of the same kind is given for some steps."""
        last = self._quiet.get(kind)
        if last is not None and step < last + QUIET:
            return False
        self._quiet[kind] = step
        return True


def _limit(values: list[float]) -> tuple[float, float]:
    """Returns (the median of the values, the threshold above which a new value is a spike)."""
    if not values:
        return math.nan, math.inf
    logs = np.log(np.maximum(values, np.finfo(float).tiny))
    middle = float(np.median(logs))
    deviation = max(1.4826 * float(np.median(np.abs(logs - middle))), SMALLEST_DEVIATION)
    return math.exp(middle), math.exp(min(middle + DEVIATIONS * deviation, 700.0))
