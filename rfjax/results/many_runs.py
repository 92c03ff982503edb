"""Says what changes if there are many runs. With more than `MANY_RUNS`, asymptotic formulas replace permutations and
simulations, folds replace refits without each run, and the table no longer has the covariance of every two runs. At 100
runs the formulas and folds agree with the exact ways to all printed digits (`tests/laws/test_many_runs.py`); the cost
of the exact ways grows with the square of the runs. A number that is computed by a formula or by folds says so where it
is printed.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

MANY_RUNS = 100  # up to this many, every number is by permutations, refitted resamples and each run left out in turn
FOLDS = 50  # that leaving out takes
ANCHORS = 25  # runs whose covariances with every other the table keeps


def are_many(runs: int) -> bool:
    """Whether this number of runs is treated by formulas and folds."""
    return runs > MANY_RUNS


def folds_of(units: Int[np.ndarray, " runs"], seed: int = 0) -> Int[np.ndarray, " runs"]:
    """The fold of each run, from 0: `FOLDS` folds of equally many units, such as trunks, whose runs stay together."""
    names, places = np.unique(units, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return (order % min(FOLDS, len(names)))[places.ravel()]
