"""A perceptual hash of an image, of its centred crops and of their mirror images: it marks the strong low frequencies.

The luminance of a square is reduced to 32 x 32 pixels and transformed by an orthonormal DCT-II. The hash has 256 bits.
Bit 16 u + v is set if the coefficient of vertical frequency u and horizontal frequency v (0 to 15) is above 2 grey
levels. The mean's bit is always 0. The hash ignores colours.

Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", uses 8 x 8 coefficients and compares
each with their median. A fixed level has an advantage: the mirror image's hash follows from the same transform, since
mirroring negates the coefficients of odd v. Rounding to 8 bits and JPEG change a coefficient by about 2 levels, so
noise alone sets hardly any bit.
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
LEVEL = 2.0  # an orthonormal coefficient above this, in grey levels, sets its bit
LEAST_BITS = 32  # hashes with fewer bits set are near each other, whatever the images
CROPS = (1.0, 0.95, 0.9, 0.85, 0.8)  # sides of the centred crops, as shares of the square's; the first is the image
MIRRORED = np.where(np.arange(FREQUENCIES) % 2, -1.0, 1.0)


def views(pixels: UInt8[np.ndarray, "128 128 3"]) -> UInt8[np.ndarray, "views 32"]:
    """Returns packed hashes: one of each crop in `CROPS`, then one of each mirrored crop. A hash with fewer than
    `LEAST_BITS` bits set is returned as zeros."""
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
