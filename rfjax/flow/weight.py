"""Factors on an example's loss that depend on its t. The 61 formulations of SD3 have none: their prediction and their
density of t decide which t count (`effective_weight`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rfjax.flow.density import TimeDensity
from rfjax.flow.path import Times


@runtime_checkable
class Weight(Protocol):
    def at(self, t: Times) -> Times | float: ...


@dataclass(frozen=True)
class Unit:
    def at(self, t):
        return 1.0


@dataclass(frozen=True)
class DensityWeight:
    """A density of t as a factor. With uniform t the loss has the mean, but not the variance, of a t drawn from the
    density (SD3 eq. 18), as in diffusers' `compute_loss_weighting_for_sd3` for cosmap."""

    density: TimeDensity

    def at(self, t):
        return self.density.pdf(t)
