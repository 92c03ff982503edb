"""A perceptual hash: the signs of an image's lowest cosine frequencies, of it whole, cropped and mirrored.

The luminance of a square is reduced to 32 x 32 pixels and transformed by an orthonormal DCT-II. Bit 16 u + v of
the 256 says that the coefficient of vertical frequency u and horizontal frequency v (0 to 15) is above 2; the
mean's bit
is 0. (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", compares with the median
of 8 x 8
coefficients instead; a fixed level makes the hash of a mirrored image follow from the same transform, since mirroring
negates odd v, and two grey levels are about what 8-bit rounding and JPEG move a coefficient by, so that what is
flat in both of two copies is 0 in both.) It sees no colours.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.fft import dctn

SIDE = 128  # pixels of the square that is hashed
REDUCED = 32
FREQUENCIES = 16
BITS = FREQUENCIES**2
LEVEL = 2.0  # grey levels, of an orthonormal coefficient
LEAST_BITS = 32  # a hash with fewer is near every other such hash, and says too little to compare
CROPS = (
    1.0,
    0.95,
    0.9,
    0.85,
    0.8,
)  # sides of the centred crops, as shares of the square's; the first is the image itself
MIRRORED = np.where(np.arange(FREQUENCIES) % 2, -1.0, 1.0)


def views(pixels: UInt8[np.ndarray, "128 128 3"]) -> UInt8[np.ndarray, "views 32"]:
    """The packed hashes of an image: of each of `CROPS`, then of each mirrored; zeros for one that says too little."""
    grey = Image.fromarray(pixels).convert("L")
    coefficients = np.stack([_coefficients(grey, crop) for crop in CROPS])
    both = np.concatenate([coefficients, coefficients * MIRRORED])
    bits = (both > LEVEL).reshape(len(both), BITS)
    bits[:, 0] = False
    bits[bits.sum(axis=1) < LEAST_BITS] = False
    return np.packbits(bits, axis=1)


def _coefficients(grey: Image.Image, crop: float) -> Float[np.ndarray, "16 16"]:
    edge = SIDE * (1 - crop) / 2
    small = grey.resize((REDUCED, REDUCED), Image.Resampling.LANCZOS, box=(edge, edge, SIDE - edge, SIDE - edge))
    return dctn(np.asarray(small, np.float64), norm="ortho")[:FREQUENCIES, :FREQUENCIES]
