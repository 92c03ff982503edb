"""Reads images, and transforms them into the inputs of the scorers' networks.

Resizing follows each metric's published code, because scores depend on it: OpenCV's bilinear for mmdet's Mask2Former,
Pillow's bicubic with antialiasing for CLIP and clean-fid, torch's bicubic without antialiasing for CMMD.
"""

from __future__ import annotations

import io
import os

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from rfjax.errors import ConfigError

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # at most 8 bits a channel: no precision is lost

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def read(file: str | os.PathLike | io.BytesIO, path: str | os.PathLike | None = None) -> Image.Image:
    """Reads an image, upright and in RGB, without transparency. If `file` is the content, `path` names it in errors.

    Raises `ConfigError`, naming the file, if it is damaged or has more than eight bits a channel.
    """
    path = file if path is None else path
    try:
        with Image.open(file) as image:
            is_deep = any(";16" in str(tile[3]) for tile in image.tile)  # PIL cuts 16-bit colours: their mode is RGB
            image.load()
            if is_deep or image.mode not in MODES:
                mode = f"16-bit {image.mode}" if is_deep else image.mode
                raise ConfigError(f"{path} is an image of mode {mode}; save it with eight bits a channel")
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"cannot read the image {path} ({error}); make it again or remove it") from None


def pixels(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    return np.array(image.convert("RGB"), np.uint8)


def opencv_bilinear(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes exactly like OpenCV's `resize` with INTER_LINEAR: half-pixel centres, no antialiasing.

    It repeats OpenCV's integer arithmetic: 11-bit weights, columns before rows, products truncated.
    """
    left, right, of_left, of_right = _linear(image.shape[1], width)
    top, bottom, of_top, of_bottom = (index[:, None, None] for index in _linear(image.shape[0], height))
    levels = image.astype(np.int32)
    rows = (levels[:, left] * of_left[None, :, None] + levels[:, right] * of_right[None, :, None]) >> 4
    total = ((of_top * rows[top[:, 0, 0]]) >> 16) + ((of_bottom * rows[bottom[:, 0, 0]]) >> 16)
    return ((total + 2) >> 2).astype(np.uint8)


def _linear(before, after):
    """Prepares the linear interpolation of an axis of `before` pixels at the centres of `after` pixels. Returns arrays
    over the new pixels: the indices of the lower and of the upper old pixel, then the weights of the lower and of the
    upper one. The two weights of a new pixel add up to 2048."""
    place = ((np.arange(after) + 0.5) * (before / after) - 0.5).astype(np.float32)
    low = np.floor(place).astype(np.int64)
    part = place - low.astype(np.float32)
    weights = [np.rint(share * np.float32(2048)).astype(np.int32) for share in (np.float32(1) - part, part)]
    return low.clip(0, before - 1), (low + 1).clip(0, before - 1), *weights


def clip_transform(image: Image.Image, size: int = 224) -> Float32[torch.Tensor, "3 size size"]:
    """Applies CLIP's published preprocessing: torchvision's Resize and CenterCrop on a Pillow image.

    The image is resized bicubically: the shorter side to `size`, the longer in proportion, rounded down. Then the
    centre is cropped; an offset of half a pixel rounds to even.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled = int(size * long / short)
    image = image.convert("RGB").resize((size, scaled) if width <= height else (scaled, size), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in image.size)
    return _normalize(_unit_range(image.crop((left, top, left + size, top + size))))


def _unit_range(image):
    """Converts an image to a tensor [3, height, width] in [0, 1]."""
    return torch.from_numpy(pixels(image)).permute(2, 0, 1).float().div(255)


def _normalize(values):
    return (values - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


def cmmd_transform(image: Image.Image, size: int = 336) -> Float32[torch.Tensor, "3 size size"]:
    """Applies CMMD's published preprocessing: bicubic resizing to `size` x `size` without antialiasing, cropping or
    clipping, then CLIP's normalisation."""
    values, sides = _unit_range(image)[None], (size, size)
    return _normalize(torch.nn.functional.interpolate(values, size=sides, mode="bicubic", align_corners=False)[0])


def inception_transform(image: Image.Image, size: int = 299) -> Float32[torch.Tensor, "3 size size"]:
    """Applies clean-fid's preprocessing: Pillow's antialiased bicubic on each channel in floats, scaled to [-1, 1)."""
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(pixels(image), -1, 0)]
    channels = [np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC)) for plane in planes]
    return torch.from_numpy(np.stack(channels).clip(0, 255)).sub(128).div(128)
