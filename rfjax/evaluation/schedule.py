"""One evaluation of a run, and when it is due. No JAX here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rfjax.config import SamplerConfig

# Compiled programs by their purpose. Runs that differ in their formulation alone may share them.
Programs = dict[object, Callable]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation to make: its kind, step and weights (ema, raw or a power-function average), and the record's
    key."""

    kind: str
    step: int
    weights: str
    key: Mapping[str, object]
    sampler: SamplerConfig | None = None  # None for an evaluation without images


def is_due(every: int, step: int, last: bool) -> bool:
    """Whether a step is the last one or a multiple of `every`. If `every` is 0, only the last step is due."""
    return last or (every > 0 and step % every == 0)
