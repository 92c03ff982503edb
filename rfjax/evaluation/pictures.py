"""Small images and clips as picture files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from rfjax.files import write_whole

TILE = 64  # the least height of a tile in pixels
FRAME_MILLISECONDS, LAST_MILLISECONDS = 300, 900  # how long an animation shows a frame, and its last frame


def strip(
    images: Float[np.ndarray, "n h w 3"], gap: int = 0, side: int = TILE
) -> tuple[Float[np.ndarray, "height width 3"], int]:
    """Puts images side by side into one picture, each enlarged by a whole factor to a tile at least `side` pixels high,
    with `gap` white pixels to the right of each tile. Returns (the picture, the height of a tile in pixels)."""
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
    """Writes the images side by side as one PNG; returns an enlarged image's height in pixels."""
    picture, tile = strip(images)
    write_whole({path: png_bytes(picture)})
    return tile


def write_clips(still: Path, playing: Path, clips: Float[np.ndarray, "n frames h w 3"]) -> int:
    """Writes clips side by side in two files: a PNG with the frames below each other, and a lossless animated WebP.
    Returns an enlarged frame's height in pixels."""
    rows = [strip(frame) for frame in clips.swapaxes(0, 1)]
    pictures, tile = [picture for picture, _ in rows], rows[0][1]
    write_whole({still: png_bytes(np.concatenate(pictures)), playing: webp_bytes(pictures)})
    return tile


def webp_bytes(frames: Sequence[Float[np.ndarray, "height width 3"]], milliseconds: int = FRAME_MILLISECONDS) -> bytes:
    """Returns a lossless animated WebP of frames in [0, 1]. It plays forever. Each frame is shown for `milliseconds`,
    the last frame for at least `LAST_MILLISECONDS`."""
    first, *others = (Image.fromarray(np.round(255 * frame).astype(np.uint8)) for frame in frames)
    times = [milliseconds] * len(others) + [max(milliseconds, LAST_MILLISECONDS)]
    buffer = io.BytesIO()
    first.save(buffer, "WEBP", save_all=True, append_images=others, duration=times, loop=0, lossless=True)
    return buffer.getvalue()
