"""Decodes images to 8-bit RGB of a bucket's size, and makes a small JPEG of each to look at.

An image that PIL cannot decode completely is an error, and so are floating-point values and integers beyond 16 bits.
All other images become RGB. Transparency, also a transparent colour, is laid over white. 16-bit grey keeps its high
byte; 32-bit integers count as 8 bits if none is above 255, else as 16. CMYK and palettes are converted by PIL, without
colour profiles. The first picture of an animation is used. The camera's orientation is applied. An image goes to the
bucket of the nearest aspect. Its largest centred part of that aspect is resized by PIL's Lanczos or bicubic filter. The
filter does not alias, because its support widens with the reduction. Nothing is random: the paper's pretraining crops
the centre, too.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
WHITE = (255, 255, 255, 255)
INTEGERS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
DARK = "16-bit with no value above 255: black"
CUT = "more than half cut off"
STRIP_FRAMES = 6  # most frames in a clip's thumbnail
PNG_MARK, PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24  # a PNG's first bytes; the offset of its bits per sample


class CorruptImage(ValueError):
    """Raised for an image that cannot be used; the message says why."""


@dataclass(frozen=True)
class Picture:
    """A decoded image, cut and resized to a bucket's sides."""

    pixels: UInt8[np.ndarray, "*frames rows columns 3"]  # only a clip has frames
    width: int  # of the original, turned upright
    height: int
    converted: tuple[str, ...]  # names of the conversions it needed

    @property
    def columns(self) -> dict[str, float | int]:
        """The columns that filters can use."""
        return size_columns(self.width, self.height)


def size_columns(width: int, height: int) -> dict[str, float | int]:
    """Returns the filter columns of an image's size, in pixels; `aspect` is width / height."""
    return {"width": width, "height": height, "aspect": width / height, "short_side": min(width, height)}


def nearest_bucket(width: int, height: int, buckets: Sequence[tuple[int, int]]) -> int:
    """Returns the index of the bucket (height, width) whose log aspect ratio is nearest to an image's, the first of
    several that are equally near.

    For an image of width w and height h and a bucket of W and H, |log(w / h) - log(W / H)| is the log of wH / hW or of
    its inverse, whichever is above 1. These ratios are compared as fractions, so no logarithm is rounded.
    """

    def apart(number):
        rows, columns = buckets[number]
        across, down = width * rows, height * columns
        return Fraction(max(across, down), min(across, down))

    return min(range(len(buckets)), key=lambda number: (apart(number), number))


def name_changes(width: int, height: int, bucket: tuple[int, int]) -> list[str]:
    """Returns the names of what is lost when an image is fitted to a bucket (height, width): "enlarged" if a side of
    the image is smaller than the bucket's, and `CUT` if the crop leaves less than half of the image's area.

    With w, h of the image and W, H of the bucket, the crop leaves min(wH, hW) / max(wH, hW) of the area.
    """
    rows, columns = bucket
    shares = sorted((width * rows, height * columns))
    found = {"enlarged": width < columns or height < rows, CUT: 2 * shares[0] < shares[1]}
    return [name for name, holds in found.items() if holds]


def decode(data: bytes, size: int | Sequence[tuple[int, int]], resample: str) -> Picture:
    """Decodes an image to a square of `size` pixels a side, or to the nearest of several buckets (height, width).

    The image is resized to cover its bucket, then cropped at the centre. Raises `CorruptImage`.
    """
    buckets = [(size, size)] if isinstance(size, int) else size
    with _open_rgb(data) as (image, converted):
        width, height = image.size
        rows, columns = bucket = buckets[nearest_bucket(width, height, buckets)]
        converted += name_changes(width, height, bucket)
        cut = ImageOps.fit(image, (columns, rows), FILTERS[resample])
    return Picture(np.asarray(cut), width, height, tuple(converted))


def decode_unscaled(data: bytes, crop: str) -> Image.Image:
    """Decodes an image to upright RGB, without resizing it; cuts out its centred square unless `crop` is "none".

    Raises `CorruptImage`.
    """
    with _open_rgb(data) as (image, _):
        image.load()
        return crop_unscaled(image, crop)


def crop_unscaled(image: Image.Image, crop: str) -> Image.Image:
    """Returns an image's centred square or, if `crop` is "none", the image itself."""
    if crop == "none":
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


@contextlib.contextmanager
def _open_rgb(data):
    """Yields (upright RGB image, names of its conversions). A decoder's error in the context becomes `CorruptImage`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images and odd metadata; PIL raises if too large
            with Image.open(io.BytesIO(data)) as image:
                converted = ["animated"] if getattr(image, "is_animated", False) else []
                _scale_transparent_colour(image, data)
                image, how = to_rgb(_upright(image), of_png=data.startswith(PNG_MARK))
                yield image, converted + how
    except CorruptImage:
        raise
    except UnidentifiedImageError:  # its message has an address in memory, which differs in every run
        raise CorruptImage("no format that PIL knows" if data else "no bytes at all") from None
    except MemoryError:  # not the image's fault: another machine, or another try, may decode it
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        if getattr(error, "errno", None):  # the system's error: too many open files, a failing disk
            raise
        raise CorruptImage(f"{type(error).__name__}: {error}") from None


def thumbnail(pixels: UInt8[np.ndarray, "*frames height width 3"], side: int) -> bytes:
    """Returns a JPEG of a picture, resized so that its longer side has `side` pixels. For a clip, the JPEG shows up to
    `STRIP_FRAMES` frames of this size side by side."""
    frames = film_strip(pixels) if pixels.ndim == 4 else pixels[None]
    rows, columns = (max(1, round(side * length / max(frames.shape[1:3]))) for length in frames.shape[1:3])
    small = Image.new("RGB", (columns * len(frames), rows))
    for number, frame in enumerate(frames):
        small.paste(Image.fromarray(frame).resize((columns, rows), Image.Resampling.LANCZOS), (columns * number, 0))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def film_strip(
    frames: Shaped[np.ndarray, "frames height width 3"], most: int = STRIP_FRAMES
) -> Shaped[np.ndarray, "shown height width 3"]:
    """Returns at most `most` frames of a clip, evenly spread from the first to the last."""
    return frames[np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)]


def _upright(image):
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the orientation cannot be read; the picture can
        return image


def _scale_transparent_colour(image, data):
    """Rescales a PNG's transparent colour as PIL rescales the pixels: PIL itself leaves that colour as stored.

    Grey of 2 or 4 bits becomes 8 bits, and colours of 16 bits keep their high byte.
    """
    colour, depth = image.info.get("transparency"), data[PNG_DEPTH : PNG_DEPTH + 1]
    if not data.startswith(PNG_MARK) or colour is None:
        return
    if image.mode == "L" and isinstance(colour, int) and depth in (b"\2", b"\4"):
        image.info["transparency"] = colour * 255 // (2 ** depth[0] - 1)
    if image.mode == "RGB" and depth == b"\20":
        image.info["transparency"] = tuple(part >> 8 for part in colour)


def to_rgb(image, of_png):
    """Returns the image as RGB, and the names of the conversions. If the image's file is a PNG (`of_png`), PIL's mode
    "I" also stands for grey of 16 bits."""
    if image.mode in INTEGERS:
        return _rgb_of_integers(image, declared=image.mode != "I" or of_png)
    if image.mode == "F":
        raise CorruptImage("its values are floating-point, of no known range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image.convert("RGBA"))
        return over.convert("RGB"), ["transparent"]
    if image.mode == "RGB":
        return image, []
    return image.convert("RGB"), [{"P": "palette", "L": "grey", "1": "grey"}.get(image.mode, image.mode)]


def _rgb_of_integers(image, declared):
    """Converts grey of 16 or 32 bits to RGB. Returns the image and the names of the conversions. If `declared`, the
    file is known to have 16 bits, so 255 is nearly black. Raises `CorruptImage` for values that 16 bits do not hold."""
    values = np.asarray(image).astype(np.int64)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise CorruptImage(f"its values go from {low} to {high}; 8 and 16 bits are known")
    wide = declared or high > 255
    grey = (values >> 8 if wide else values).astype(np.uint8)
    how = ["16-bit" if wide else "32-bit of 8"] + ([DARK] if wide and high <= 255 else [])
    if isinstance(key := image.info.get("transparency"), int):
        grey, how = np.where(values == key, 255, grey).astype(np.uint8), [*how, "transparent"]
    return Image.fromarray(grey).convert("RGB"), how
