"""The detector of `digits`: blobs compared with every training scan, by kernel ridge regression.

A blob's picture is brought to the scans' scale and centred on its centroid to a fraction of a pixel. The training
scans, drawn at the image's size, are treated in the same way. Blurred copies of them are added, so that a drawing need
not be crisp. The class comes from a regression on one-hot targets, with a Gaussian kernel between picture and scans.
The nearest scan tells how much the picture resembles any digit. The score is the product of two sigmoids. The first
depends on the lead of the best class over the second class. The second sigmoid depends on the sum of two squared
errors: of the picture against the nearest scan, and of the blob's colours against a palette colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy.linalg
import scipy.ndimage
from jaxtyping import Float, Int

from rfjax.data.digits import CLASSES, SCAN_SIDE, VOCABULARY, drawn_scans, drawn_side, resampling
from rfjax.evaluation.detectors.segmentation import Blobs, collect, find_blobs

MASK_ALPHA = 0.25  # low, because thin strokes fall apart above it
PICTURE_SIDE = 12
KERNEL_SCALE = 0.3  # the kernel is exp(-KERNEL_SCALE * squared distance of pictures)
RIDGE = 0.05
BLUR = 0.6  # pixels, of the blurred copies

LEAD_TEMPERATURE = 0.015
REJECT_ERROR = 0.25  # the squared error, per unit of area, that halves the score
REJECT_TEMPERATURE = 0.035
SMALLEST_SCORE = 0.05


@dataclass(frozen=True)
class Classifier:
    """The kernel ridge regression that classifies digits. `known` are the known pictures. `coefficients` are the
    factors on the kernel between a new picture and each known picture, for each class."""

    known: Float[np.ndarray, "k pixels"]
    coefficients: Float[np.ndarray, "k 10"]

    def __call__(self, pictures: Float[np.ndarray, "m pixels"]):
        """Returns two arrays for m pictures: [m, 10], with a value for each class that is near 1 if the picture shows
        this class, and [m], the squared distance to the nearest known picture."""
        distance = _squared_distances(pictures, self.known)
        return np.exp(-KERNEL_SCALE * distance) @ self.coefficients, distance.min(axis=1)


def detect(images: Float[np.ndarray, "n h w 3"]) -> list[dict]:
    """Finds digits in images in [0, 1] of 16 to 32 pixels a side. The docstring of the package `detectors` describes
    the result."""
    images = np.asarray(images)
    blobs, best, score = find(images)
    return collect(len(images), blobs, best, score, CLASSES, VOCABULARY.colors, SMALLEST_SCORE)


def find(images: Float[np.ndarray, "n h w 3"]) -> tuple[Blobs, Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Returns (the blobs of the images, the likeliest class of each blob, the score of that class in [0, 1])."""
    cell = images.shape[1] // 2
    blobs = find_blobs(images, np.array(VOCABULARY.palette), side=cell + 4, mask_alpha=MASK_ALPHA)
    pictures = canonical(blobs.window, blobs.centroid - blobs.origin, cell)
    values, distance = classifier(cell)(pictures)
    error = distance / np.maximum(pictures.sum(axis=1), 1e-9) + blobs.residual
    second, first = np.sort(values, axis=1)[:, -2:].T
    score = _sigmoid((first - second) / LEAD_TEMPERATURE) * _sigmoid((REJECT_ERROR - error) / REJECT_TEMPERATURE)
    return blobs, np.argmax(values, axis=1), score


def canonical(
    windows: Float[np.ndarray, "m side side"], centroid: Float[np.ndarray, "m 2"], cell: int
) -> Float[np.ndarray, "m pixels"]:
    """Resamples windows to pictures at the scale of the stored scans, with the blob's centroid in the middle.
    `centroid` is (x, y) in the window."""
    step = drawn_side(cell) / SCAN_SIDE
    across = resampling(centroid[:, 0], windows.shape[2], PICTURE_SIDE, step)
    down = resampling(centroid[:, 1], windows.shape[1], PICTURE_SIDE, step)
    return (down @ windows @ across.transpose(0, 2, 1)).reshape(len(windows), PICTURE_SIDE**2)


@cache
def classifier(cell: int) -> Classifier:
    """Returns the `Classifier` for digits drawn in cells of `cell` pixels a side. It is fitted to the training scans
    only, once per process and size; this takes seconds."""
    groups = drawn_scans("train", drawn_side(cell))
    targets = np.repeat(np.eye(len(CLASSES)), [len(group) for group in groups], axis=0)
    margin = (cell + 4 - drawn_side(cell)) // 2
    clean = np.pad(np.concatenate(groups), ((0, 0), (margin, margin), (margin, margin)))
    copies = (clean, scipy.ndimage.gaussian_filter(clean, (0, BLUR, BLUR)))
    known = np.concatenate([canonical(copy, _centroids(copy), cell) for copy in copies])
    kernel = np.exp(-KERNEL_SCALE * _squared_distances(known, known))
    kernel[np.diag_indices(len(kernel))] += RIDGE
    factor = scipy.linalg.cho_factor(kernel, overwrite_a=True)
    return Classifier(known, scipy.linalg.cho_solve(factor, np.tile(targets, (len(copies), 1))))


def _centroids(windows):
    grid = np.arange(windows.shape[1]) + 0.5
    moments = np.stack([windows.sum(axis=1) @ grid, windows.sum(axis=2) @ grid], axis=1)
    return moments / windows.sum(axis=(1, 2))[:, None]


def _squared_distances(a, b):
    squares = np.sum(a**2, axis=1)[:, None] - 2.0 * a @ b.T + np.sum(b**2, axis=1)
    return np.maximum(squares, 0.0)


def _sigmoid(x):
    return 0.5 * (1.0 + np.tanh(0.5 * x))
