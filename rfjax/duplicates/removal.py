"""What is dropped of all the images that were described: files of equal bytes, then near-duplicates of what remains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rfjax.duplicates.describe import Described
from rfjax.duplicates.descriptors import useless
from rfjax.duplicates.search import Index, default_clusters, remove, similarity
from rfjax.errors import RfjaxError
from rfjax.prepare.part import NO_CAPTION


@dataclass(frozen=True)
class Found:
    """`pairs` are (key, key of the image that stays, similarity or None for equal bytes), in the source's order."""

    pairs: tuple[tuple[str, str, float | None], ...]
    not_compared: tuple[tuple[str, str], ...]  # (key, reason)
    curve: tuple[tuple[float, int], ...]  # (threshold, images it drops)
    images: int
    clusters: int
    repeated: int  # duplicates that stay, because another image that stays has their key


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
    """Goes through the images in the source's order: part by part, in each part's order.

    `began` hears how many are searched, when the clusters are there. `RfjaxError` where there is no image.
    """
    keys, left_out, views, digests = [], [], [], []
    for part in parts:
        keys += part.keys
        left_out += part.left_out
        views.append(part.views)
        digests.append(part.digests)
    if not keys:
        why = ", ".join(
            f"{count} {reason}" for reason, count in Counter(reason for _, reason in left_out).most_common()
        )
        remedy = (
            "; images without captions are compared with --uncaptioned"
            if any(reason == NO_CAPTION for _, reason in left_out)
            else ""
        )
        raise RfjaxError(f"no image to compare: {why or 'the source is empty'}{remedy}")
    views = np.concatenate(views)  # of all parts; each part's own is let go of here
    _, first, group = np.unique(np.concatenate(digests).view("V16")[:, 0], return_index=True, return_inverse=True)
    original = first[group]  # of each image, the first of its bytes: `return_index` gives the first
    unfit = useless(views[:, 0])
    fit = np.ones(len(keys), bool)
    fit[list(unfit)] = False
    compared = np.flatnonzero(fit & (original == np.arange(len(keys))))
    levels = sorted({threshold, *curve})
    copies = original != np.arange(len(keys))
    keeper, alike = original.copy(), np.ones(len(keys))
    counts, used = [int(copies.sum())] * len(levels), 1
    if len(compared):
        views = views[compared]  # they are nearly all of the memory that this takes, so nothing keeps the others
        index = Index(views[:, 0], default_clusters(len(compared)) if clusters is None else clusters, probes)
        used = index.clusters
        began(len(compared))
        removals = remove(views, index, levels, tell)
        gone = np.zeros((len(levels), len(keys)), bool)
        gone[:, compared] = [one.dropped for one in removals]
        counts = [int((copies | each[original]).sum()) for each in gone]
        chosen = removals[levels.index(threshold)]
        near = np.flatnonzero(chosen.dropped)
        keeper[compared[near]] = compared[chosen.keeper[near]]
        for start in range(0, len(near), 65536):  # rows of all at once may not fit
            some = near[start : start + 65536]
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
        not_compared=tuple(left_out)
        + tuple((keys[i], reason) for i, reason in sorted(unfit.items()) if original[i] == i),
        curve=tuple(zip(levels, counts, strict=True)),
        images=len(keys),
        clusters=used,
        repeated=repeated,
    )
