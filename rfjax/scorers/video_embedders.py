"""Makes the functions that compute features of clips. Each transforms frames, then applies a network.

Resizing follows each metric's published code. For FVD it is TensorFlow 1's bilinear resizing without antialiasing. For
V-JEPA 2, Pillow's bilinear filter resizes the shorter side, and the middle is cut out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image

from rfjax.scorers import i3d, vjepa
from rfjax.scorers.videos import ClipOf, Reader

Frames = UInt8[np.ndarray, "frames height width 3"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def of_clips(
    network: i3d.Loaded | vjepa.Loaded, kind: str, reader: Reader, frames: int
) -> Callable[[Sequence[ClipOf]], Float32[np.ndarray, "n d"]]:
    """Returns the function that computes the features of clips of `frames` frames, for the distance `kind`."""

    def embed(clips):
        inputs = [TRANSFORMS[kind](each, network) for each in reader.read_all(clips, frames)]
        return network.embed(torch.stack(inputs)).cpu().numpy().astype(np.float32)

    return embed


def fvd_transform(frames: Frames, size: int = i3d.SIDE) -> Float32[torch.Tensor, "3 frames size size"]:
    """Applies FVD's published preprocessing: TensorFlow 1's `resize_bilinear` to `size` x `size`, scaled to [-1, 1].

    Output pixel i is taken from position i * (input side / size), without half-pixel centres; the aspect is not kept.
    """
    values = torch.from_numpy(np.moveaxis(frames, -1, 0).astype(np.float32))
    for axis in (2, 3):
        place = torch.arange(size) * (values.shape[axis] / size)
        low = place.floor().long()
        high = (low + 1).clamp(max=values.shape[axis] - 1)
        share = (place - low).reshape(-1, *[1] * (3 - axis))
        below, above = values.index_select(axis, low), values.index_select(axis, high)
        values = below + (above - below) * share
    return values.mul(2 / 255).sub(1)


def vjepa_transform(frames: Frames, size: int) -> Float32[torch.Tensor, "3 frames size size"]:
    """Applies V-JEPA 2's published preprocessing for evaluation: the shorter side becomes size * 256 // 224 pixels, the
    middle of `size` x `size` is kept, and channels are normalised by ImageNet's mean and deviation."""
    height, width = frames.shape[1:3]
    scale = size * 256 // 224 / min(height, width)
    sides = round(width * scale), round(height * scale)
    left, top = ((side - size) // 2 for side in sides)
    cut = [
        np.asarray(Image.fromarray(frame).resize(sides, Image.Resampling.BILINEAR))[
            top : top + size, left : left + size
        ]
        for frame in frames
    ]
    values = torch.from_numpy(np.moveaxis(np.stack(cut), -1, 0).astype(np.float32)).div(255)
    mean, std = (torch.tensor(each)[:, None, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    return (values - mean) / std


TRANSFORMS = {
    "fvd": lambda frames, network: fvd_transform(frames),
    "mmd-vjepa2": lambda frames, network: vjepa_transform(frames, network.size),
}
