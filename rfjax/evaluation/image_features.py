"""A fixed description of small images, for distances between sets of them. No JAX here.

A study of large images uses the features of a frozen network: SD3 compares formulations by distances of CLIP features.
For images of 16 to 32 pixels a side no such network is meaningful. So the features here are formulas: which colours are
where, and how strong, how inclined and how sharp the edges are. The features are neither learnt nor tuned to a model.
Distances between their distributions serve to compare the models of one study on one corpus; the distances are not FID.

`NAME` is the name and version of these features. A change of a feature must change the name, and distances under
different names are never compared.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from rfjax.errors import ConfigError

NAME = "grid-colour-edge-1"
FINE, COARSE = 4, 2  # cells a side, for luminance and for all other features
LUMINANCE = (0.299, 0.587, 0.114)  # of R, G, B
# Red against green, yellow against blue.
OPPONENTS = ((1.0, -1.0, 0.0), (0.5, 0.5, -1.0))

# Group of features -> (numbers per cell, cells a side, the divisor of each number). The divisor is about the number's
# standard deviation over scenes of `shapes`, so that no group dominates the distance because of its unit.
GROUPS = {
    "luminance": (1, FINE, 0.10),  # mean
    "opponents": (2, COARSE, 0.12),  # means
    "edges": (2, COARSE, 0.06),  # root mean square slope along x, and along y
    "inclination": (1, COARSE, 0.010),  # signed root of the mean product of the two slopes
    "sharpness": (1, COARSE, 0.045),  # root mean square of the Laplacian; a blur lowers it first
    "colour edges": (2, COARSE, 0.10),  # root mean square slope of the opponents
}
SIZE = sum(numbers * cells * cells for numbers, cells, _ in GROUPS.values())


def features(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
    """Computes each image's `SIZE` = 48 features, in float64. Images must be at least 8 pixels high and wide.

    Values 0 to 255 stand for [0, 1]. Each feature describes one cell of a grid; the edge of a cell may cut a pixel.
    Beyond the border of an image the last pixel is repeated. Raises `ConfigError` for smaller images.
    """
    if min(images.shape[1:3]) < 2 * FINE:
        raise ConfigError(
            f"images are {images.shape[1]} x {images.shape[2]} pixels; the features need at least {2 * FINE} a side"
        )
    colours = images.astype(np.float64) / 255.0
    luminance, opponents = colours @ np.array(LUMINANCE), colours @ np.array(OPPONENTS).T
    x, y = _slopes(luminance)
    along_x, along_y = _slopes(opponents)
    found = {
        "luminance": [_cells(luminance, FINE)],
        "opponents": [_cells(opponents[..., i], COARSE) for i in range(len(OPPONENTS))],
        "edges": [np.sqrt(_cells(slope**2, COARSE)) for slope in (x, y)],
        "inclination": [_signed_root(_cells(x * y, COARSE))],
        "sharpness": [np.sqrt(_cells(_laplacian(luminance) ** 2, COARSE))],
        "colour edges": [np.sqrt(_cells((along_x**2 + along_y**2)[..., i], COARSE)) for i in range(len(OPPONENTS))],
    }
    return np.concatenate([part / GROUPS[name][2] for name, parts in found.items() for part in parts], axis=1)


def _slopes(values):
    """Returns (the slopes of `values` along x, the slopes along y) at each pixel, as central differences."""
    padded = _padded(values)
    return (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2, (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2


def _laplacian(values):
    padded = _padded(values)
    around = padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2] + padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1]
    return around / 4 - values


def _padded(values):
    return np.pad(values, [(0, 0), (1, 1), (1, 1)] + [(0, 0)] * (values.ndim - 3), mode="edge")


def _cells(values, cells):
    """Computes the means of `values` over `cells` x `cells` parts of equal area, in reading order: [n, cells²]."""
    rows, columns = (_shares(size, cells) for size in values.shape[1:])
    return (rows @ values @ columns.T).reshape(len(values), -1)


def _shares(size, cells):
    """Returns, for one axis of `size` pixels, the share of each cell that each pixel covers: [cells, size]."""
    edges = np.arange(cells + 1)[:, None] * size / cells
    covered = np.clip(np.arange(1, size + 1), edges[:-1], edges[1:]) - np.clip(np.arange(size), edges[:-1], edges[1:])
    return covered * cells / size


def _signed_root(values):
    return np.sign(values) * np.sqrt(np.abs(values))
