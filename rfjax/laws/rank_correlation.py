"""Computes Kendall's tau-b of many pairs of rows at once, in n log n for each row.

Knight's method (1966, A computer method for calculating Kendall's tau with ungrouped data): order a row by x and, where
x ties, by y; the discordant pairs are then the inversions of y, which a merge sort counts as it goes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import stats

CHUNK = 1_000_000  # numbers at a time, to bound memory
BLOCK = 8  # within blocks of this many numbers, inversions are counted pair by pair


def kendall(x: Float[np.ndarray, "*#rows n"], y: Float[np.ndarray, "*#rows n"]) -> Float[np.ndarray, "*rows"]:
    """Returns Kendall's tau-b along the last axis; NaN where x or y is constant or has a NaN."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    n = shape[-1]
    flat = [values.reshape(-1, n) for values in (x, y)]
    if len(flat[0]) != len(flat[1]) and 1 not in map(len, flat):  # rows in several axes that broadcast
        flat = [np.broadcast_to(values, shape).reshape(-1, n) for values in (x, y)]
    rows = int(np.prod(shape[:-1], dtype=int))
    step = max(1, CHUNK // n)
    pieces = [_kendall_rows(*(v if len(v) == 1 else v[a : a + step] for v in flat)) for a in range(0, rows, step)]
    return np.concatenate(pieces).reshape(shape[:-1]) if pieces else np.empty(shape[:-1])


def kendall_p(tau: float, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Returns the two-sided p-value of tau-b by the normal limit of tau-b. The variance of the limit is corrected for
    ties in x and y (Kendall 1970, section 4.2)."""
    n = len(x)
    (vx, x1, x2), (vy, y1, y2) = (_tie_sums(values) for values in (x, y))
    pairs = n * (n - 1)
    variance = (pairs * (2 * n + 5) - vx - vy) / 18 + x1 * y1 / (2 * pairs) + x2 * y2 / (9 * pairs * (n - 2))
    score = tau * 0.5 * np.sqrt((pairs - x1) * (pairs - y1))
    return float(2 * stats.norm.sf(abs(score) / np.sqrt(variance)))


def _tie_sums(values):
    """Returns the sums of t(t-1)(2t+5), of t(t-1) and of t(t-1)(t-2) over the groups of equal values, where t is the
    size of a group."""
    t = np.unique(values, return_counts=True)[1].astype(float)
    return tuple(float(sums.sum()) for sums in (t * (t - 1) * (2 * t + 5), t * (t - 1), t * (t - 1) * (t - 2)))


def _kendall_rows(x, y):
    """Returns Kendall's tau-b of each pair of rows of x and y [b, n]. If x or y has a single row, all pairs use it."""
    n = x.shape[-1]
    bad = np.isnan(x).any(axis=-1) | np.isnan(y).any(axis=-1)
    (places_x, tied_x), (places_y, tied_y) = map(_dense_places, (x, y))
    both = np.sort(places_x * n + places_y, axis=-1)
    tied_both = _tied_pairs(both)
    discordant = inversions(both % n)
    pairs = n * (n - 1) // 2
    score = (pairs - tied_x - tied_y + tied_both - 2 * discordant).astype(float)
    scale = np.sqrt((pairs - tied_x).astype(float) * (pairs - tied_y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((scale > 0) & ~bad, score / scale, np.nan)


def _dense_places(values):
    """Returns (each value replaced by its rank among the distinct values of its row, the number of tied pairs in each
    row)."""
    order = np.argsort(values, axis=-1)
    ordered = np.take_along_axis(values, order, axis=-1)
    rises = np.zeros(values.shape, np.int64)
    rises[:, 1:] = ordered[:, 1:] > ordered[:, :-1]
    rises = rises.cumsum(axis=-1)
    places = np.empty_like(rises)
    np.put_along_axis(places, order, rises, axis=-1)
    return places, _tied_pairs(rises)


def _tied_pairs(ordered):
    """Returns the number of pairs of equal values in each row of sorted numbers."""
    at = np.arange(ordered.shape[-1])
    starts = np.zeros(ordered.shape, np.int64)
    starts[:, 1:] = np.where(ordered[:, 1:] != ordered[:, :-1], at[1:], 0)
    return (at - np.maximum.accumulate(starts, axis=-1)).sum(axis=-1)


def inversions(rows: Int[NDArray, "b n"]) -> Int[NDArray, " b"]:
    """Counts in each row the pairs i < j with row[i] > row[j]. Rows hold whole numbers from 0 to n - 1."""
    count, n = rows.shape
    width = BLOCK
    while width < n:
        width *= 2
    kind = np.int16 if 2 * n + 2 < 2**15 else np.int64  # numpy sorts 16-bit integers by radix, in time n
    padded = np.full((count, width), n, kind)  # n is larger than all values and comes last, so it adds no inversion
    padded[:, :n] = rows
    blocks = padded.reshape(count, -1, BLOCK)
    found = sum(
        np.count_nonzero(blocks[..., :-lag] > blocks[..., lag:], axis=(1, 2)).astype(np.int64)
        for lag in range(1, BLOCK)
    )
    blocks = np.sort(blocks, axis=-1)
    size = BLOCK
    while size < width:
        # Two sorted halves become one. The last bit marks the right half: of equal values the left half's come first.
        halves = blocks.reshape(count, -1, 2, size) * 2
        halves[:, :, 1] += 1
        merged = np.sort(halves.reshape(count, -1, 2 * size), axis=-1, kind="stable")
        right = merged & 1
        # The right half's j-th value comes to place j + (the number of the left half's values that are no larger).
        places = right.reshape(-1, 2 * size).astype(float) @ np.arange(2 * size, dtype=float)
        of_all = size * size + size * (size - 1) // 2  # the sum of these places if every left value were no larger
        found += (of_all - places.reshape(count, -1)).sum(axis=-1).astype(np.int64)
        blocks, size = merged >> 1, 2 * size
    return found
