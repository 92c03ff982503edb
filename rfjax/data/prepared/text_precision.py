"""The types in which captions' contexts are stored: float16, float32, or int8 with a scale for each token.

In int8 a token's numbers are rounded to multiples of its scale, which is their largest magnitude divided by 127.
Each token has a scale of its own, because a few tokens (CLIP's first, T5's last) are many times as large as the others.
A number is off by at most half a scale: 1/254 of the largest number of its token.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float32, Int8

INT8 = "int8"
LEVELS = 127  # on each side of zero; -128 is not used
SCALES = ".scales"  # the scales of NAME.context are stored as NAME.context.scales


def quantise(
    context: Float[np.ndarray, "tokens channels"],
) -> tuple[Int8[np.ndarray, "tokens channels"], Float32[np.ndarray, " tokens"]]:
    """Rounds a context to int8. Returns (whole numbers from -127 to 127, the scale of each token). A number is the
    context's value divided by the scale of its token, rounded. The scale of a token is the largest magnitude of the
    token's values divided by 127, so 0 for a token of zeros. The context must be finite."""
    context = np.asarray(context, np.float32)
    scales = (np.abs(context).max(axis=1, initial=0.0) / LEVELS).astype(np.float32)
    steps = np.divide(context, scales[:, None], out=np.zeros_like(context), where=scales[:, None] > 0)
    return np.rint(steps).clip(-LEVELS, LEVELS).astype(np.int8), scales


def to_stored(name: str, values: Float[np.ndarray, ...], precision: str) -> dict[str, np.ndarray]:
    """Returns the arrays that a record holds for `values`, by name. A float that does not fit becomes infinite.

    For int8, the values must be a context [tokens, channels].
    """
    if precision == INT8:
        levels, scales = quantise(values)
        return {name: levels, name + SCALES: scales}
    with np.errstate(over="ignore"):
        return {name: values.astype(precision)}


def shapes_stored(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Returns {array's name: the shape it must have} for the arrays that store a context of this `shape`: the context
    itself and, in int8, its scales."""
    in_int8 = name in arrays and arrays[name].dtype == np.int8
    return {name: shape} | ({name + SCALES: shape[:1]} if in_int8 else {})


def from_stored(arrays: Mapping[str, np.ndarray], name: str, out: Float32[np.ndarray, "tokens channels"]) -> None:
    """Writes a stored context into `out`, in float32. The arrays must have the shapes of `shapes_stored`."""
    out[...] = arrays[name]
    if arrays[name].dtype == np.int8:
        out *= arrays[name + SCALES][:, None]
