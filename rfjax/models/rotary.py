"""Three-axis rotary positions (Su et al. 2021, RoPE; over time, height and width as in Wan and HunyuanVideo).

A head's channels are shared out over the axes. Each axis rotates its channels in pairs of neighbours. Pair i of an axis
with d channels is rotated by the angle position * theta^(-2i/d), where positions count tokens from 0. The positions of
a query and a key then affect their product only through the distance. Text tokens are not rotated.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rfjax.config import ModelConfig


class Rotation(NamedTuple):
    """Cosine and sine of each token's angles, float32."""

    cos: Float[Array, "tokens pairs"]
    sin: Float[Array, "tokens pairs"]

    def after(self, tokens: int) -> Rotation:
        """The rotation of a longer sequence: `tokens` tokens that are not rotated, then the tokens of this rotation."""
        still = jnp.zeros((tokens, self.cos.shape[1]), self.cos.dtype)
        return Rotation(jnp.concatenate([still + 1.0, self.cos]), jnp.concatenate([still, self.sin]))


def axis_angles(tokens: int, channels: int, theta: float) -> Float[np.ndarray, "tokens pairs"]:
    """The angles of an axis's positions 0, 1, ..., in float64."""
    return np.arange(tokens)[:, None] * theta ** (-np.arange(0, channels, 2) / channels)


def make_rotation(config: ModelConfig, grid: tuple[int, int, int]) -> Rotation | None:
    """The rotation of a grid of (time, height, width) tokens, in row-major order; None if positions are added."""
    if config.positions != "rotary":
        return None
    axes = [axis_angles(n, size, config.rotary_theta) for n, size in zip(grid, config.rotary_split, strict=True)]

    def whole(function):
        # Each axis is a small constant of the program; a table for the whole grid would have a row for every token.
        parts = [jnp.asarray(function(angles), jnp.float32) for angles in axes]
        places = [
            jnp.broadcast_to(jnp.expand_dims(part, [a for a in range(3) if a != axis]), (*grid, part.shape[1]))
            for axis, part in enumerate(parts)
        ]
        return jnp.concatenate(places, axis=-1).reshape(-1, config.head_size // 2)

    return Rotation(whole(np.cos), whole(np.sin))


def rotate(
    x: Float[Array, "batch tokens heads head_size"], rotation: Rotation | None
) -> Float[Array, "batch tokens heads head_size"]:
    """Rotates each pair of channels of queries or keys. Computes in float32 and returns the type of `x`; without a
    rotation, returns `x`."""
    if rotation is None:
        return x
    cos, sin = rotation.cos[:, None], rotation.sin[:, None]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
