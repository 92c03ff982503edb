"""Converts images for a rater's page: WebP without metadata. The two images of a pair must have the same size."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs.files import NoPlainFile, read_bytes
from rfjax.prepare.images import CorruptImage, decode_unscaled

LOSSLESS_BELOW = 256  # pixels of the longer side: in smaller images compression is visible and saves little
NOISE_GRID = 24  # cells along a side of a picture of noise


@dataclass(frozen=True)
class Picture:
    """An image that was read: where it lies, the hash of its pixels, and its size."""

    source: str  # relative to its side's folder
    path: Path
    sha256: str
    size: tuple[int, int]  # width, height


def read(path: Path) -> Image.Image:
    """Reads an image as RGB: rotated upright, with transparent parts white. Raises `ConfigError`, naming the file, if
    the image cannot be read."""
    try:
        return decode_unscaled(read_bytes(path), "none")
    except CorruptImage as problem:
        raise ConfigError(f"the image {path} cannot be read ({problem}); make it again or remove it") from None
    except (NoPlainFile, OSError) as problem:
        raise ConfigError(f"the image {path} cannot be read ({problem}); restore it") from None


def look_at(path: Path, source: str) -> Picture:
    """Reads an image for its size and the hash of its pixels. Raises `ConfigError` as `read` does."""
    image = read(path)
    return Picture(source, path, hashlib.sha256(image.tobytes()).hexdigest(), image.size)


def webp(image: Image.Image, quality: int) -> bytes:
    """Encodes an image as WebP without EXIF, text or colour profile; losslessly if it is small."""
    bare = Image.fromarray(np.asarray(image.convert("RGB")))
    buffer = io.BytesIO()
    lossless = max(bare.size) < LOSSLESS_BELOW
    try:
        bare.save(buffer, "WEBP", lossless=lossless, quality=80 if lossless else quality, method=4)
    except (OSError, KeyError, ValueError) as problem:
        raise RfjaxError(f"an image of {bare.width} x {bare.height} cannot be written as WebP ({problem})") from None
    return buffer.getvalue()


def noise(digest: bytes, size: tuple[int, int]) -> Image.Image:
    """Makes a picture of random coloured squares from a hash. It is worse than any model's image."""
    draw = np.random.default_rng(list(digest))
    cells = draw.integers(0, 256, (NOISE_GRID, NOISE_GRID, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)
