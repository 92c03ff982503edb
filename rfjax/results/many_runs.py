"""Decides from which number of runs on faster methods replace slow ones. The cost of refits without each run, and of
covariances of every two runs, grows with the square of the number of runs; permutations and simulations are slow, too.

With more than `MANY_RUNS` runs, asymptotic formulas replace permutations and simulations. A fit is repeated without
each fold of runs, not without each single run. The table has the covariances with some runs only, not of every pair.
With just over 100 runs, the faster methods give nearly the exact numbers: `tests/laws/test_many_runs.py` and
`tests/results/test_results.py` say within how much. Wherever a number from a faster method is printed, the text says
so.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

MANY_RUNS = 100  # up to this many, every number is by permutations, refitted resamples and each run left out in turn
FOLDS = 50  # number of groups of runs, each of which is left out in turn
ANCHORS = 25  # runs whose covariance with every other run is in the table


def are_many(runs: int) -> bool:
    """Whether the faster methods replace the exact ones for this number of runs."""
    return runs > MANY_RUNS


def folds_of(units: Int[np.ndarray, " runs"], seed: int = 0) -> Int[np.ndarray, " runs"]:
    """Divides runs into `FOLDS` folds, or one for each unit if there are fewer units. Returns each run's fold, from 0.

    `units` holds the number of each run's unit. The runs of a unit, such as the branches of a trunk, are in the same
    fold. The folds' numbers of units differ by at most one.
    """
    names, places = np.unique(units, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return (order % min(FOLDS, len(names)))[places.ravel()]
