"""Images as a rater's page shows them: WebP without any metadata, of one size in a pair."""

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

LOSSLESS_BELOW = 256  # pixels of the longer side: there loss is seen, and costs more than it saves
NOISE_GRID = 24  # cells along a side of a picture of noise


@dataclass(frozen=True)
class Picture:
    """An image that was read: where it lies, the hash of its pixels, and its size."""

    source: str  # relative to its side's folder
    path: Path
    sha256: str
    size: tuple[int, int]  # width, height


def read(path: Path) -> Image.Image:
    """Reads an image, upright and in RGB, transparency laid over white. Raises `ConfigError`, naming the file."""
    try:
        return decode_unscaled(read_bytes(path), "none")
    except CorruptImage as problem:
        raise ConfigError(f"the image {path} cannot be read ({problem}); make it again or remove it") from None
    except (NoPlainFile, OSError) as problem:
        raise ConfigError(f"the image {path} cannot be read ({problem}); restore it") from None


def look_at(path: Path, source: str) -> Picture:
    """Reads an image for the facts that decide whether it can be shown. Raises `ConfigError`, naming the file."""
    image = read(path)
    return Picture(source, path, hashlib.sha256(image.tobytes()).hexdigest(), image.size)


def webp(image: Image.Image, quality: int) -> bytes:
    """Encodes an image. It holds pixels alone: no EXIF, no text, no colour profile. Small images are lossless."""
    bare = Image.fromarray(np.asarray(image.convert("RGB")))
    buffer = io.BytesIO()
    lossless = max(bare.size) < LOSSLESS_BELOW
    try:
        bare.save(buffer, "WEBP", lossless=lossless, quality=80 if lossless else quality, method=4)
    except (OSError, KeyError, ValueError) as problem:
        raise RfjaxError(f"an image of {bare.width} x {bare.height} cannot be written as WebP ({problem})") from None
    return buffer.getvalue()


def noise(digest: bytes, size: tuple[int, int]) -> Image.Image:
    """A picture of coloured squares drawn at random from a hash: no model's image is worse."""
    draw = np.random.default_rng(list(digest))
    cells = draw.integers(0, 256, (NOISE_GRID, NOISE_GRID, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)
