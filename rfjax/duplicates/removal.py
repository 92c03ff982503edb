"""Finds the images to drop among all described images: first files with equal bytes, then near-duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rfjax.duplicates.describe import Described
from rfjax.duplicates.descriptors import incomparable
from rfjax.duplicates.search import CHUNK, Index, default_clusters, remove, similarity
from rfjax.errors import RfjaxError
from rfjax.prepare.part import NO_CAPTION, list_counts


@dataclass(frozen=True)
class Found:
    """The images to drop, in the source's order, and counts for the report.

    `pairs` has (key, key of the image that stays, similarity) for each image to drop. The similarity is None if the two
    files have equal bytes.
    """

    pairs: tuple[tuple[str, str, float | None], ...]
    not_compared: tuple[tuple[str, str], ...]  # (key, reason), including `left_out`
    left_out: tuple[tuple[str, str], ...]  # (key, reason) of images without a descriptor, which `images` does not count
    curve: tuple[tuple[float, int], ...]  # (threshold, number of images that it drops)
    images: int
    clusters: int
    repeated: int  # duplicates that stay because another image that stays has their key


def find(
    parts: Iterable[Described],
    *,
    threshold: float,
    curve: Sequence[float],
    clusters: int | None,
    probes: int,
    tell: Callable[[int], None] = lambda done: None,
    began: Callable[[int], None] = lambda count: None,
) -> Found:
    """Finds the images to drop, going through all images in the source's order: part by part, in each part's order.

    `curve` has further thresholds at which the dropped images are only counted. If `clusters` is None, the number of
    clusters is `default_clusters`. Calls `began` with the number of images to compare, once the clusters are made, and
    then `tell` with the number of images done. Raises `RfjaxError` if there is no image.
    """
    keys, left_out, views, digests = [], [], [], []
    for part in parts:
        keys += part.keys
        left_out += part.left_out
        views.append(part.views)
        digests.append(part.digests)
    if not keys:
        counts = Counter(reason for _, reason in left_out)
        remedy = "; images without captions are compared with --uncaptioned" if counts[NO_CAPTION] else ""
        raise RfjaxError(f"no image to compare: {list_counts(counts) or 'the source is empty'}{remedy}")
    views = np.concatenate(views)  # of all parts; frees the parts' own arrays
    _, first, group = np.unique(np.concatenate(digests).view("V16")[:, 0], return_index=True, return_inverse=True)
    original = first[group]  # the first image with the same bytes: `return_index` gives the first
    copies = original != np.arange(len(keys))
    unfit = incomparable(views[:, 0])
    fit = ~copies
    fit[list(unfit)] = False
    compared = np.flatnonzero(fit)
    levels = sorted({threshold, *curve})
    keeper, alike = original.copy(), np.ones(len(keys))
    counts, used = [int(copies.sum())] * len(levels), 1
    if len(compared):
        views = views[compared]  # nearly all of the memory in use; frees the rows that are not compared
        index = Index(views[:, 0], default_clusters(len(compared)) if clusters is None else clusters, probes)
        used = index.clusters
        began(len(compared))
        removals = remove(views, index, levels, tell)
        gone = np.zeros((len(levels), len(keys)), bool)
        gone[:, compared] = [removal.dropped for removal in removals]
        counts = [int((copies | dropped[original]).sum()) for dropped in gone]
        chosen = removals[levels.index(threshold)]
        near = np.flatnonzero(chosen.dropped)
        keeper[compared[near]] = compared[chosen.keeper[near]]
        for start in range(0, len(near), CHUNK):  # all rows at once may not fit in memory
            some = near[start : start + CHUNK]
            alike[compared[some]] = similarity(views[some], views[chosen.keeper[some]])
    pairs, stay, repeated = [], {keys[i] for i in range(len(keys)) if keeper[original[i]] == i}, 0
    for i, key in enumerate(keys):
        last = int(keeper[original[i]])
        if last == i:
            continue
        if key in stay:
            repeated += 1
            continue
        pairs.append((key, keys[last], None if last == original[i] else float(alike[original[i]])))
    return Found(
        pairs=tuple(pairs),
        not_compared=(*left_out, *((keys[i], reason) for i, reason in sorted(unfit.items()) if original[i] == i)),
        curve=tuple(zip(levels, counts, strict=True)),
        left_out=tuple(left_out),
        images=len(keys),
        clusters=used,
        repeated=repeated,
    )
