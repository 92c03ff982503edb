"""Latents as tokens: patches of (time, height, width), and back."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from rfjax.errors import ConfigError


def check_patches(latents: Sequence[int], patch: tuple[int, int, int]) -> None:
    """Raises `ConfigError` if `patch` does not divide latents of (frames, height, width, ...). A still (one frame) fits
    patches of any number of frames."""
    frames, height, width = latents[:3]
    if height % patch[1] or width % patch[2]:
        remedy = f"both sides must be multiples of config.model.patch_size={patch[1]}"
        raise ConfigError(f"latents of {height}x{width} cannot be cut into patches of {patch[1]}x{patch[2]}; {remedy}")
    if frames > 1 and frames % patch[0]:
        remedy = f"their number must be 1 or a multiple of config.model.temporal_patch_size={patch[0]}"
        raise ConfigError(f"latents of {frames} frames cannot be cut into patches of {patch[0]} frames; {remedy}")


def patchify(
    x: Float[Array, "batch frames height width channels"], patch: tuple[int, int, int]
) -> Float[Array, "batch tokens patch_values"]:
    """Cuts latents into tokens, one for each patch, in row-major order and frame by frame. Inside a token the order is
    (frame, row, column, channel), channel fastest.

    A still's frame is repeated to fill the patch. Raises `ConfigError` for a side that `patch` does not divide.
    """
    check_patches(x.shape[1:], patch)
    if x.shape[1] == 1 and patch[0] > 1:
        x = jnp.repeat(x, patch[0], axis=1)
    batch, channels = x.shape[0], x.shape[-1]
    times, rows, columns = (side // p for side, p in zip(x.shape[1:4], patch, strict=True))
    x = x.reshape(batch, times, patch[0], rows, patch[1], columns, patch[2], channels)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, times * rows * columns, patch[0] * patch[1] * patch[2] * channels)


def unpatchify(
    x: Float[Array, "batch tokens patch_values"], patch: tuple[int, int, int], latents: Sequence[int]
) -> Float[Array, "batch frames height width channels"]:
    """The inverse of `patchify`, for latents of (frames, height, width, ...). For a still it returns the first of its
    repeated frames."""
    frames, height, width = latents[:3]
    rows, columns = height // patch[1], width // patch[2]
    x = x.reshape(x.shape[0], -1, rows, columns, *patch, x.shape[-1] // (patch[0] * patch[1] * patch[2]))
    x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    x = x.reshape(x.shape[0], -1, height, width, x.shape[-1])
    return x if x.shape[1] == frames else x[:, :frames]
