"""The corpus `digits`: scenes as in `shapes`, but with handwritten digits as objects.

The digits are the 1,797 scans in scikit-learn, of 8 x 8 pixels and 17 grey levels (the test part of Alpaydin & Kaynak
1998, "Optical recognition of handwritten digits", UCI). They are coloured and placed in the picture. A fixed hash of
the scan's number sets a quarter of the scans aside. Validation and ground truth show only these; training shows only
the others.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float

from rfjax.config import DataConfig
from rfjax.data import hashing
from rfjax.data.embedded import SceneCorpus, scene_corpus
from rfjax.data.scenes import PALETTE, Layout, Vocabulary, paint

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOCABULARY = Vocabulary(
    classes=CLASSES,
    plurals=("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines"),
    colors=tuple(PALETTE),
    palette=tuple(PALETTE.values()),
    held_out=tuple(digit % len(PALETTE) for digit in range(10)),  # red zero, yellow one, green two, ...
)

SCAN_SIDE = 8
VALIDATION_SHARE = 0.25

# Measured on training images of 20 pixels a side. With these, latents have about zero mean and unit variance.
MEAN = (0.261, 0.249, 0.251)
STD = (0.163, 0.141, 0.152)


@cache
def scans(split: str) -> tuple[Float[np.ndarray, "digit_scans 8 8"], ...]:
    """The scans of a split: for each digit 0 to 9 an array of its scans, 8 x 8, whose entries in [0, 1] say how much of
    a pixel ink covers."""
    from sklearn.datasets import load_digits  # slow to import, and only this corpus needs it

    bunch = load_digits()
    u = hashing.uniforms(hashing.key("digits", "split"), np.arange(len(bunch.target)), 1)[:, 0]
    chosen = (u < VALIDATION_SHARE) == (split == "validation")
    return tuple(bunch.images[chosen & (bunch.target == digit)] / 16.0 for digit in range(10))


def drawn_side(cell: int) -> int:
    """Returns the side, in pixels, at which a scan is drawn in a cell whose side is `cell`. In a picture of 20 x 20
    pixels a cell's side is 10, and scans are drawn with the side of the stored scans, 8."""
    return int(0.8 * cell + 0.7)


@cache
def drawn_scans(split: str, side: int) -> tuple[Float[np.ndarray, "digit_scans side side"], ...]:
    """Returns `scans(split)` with each scan resampled bilinearly to `side` x `side` pixels."""
    matrix = resampling(np.full(1, SCAN_SIDE / 2), SCAN_SIDE, side, SCAN_SIDE / side)[0]
    return tuple(matrix @ group @ matrix.T for group in scans(split))


def resampling(
    centre: Float[np.ndarray, " n"], source: int, target: int, step: float
) -> Float[np.ndarray, "n target source"]:
    """Makes matrices [target, source] that resample a row of `source` pixels at `target` points.

    There is a matrix for each entry of `centre`, which is the middle of that matrix's target points. The points are
    `step` source pixels apart; source pixel i has its centre at i + 1/2. The filter is a triangle of half-width
    max(step, 1), so shrinking does not alias. Pixels beyond the edge count as zero.
    """
    places = centre[:, None] + (np.arange(target) + 0.5 - target / 2) * step
    width = max(step, 1.0)
    distance = np.abs(places[:, :, None] - (np.arange(source) + 0.5)) / width
    return np.maximum(0.0, 1.0 - distance) / width


def renderer(image_size: int):
    """Returns a function (layout, split) → images that are `image_size` pixels a side."""
    cell = image_size // 2
    side = drawn_side(cell)
    room = cell - 1 - side  # one empty line of pixels keeps two digits apart

    def render(layout: Layout, split: str) -> Float[np.ndarray, "n h w 3"]:
        groups = drawn_scans(split, side)
        alpha = np.zeros((*layout.classes.shape, cell, cell))
        # A scan is moved by whole pixels, so that moving does not blur it.
        shift = ((room + 1) * (layout.offset + 1.0) / 2.0).astype(int)
        for n, k in np.argwhere(layout.present).tolist():
            group = groups[layout.classes[n, k]]
            x, y = shift[n, k]
            alpha[n, k, y : y + side, x : x + side] = group[int(layout.variant[n, k] * len(group))]
        return paint(VOCABULARY, layout, alpha)

    return render


def make(data: DataConfig, seed: int) -> SceneCorpus:
    return scene_corpus(
        data, seed, name="digits", version="digits-1", vocabulary=VOCABULARY, mean=MEAN, std=STD, renderer=renderer
    )
