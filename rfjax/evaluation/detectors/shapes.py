"""The detector of `shapes`: blobs matched against the six shapes by least squares.

A blob's area gives the radius of each candidate shape, and its centroid gives the place. So one template per shape is
compared, without a search. The score is a softmax over the six errors and a constant error for "none of these". So the
score is low both for a blob that resembles no shape and for a blob that resembles two.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, Int

from rfjax.data.shapes import CLASSES, RADII, VOCABULARY, coverage
from rfjax.evaluation.detectors.segmentation import Blobs, collect, find_blobs

MASK_ALPHA = 0.5
REJECT_ERROR = 0.25  # the error of "none of these", per unit of area: a match with this error scores one half at most
TEMPERATURE = 0.035
SIZE_TOLERANCE = 1.15  # the factor by which a radius may lie outside the drawn sizes without a penalty
SIZE_WEIGHT = 4.0  # factor on the squared logarithm of the radius over the nearest radius without a penalty
SMALLEST_SCORE = 0.05


def detect(images: Float[np.ndarray, "n h w 3"]) -> list[dict]:
    """Finds shapes in images in [0, 1] of 16 to 32 pixels a side. The docstring of the package `detectors` describes
    the result."""
    blobs, best, score = find(images)
    return collect(len(images), blobs, best, score, CLASSES, VOCABULARY.colors, SMALLEST_SCORE)


def find(
    images: Float[np.ndarray, "n h w 3"],
) -> tuple[Blobs, Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Returns (the blobs of the images, the best class of each blob, the score of that class in [0, 1])."""
    images = np.asarray(images)
    cell = images.shape[1] // 2
    blobs = find_blobs(images, np.array(VOCABULARY.palette), side=cell + 4, mask_alpha=MASK_ALPHA)
    errors = match_errors(blobs, cell)
    logits = np.concatenate([-errors, np.full((len(errors), 1), -REJECT_ERROR)], axis=1) / TEMPERATURE
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = weights[:, :-1] / weights.sum(axis=1, keepdims=True)
    best = np.argmin(errors, axis=1)
    return blobs, best, scores[np.arange(len(best)), best]


def match_errors(blobs: Blobs, cell: int) -> Float[np.ndarray, "m shapes"]:
    """Computes the squared error of each blob's picture against each shape, in units of the blob's area.

    The error includes the residual of the blob's colour and a penalty on impossible sizes.
    """
    side = blobs.window.shape[1]
    grid = np.arange(side) + 0.5
    errors = np.empty((len(blobs.image), len(CLASSES)))
    low, high = RADII[0] * cell / SIZE_TOLERANCE, RADII[1] * cell * SIZE_TOLERANCE
    local = blobs.centroid - blobs.origin
    for index, (name, (area, fall)) in enumerate(zip(CLASSES, moments(cell), strict=True)):
        radius = np.sqrt(blobs.area / area)
        x = grid[None, None, :] - local[:, 0, None, None]
        y = grid[None, :, None] - (local[:, 1] - fall * radius)[:, None, None]
        template = coverage(name, x, y, np.maximum(radius, 1e-3)[:, None, None])
        picture = np.sum((blobs.window - template) ** 2, axis=(1, 2)) / np.maximum(blobs.area, 1e-9)
        misfit = np.log(np.maximum(radius, 1e-3) / np.clip(radius, low, high))
        errors[:, index] = picture + SIZE_WEIGHT * misfit**2
    return errors + blobs.residual[:, None]


@cache
def moments(cell: int) -> tuple[tuple[float, float], ...]:
    """Returns for each shape of radius r its area in units of r^2, and how far its centroid lies below its centre, in
    units of r.

    Both are measured on a drawing at the mean of the smallest and the largest radius, because anti-aliasing rounds
    corners.
    """
    radius = cell * sum(RADII) / 2
    fine = (np.arange(cell * 16) + 0.5) / 16 - cell / 2
    x, y = fine[None, :], fine[:, None]
    result = []
    for name in CLASSES:
        alpha = coverage(name, x, y, radius)
        total = alpha.sum()
        result.append((float(total / 256 / radius**2), float((alpha * y).sum() / total / radius)))
    return tuple(result)
