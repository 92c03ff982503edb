"""CMMD: the squared maximum mean discrepancy of CLIP embeddings under a Gaussian kernel. No torch here.

This follows the published code of Jayasumana et al., "Rethinking FID" (arXiv 2401.09603). The embeddings are those of
CLIP ViT-L/14@336, scaled to length 1. The kernel is k(x, y) = exp(-|x - y|^2 / (2 sigma^2)) with sigma = 10. The
estimator is the biased one: its means include each embedding's pair with itself. The result is multiplied by 1000.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

SIGMA = 10.0
SCALE = 1000.0
BLOCK = 2048  # rows at once; 2048 x 2048 kernel values take 32 MB


def cmmd(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Computes the CMMD of two sets of unit vectors, which is 0 for equal sets. The sums are in float64, because terms
    that differ only in the fourth digit are subtracted."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return float(SCALE * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y)))


def _mean_kernel(x, y):
    squares = np.square(y).sum(1)
    total = 0.0
    for start in range(0, len(x), BLOCK):
        rows = x[start : start + BLOCK]
        distances = np.square(rows).sum(1)[:, None] + squares - 2 * rows @ y.T
        total += np.exp(-np.maximum(distances, 0) / (2 * SIGMA**2)).sum()
    return total / (len(x) * len(y))
