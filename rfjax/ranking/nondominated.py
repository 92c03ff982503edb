"""Ranks variants by non-dominated sorting: SD3, section 5.1.

Under one control every variant is a point (alignment, distance). The Pareto-optimal points get rank 1 and are removed;
the Pareto-optimal points of the rest get rank 2, and so on.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def nondominated_ranks(
    alignment: Float[np.ndarray, "*sets variants"], distance: Float[np.ndarray, "*sets variants"]
) -> Int[np.ndarray, "*sets variants"]:
    """Ranks the variants in each set, from 1. A higher alignment is better, and a lower distance.

    A point dominates another if it is no worse in both measures and better in one, so equal points share a rank. A
    variant that lacks a number, because it diverged, gets the rank after the worst of the others.
    """
    there = np.isfinite(alignment) & np.isfinite(distance)
    up, down = np.where(there, alignment, -np.inf), np.where(there, distance, np.inf)
    no_worse = (up[..., :, None] >= up[..., None, :]) & (down[..., :, None] <= down[..., None, :])
    dominates = no_worse & ~np.swapaxes(no_worse, -1, -2)  # [*sets, dominating, dominated]
    ranks = np.zeros(alignment.shape, int)
    left, rank = there, 0
    while left.any():
        rank += 1
        front = left & ~(dominates & left[..., :, None]).any(axis=-2)
        ranks[front] = rank
        left = left & ~front
    return np.where(there, ranks, ranks.max(axis=-1, keepdims=True, initial=0) + 1)
