"""Small images as picture files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rfjax.files import write_whole

TILE = 64  # the least side in pixels


def strip(
    images: Float[np.ndarray, "n h w 3"], gap: int = 0, side: int = TILE
) -> tuple[Float[np.ndarray, "height width 3"], int]:
    """Returns (the images side by side, each enlarged by a whole factor to at least `side` pixels; a tile's side)."""
    scale = max(1, -(-side // images.shape[1]))
    large = np.clip(images, 0.0, 1.0).repeat(scale, axis=1).repeat(scale, axis=2)
    if gap:
        large = np.pad(large, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=1.0)
    return np.concatenate(list(large), axis=1), images.shape[1] * scale


def png_bytes(image: Float[np.ndarray, "height width 3"]) -> bytes:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, image, format="png")
    return buffer.getvalue()


def write_strip(path: Path, images: Float[np.ndarray, "n h w 3"]) -> int:
    """Writes the images as one row of square tiles; returns a tile's side in pixels."""
    picture, tile = strip(images)
    write_whole({path: png_bytes(picture)})
    return tile
