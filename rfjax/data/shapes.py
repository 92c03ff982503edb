"""The corpus `shapes`: scenes of one to four coloured shapes, drawn with anti-aliasing.

The six shapes were chosen to look different even if they are only six pixels wide. For any two, drawn at one place, the
sum of squared differences of their pixels is at least 0.3 of the smaller shape's area (for a disc and a square it would
be 0.1). A shape is the set where its signed distance is negative. A pixel's coverage is 1/2 minus the signed distance
at its centre, in pixels, clipped to [0, 1].
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from rfjax.config import DataConfig
from rfjax.data.embedded import SceneCorpus, scene_corpus
from rfjax.data.scenes import PALETTE, Layout, Vocabulary, between, paint

CLASSES = ("square", "triangle", "cross", "ring", "bar", "pillar")
VOCABULARY = Vocabulary(
    classes=CLASSES,
    plurals=("squares", "triangles", "crosses", "rings", "bars", "pillars"),
    colors=tuple(PALETTE),
    palette=tuple(PALETTE.values()),
    held_out=(0, 1, 2, 3, 4, 5),  # red square, yellow triangle, green cross, blue ring, purple bar, white pillar
)

# Shares of a cell's side: half the side of a shape's box, from the smallest to the largest, and the empty margin.
RADII = (0.325, 0.41)
MARGIN = 0.0625  # at 16 x 16 two shapes are always at least a pixel apart

# Measured on training images of 16 pixels a side. With these, latents have about zero mean and unit variance.
MEAN = (0.285, 0.269, 0.270)
STD = (0.203, 0.178, 0.192)


# Signed distances in pixels, negative inside, at (x right, y down) from the centre of a shape's box of half side r.


def _square(x, y, r):
    return np.maximum(np.abs(x), np.abs(y)) - 0.92 * r


def _triangle(x, y, r):
    """The triangle with its apex up: below the slopes x = +-(y + r) / 2 and above the base."""
    slope = (2.0 * np.abs(x) - (y + r)) / np.sqrt(5.0)
    return np.maximum(y - 0.92 * r, slope)


def _cross(x, y, r):
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - r, y - 0.34 * r), np.maximum(y - r, x - 0.34 * r))


def _ring(x, y, r):
    return np.abs(np.hypot(x, y) - 0.73 * r) - 0.27 * r


def _bar(x, y, r):
    return np.maximum(np.abs(x) - r, np.abs(y) - 0.42 * r)


def _pillar(x, y, r):
    return _bar(y, x, r)


SIGNED_DISTANCES = dict(zip(CLASSES, (_square, _triangle, _cross, _ring, _bar, _pillar), strict=True))


def coverage(
    name: str,
    x: Float[np.ndarray, "*#shape"],
    y: Float[np.ndarray, "*#shape"],
    radius: Float[np.ndarray, "*#shape"] | float,
) -> Float[np.ndarray, "*shape"]:
    """Returns the share of each pixel that the shape `name` covers. `x` and `y` are the offsets of the pixels' centres
    from the centre of the shape's box, `radius` is half the box's side, all in pixels. The arguments are broadcast."""
    return np.clip(0.5 - SIGNED_DISTANCES[name](x, y, radius), 0.0, 1.0)


def renderer(image_size: int):
    """Returns a function (layout, split) → images that are `image_size` pixels a side. It does not use the split."""
    cell = image_size // 2

    def render(layout: Layout, split: str) -> Float[np.ndarray, "n h w 3"]:
        radius = cell * between(*RADII, layout.size)
        room = cell * (0.5 - MARGIN) - radius
        centre = cell / 2 + layout.offset * room[..., None]
        grid = np.arange(cell) + 0.5
        x = (grid - centre[..., 0:1])[..., None, :]
        y = (grid - centre[..., 1:2])[..., :, None]
        alpha = np.zeros((*radius.shape, cell, cell))
        for index, name in enumerate(CLASSES):
            mine = layout.present & (layout.classes == index)
            alpha[mine] = coverage(name, x[mine], y[mine], radius[mine][:, None, None])
        return paint(VOCABULARY, layout, alpha)

    return render


def make(data: DataConfig, seed: int) -> SceneCorpus:
    return scene_corpus(
        data, seed, name="shapes", version="shapes-1", vocabulary=VOCABULARY, mean=MEAN, std=STD, renderer=renderer
    )
