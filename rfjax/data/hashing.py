"""Counter-based random numbers: uniforms that are functions of (key, index, slot), and normals computed from them.

With a stateful generator, random access would need a generator for each example. A hashed counter gives the numbers of
any example directly, and those of a whole batch in one vectorised call. The mixer is the finaliser of SplitMix64
(Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"), which passes BigCrush on consecutive
counters. Only integer arithmetic and one scaling are used, so the uniforms agree bit for bit on every platform.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Float, Integer, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(*parts: object) -> int:
    """Hashes names and numbers to a 64-bit key. The key depends only on their `repr`."""
    digest = hashlib.sha256("\x1f".join(repr(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def mix(values: UInt64[np.ndarray, " ..."]) -> UInt64[np.ndarray, " ..."]:
    """SplitMix64's finaliser: a bijection of 64-bit integers that scatters nearby ones."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniforms(key: int, indices: Integer[np.ndarray, " n"], slots: int) -> Float[np.ndarray, "n slots"]:
    """Returns float64 random numbers, uniform in [0, 1). Row i is a function of (key, indices[i]) alone."""
    with np.errstate(over="ignore"):
        rows = mix(np.asarray(indices, np.uint64) * _GOLDEN + np.uint64(key))
        columns = (np.arange(slots, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        bits = mix(mix(rows[:, None] + columns))
    return (bits >> np.uint64(11)) * 2.0**-53


def normals(key: int, indices: Integer[np.ndarray, " n"], slots: int) -> Float[np.ndarray, "n slots"]:
    """Float64 standard normals by Box and Muller's transform. Row i is a function of (key, indices[i], slots) alone."""
    half = (slots + 1) // 2
    u = uniforms(key, indices, 2 * half)
    radius = np.sqrt(-2.0 * np.log1p(-u[:, :half]))
    angle = 2.0 * np.pi * u[:, half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :slots]
