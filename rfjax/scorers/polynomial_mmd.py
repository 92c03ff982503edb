"""JEDi's distance: the squared maximum mean discrepancy of features under a polynomial kernel. No torch here.

This follows the published code of Luo et al., "Beyond FVD" (arXiv 2410.05203). The kernel is k(x, y) = (x . y / d)^2
for features of d numbers. The estimator is the biased one: its means include each feature vector's pair with itself.
The result is multiplied by 100.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

DEGREE = 2
SCALE = 100.0
BLOCK = 2048  # rows at once


def polynomial_mmd(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Computes in float64 the distance of two sets of features; it is 0 for equal sets."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return float(SCALE * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y)))


def _mean_kernel(x, y):
    blocks = (x[start : start + BLOCK] @ y.T / x.shape[1] for start in range(0, len(x), BLOCK))
    return sum((block**DEGREE).sum() for block in blocks) / (len(x) * len(y))
