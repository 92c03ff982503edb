"""Images from files as the scorers' networks want them.

Resizing follows each metric's published code, for scores depend on it: OpenCV's bilinear for
Mask2Former under mmdet, Pillow's bicubic (with antialiasing) for CLIP and clean-fid, torch's bicubic
(without) for CMMD.
"""

from __future__ import annotations

import io
import os

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from rfjax.errors import ConfigError

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of eight bits, whose conversion loses nothing

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def read(file: str | os.PathLike | io.BytesIO, path: str | os.PathLike | None = None) -> Image.Image:
    """The image of a file (or of the content of `path`), upright and in RGB; transparency is dropped.

    Raises `ConfigError` naming a file that is damaged, or has more than eight bits a channel.
    """
    path = file if path is None else path
    try:
        with Image.open(file) as image:
            image.load()
            if image.mode not in MODES:
                raise ConfigError(f"{path} is an image of mode {image.mode}; save it with eight bits a channel")
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"cannot read the image {path} ({error}); make it again or remove it") from None


def pixels(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    return np.array(image.convert("RGB"), np.uint8)


def opencv_bilinear(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """The very levels of OpenCV's `resize` with INTER_LINEAR, in its integers: weights of 11 bits, columns before
    rows, the lowest bits of products cut off. Half-pixel centres, no antialiasing."""
    left, right, of_left, of_right = _linear(image.shape[1], width)
    top, bottom, of_top, of_bottom = (index[:, None, None] for index in _linear(image.shape[0], height))
    levels = image.astype(np.int32)
    rows = (levels[:, left] * of_left[None, :, None] + levels[:, right] * of_right[None, :, None]) >> 4
    total = ((of_top * rows[top[:, 0, 0]]) >> 16) + ((of_bottom * rows[bottom[:, 0, 0]]) >> 16)
    return ((total + 2) >> 2).astype(np.uint8)


def _linear(before, after):
    """(two places along an axis of length `before`, their weights of 2048) for each of `after` places."""
    place = ((np.arange(after) + 0.5) * (before / after) - 0.5).astype(np.float32)
    low = np.floor(place).astype(np.int64)
    part = place - low.astype(np.float32)
    weights = [np.rint(share * np.float32(2048)).astype(np.int32) for share in (np.float32(1) - part, part)]
    return low.clip(0, before - 1), (low + 1).clip(0, before - 1), *weights


def clip_transform(image: Image.Image, size: int = 224) -> Float32[torch.Tensor, "3 size size"]:
    """What CLIP's published preprocessing makes of an image (torchvision's Resize and CenterCrop on Pillow images).

    The shorter side becomes `size`, bicubically, the longer in proportion, rounded down; the middle is cut
    out, a half pixel being rounded to even.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled = int(size * long / short)
    image = image.convert("RGB").resize((size, scaled) if width <= height else (scaled, size), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in image.size)
    return _normalised(image.crop((left, top, left + size, top + size)))


def _normalised(image):
    values = torch.from_numpy(pixels(image)).permute(2, 0, 1).float().div(255)
    return (values - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


def cmmd_transform(image: Image.Image, size: int = 336) -> Float32[torch.Tensor, "3 size size"]:
    """What CMMD's published code makes of an image: bicubic to `size` x `size`, not antialiased, not cut.

    Interpolated values may leave [0, 1], and are left so.
    """
    values = torch.from_numpy(pixels(image)).permute(2, 0, 1).float().div(255)
    values = torch.nn.functional.interpolate(values[None], size=(size, size), mode="bicubic", align_corners=False)[0]
    return (values - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


def inception_transform(image: Image.Image, size: int = 299) -> Float32[torch.Tensor, "3 size size"]:
    """clean-fid's: each channel as floats bicubically to `size` x `size` by Pillow, with antialiasing and without
    rounding; then from [0, 255] to [-1, 1)."""
    channels = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))
        for channel in np.moveaxis(pixels(image), -1, 0)
    ]
    return torch.from_numpy(np.stack(channels).clip(0, 255)).sub(128).div(128)
