"""Factors on an example's loss that depend on its t. The 61 formulations of SD3 have no such factor: their prediction
and their density of t decide how much each t counts (`effective_weight`)."""

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
    """A density of t as a factor. With uniform t the loss then has the same mean, but not the same variance, as with t
    drawn from the density (SD3 eq. 18). diffusers' `compute_loss_weighting_for_sd3` does this for cosmap."""

    density: TimeDensity

    def at(self, t):
        return self.density.pdf(t)
