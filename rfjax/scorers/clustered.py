"""Computes the mean of scores over images, with a standard error that is clustered by prompt. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64


def mean_and_stderr(scores: Sequence[float], captions: Sequence[str]) -> tuple[float, float]:
    """Returns the mean over images and its standard error.

    The standard error is clustered by caption, because a caption's images depend on each other. For G captions the
    standard error is sqrt(G / (G - 1) * sum over captions of (sum of residuals)^2) / images; for a single caption it is
    nan.
    """
    values: Float64[np.ndarray, " n"] = np.asarray(scores, np.float64)
    mean = float(values.mean())
    _, group = np.unique(np.asarray(captions, dtype=object).astype(str), return_inverse=True)
    sums = np.bincount(group, weights=values - mean)
    if (groups := len(sums)) < 2:
        return mean, math.nan
    return mean, math.sqrt(groups / (groups - 1) * float(sums @ sums)) / len(values)
