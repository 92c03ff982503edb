"""Fixed sine-cosine positions: two-dimensional on a centre-cropped grid (SD3 section 5.3.2), and of time."""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Float

from rfjax.errors import ConfigError

POSITIONS = "positions"  # the leaf of the parameters that holds a stored grid of positions; training never changes it


def axis_positions(grid: int, tokens: int, span: float) -> Float[np.ndarray, " grid"]:
    """The positions of all `grid` tokens of an axis. The training images use the middle `tokens` positions.

    Token p has position (p - (grid - tokens)/2) * span/tokens. The training images span [0, span) at any resolution
    (span is 16 in the paper: 256 px over 16 px a token). Longer sides extrapolate at both ends.
    """
    return (np.arange(grid) - (grid - tokens) / 2) * (span / tokens)


def sincos(positions: Float[np.ndarray, " n"], channels: int) -> Float[np.ndarray, "n channels"]:
    """[sin(x w), cos(x w)] with w_i = 10000^(-i / (channels/2))."""
    frequencies = 10000.0 ** (-np.arange(channels // 2) / (channels / 2))
    angles = positions[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def cropped_positions(
    height: int, width: int, *, grid: int, tokens: int, span: float, channels: int
) -> Float[np.ndarray, "tokens channels"]:
    """Returns the position vectors of an image of height x width tokens, in row-major order. The image lies in the
    centre of a grid of `grid` x `grid` tokens.

    The first half of the channels encodes the column, the second the row.
    """
    top, left = _corner(height, width, grid)
    axis = sincos(axis_positions(grid, tokens, span), channels // 2).astype(np.float32)
    columns = np.broadcast_to(axis[None, left : left + width], (height, width, channels // 2))
    rows = np.broadcast_to(axis[top : top + height, None], (height, width, channels // 2))
    return np.concatenate([columns, rows], axis=2).reshape(height * width, channels)


def centre_crop(
    positions: Float[Array, "grid grid channels"], height: int, width: int
) -> Float[Array, "tokens channels"]:
    """Cuts the positions of an image of height x width tokens, row-major, out of the centre of a grid of positions."""
    top, left = _corner(height, width, positions.shape[0])
    return positions[top : top + height, left : left + width].reshape(height * width, -1)


def time_positions(times: int, channels: int) -> Float[np.ndarray, "times channels"]:
    """Returns sincos(k) - sincos(0) for the temporal positions k = 0, 1, ..., to be added to an image's positions. The
    vector of k = 0 is zero, so one frame has the positions of an image."""
    return (sincos(np.arange(times, dtype=np.float64), channels) - sincos(np.zeros(1), channels)).astype(np.float32)


def _corner(height, width, grid):
    if max(height, width) > grid:
        given = f"an image of {height}x{width} tokens does not fit the position grid of {grid}x{grid}"
        raise ConfigError(f"{given}; raise config.model.position_grid")
    return (grid - height) // 2, (grid - width) // 2
