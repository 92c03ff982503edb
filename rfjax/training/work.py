"""`Work` lets the training loop train something other than a run's network on its corpus; `rfjax.tune` uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rfjax.training.state import State
from rfjax.training.step import StepMetrics

Take = Callable[[State, Any], tuple[State, StepMetrics]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A state, a training step and batches, which replace those that follow from the run's config.

    The step must be a function of the state and the batch. A batch must be a function of the run's config, the step and
    the state. Then a resumed run has the same bits as an uninterrupted run.
    """

    abstract: State  # shapes, dtypes and shardings of the state
    first_state: Callable[[], State]
    compile: Callable[[Callable[[str], None]], Take]  # (a function that shows a line) -> the training step
    batches: Callable[[int, Callable[[], State]], Iterator]  # (first step, function that gives the newest state)
    flops_per_image: int | Callable[[int], int]  # as in `monitor.Spending`
    facts: Mapping[str, object]  # further fields of run.json
    alarms: Callable[[Mapping], Iterable[str]] = lambda row: ()  # (row of the curve) -> lines to show
