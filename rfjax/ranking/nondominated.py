"""Ranks variants by non-dominated sorting: SD3, section 5.1.

Under one control every variant is a point (alignment, distance). The Pareto-optimal points get rank 1 and are removed;
the Pareto-optimal points of the rest get rank 2, and so on. The code takes the variants from the highest alignment to
the lowest. The rank of each then follows from the least distance in each front so far, so variants need not be compared
in pairs (Jensen 2003, IEEE Trans. on Evolutionary Computation 7).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def nondominated_ranks(
    alignment: Float[np.ndarray, "*sets variants"], distance: Float[np.ndarray, "*sets variants"]
) -> Int[np.ndarray, "*sets variants"]:
    """Returns the rank of each variant by non-dominated sorting; the best rank is 1. Each set of variants is ranked by
    itself. A higher alignment is better, and a lower distance is better.

    A point dominates another if it is no worse in both measures and better in at least one, so equal points share a
    rank. A variant with a measure that is not finite, because it diverged, gets the worst finite variant's rank plus 1.
    """
    shape = alignment.shape
    there = (np.isfinite(alignment) & np.isfinite(distance)).reshape(-1, shape[-1])
    up, down = (
        np.where(there, values.reshape(there.shape), worst)
        for values, worst in ((alignment, -np.inf), (distance, np.inf))
    )
    order = np.lexsort((down, -up))  # every variant that dominates another comes before it
    up, down = (np.take_along_axis(values, order, axis=-1) for values in (up, down))
    sets, variants = there.shape
    # The least distance in each front so far. It rises from front to front, because each point of a front is dominated
    # by a point of the front before.
    least = np.full((sets, variants + 1), np.inf)
    ranks, rows, deepest = np.zeros((sets, variants), int), np.arange(sets), 0
    for place in range(variants):
        here = down[:, place]
        # A point lies behind every front that has a point of no larger distance; equal points share a front.
        rank = (least[:, : deepest + 1] <= here[:, None]).sum(axis=1)
        if place:
            equal = (up[:, place] == up[:, place - 1]) & (here == down[:, place - 1])
            rank = np.where(equal, ranks[:, place - 1] - 1, rank)
        rank = np.where(np.isfinite(here), rank, 0)
        ranks[:, place] = rank + 1
        least[rows, rank] = np.minimum(least[rows, rank], here)
        deepest = max(deepest, int(rank.max(initial=0)) + 1)
    found = np.zeros((sets, variants), int)
    np.put_along_axis(found, order, ranks, axis=-1)
    last = np.where(there, found, 0).max(axis=-1, keepdims=True, initial=0)
    return np.where(there, found, last + 1).reshape(shape)
