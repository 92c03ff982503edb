"""Clusters of descriptors, range search in them, and the greedy removal: FAISS counts, the rest is bookkeeping.

Bits are compared by 1 - 2 h / bits, h the Hamming distance: the cosine of vectors of +1 and -1, so that
one threshold means the same for both kinds. An image's first row is what is found; all its rows look. Two
images are as similar as the best match of either's rows with the other's first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from rfjax.errors import ConfigError

ONE_CLUSTER = 50_000  # images; up to here every pair is compared
PROBES = 8
BLOCK = 512  # images that look at once
TRAINED_ON = 256  # descriptors a cluster that k-means sees at most
ROUNDS = 20
SEED = 0
SLACK = 1e-4  # what float32 sums may differ by; similarities at the threshold are computed again in float64


def default_clusters(images: int) -> int:
    """1 up to 50,000 images, then 2 sqrt(images): 16,000 of them, the paper's number, at 64 million."""
    return 1 if images <= ONE_CLUSTER else round(2 * math.sqrt(images))


def faiss_module():
    """FAISS, or `ConfigError` naming the extra that has it."""
    try:
        import faiss
    except ImportError:
        raise ConfigError("searching for near-duplicates needs faiss: pip install 'rfjax[prepare]'") from None
    return faiss


class Index:
    """The first rows of all images, in clusters, of which those nearest to what looks are searched."""

    def __init__(self, rows: Shaped[np.ndarray, "n size"], clusters: int, probes: int):
        faiss = faiss_module()
        self._binary = rows.dtype == np.uint8
        self._rows, size = np.ascontiguousarray(rows), rows.shape[1]
        self.clusters = max(1, min(clusters, len(rows)))
        if self._binary:
            flat = faiss.IndexBinaryFlat(8 * size)
            self._index = flat if self.clusters == 1 else faiss.IndexBinaryIVF(flat, 8 * size, self.clusters)
        else:
            flat = faiss.IndexFlatIP(size)
            self._index = (
                flat
                if self.clusters == 1
                else faiss.IndexIVFFlat(flat, size, self.clusters, faiss.METRIC_INNER_PRODUCT)
            )
        if self.clusters > 1:
            self._quantizer = flat  # faiss does not keep it alive
            self._index.cp.seed, self._index.cp.niter = SEED, ROUNDS
            self._index.cp.max_points_per_centroid, self._index.cp.min_points_per_centroid = TRAINED_ON, 1
            self._index.cp.spherical = not self._binary
            self._index.train(self._rows)
            self._index.nprobe = min(probes, self.clusters)
        self._index.add(self._rows)

    def near(
        self, looking: Shaped[np.ndarray, "m size"], least: float
    ) -> tuple[Int[np.ndarray, " hits"], Int[np.ndarray, " hits"], Float[np.ndarray, " hits"]]:
        """(which looks, which is found, similarity) of all pairs at least so similar, in the clusters that are
        searched."""
        looking = np.ascontiguousarray(looking)
        if not len(looking):
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        if self._binary:
            bits = 8 * looking.shape[1]
            radius = math.floor((1 - least) / 2 * bits + 1e-9) + 1  # found is what is nearer than it
            starts, distances, found = self._index.range_search(looking, radius)
            similar = 1 - 2 * distances.astype(np.float64) / bits
        else:
            starts, _, found = self._index.range_search(looking, least - SLACK)
        who = np.repeat(np.arange(len(looking)), np.diff(starts.astype(np.int64)))
        if not self._binary:
            similar = np.concatenate(
                [
                    np.einsum(
                        "hd,hd->h",
                        looking[who[i : i + 65536]].astype(np.float64),
                        self._rows[found[i : i + 65536]].astype(np.float64),
                    )
                    for i in range(0, len(who), 65536)
                ]
                or [np.zeros(0)]
            )
        enough = similar >= least - 1e-9
        return who[enough], found[enough].astype(np.int64), similar[enough]


@dataclass(frozen=True)
class Removal:
    """Which images go, and which stays for each; -1 for one that stays itself."""

    threshold: float
    dropped: Bool[np.ndarray, " n"]
    keeper: Int[np.ndarray, " n"]


def remove(
    views: Shaped[np.ndarray, "n views size"],
    index: Index,
    thresholds: Sequence[float],
    tell: Callable[[int], None] = lambda done: None,
) -> list[Removal]:
    """For each threshold, what Esser et al. 2024's appendix E.2 (algorithm 1) drops, going through the images in
    their order.

    An image that has been dropped is passed over; of another, all that are found at least so similar are dropped,
    and it stays. The rows that look may find what their own first row was not found by: an
    image that finds one that stays, before it, is dropped itself, which makes the search symmetric.
    `tell` hears how many images have been gone through.
    """
    count, least = len(views), min(thresholds)
    dropped = np.zeros((len(thresholds), count), bool)
    keeper = np.full((len(thresholds), count), -1, np.int64)
    for start in range(0, count, BLOCK):
        block = np.arange(start, min(start + BLOCK, count))
        block = block[~dropped[:, block].all(axis=0)]
        rows = views[block].reshape(-1, views.shape[2])
        usable = np.flatnonzero(rows.any(axis=1) & np.isfinite(rows).all(axis=1))
        who, found, similar = index.near(rows[usable], least)
        who = block[usable[who] // views.shape[1]]
        other = who != found
        for image, near, alike in _best(who[other], found[other], similar[other]):
            for level, threshold in enumerate(thresholds):
                if dropped[level, image]:
                    continue
                enough = alike >= threshold - 1e-9
                before = near[enough & (near < image)]
                stays = before[~dropped[level, before]]
                if len(stays):
                    dropped[level, image] = True
                    keeper[level, image] = stays[alike[np.searchsorted(near, stays)].argmax()]
                    continue
                after = enough & (near > image)
                new = near[after][~dropped[level, near[after]]]
                dropped[level, new] = True
                keeper[level, new] = image
        tell(min(start + BLOCK, count))
    return [Removal(*each) for each in zip(thresholds, dropped, keeper, strict=True)]


def similarity(
    one: Shaped[np.ndarray, "pairs views size"], other: Shaped[np.ndarray, "pairs views size"]
) -> Float[np.ndarray, " pairs"]:
    """How alike the images of each pair are: the best match of either's rows with the other's first."""
    best = np.full(len(one), -1.0)
    for looking, found in ((one, other), (other, one)):
        for row in range(one.shape[1]):
            usable = looking[:, row].any(axis=1) & np.isfinite(looking[:, row]).all(axis=1)
            if one.dtype == np.uint8:
                alike = 1 - 2 * np.bitwise_count(looking[:, row] ^ found[:, 0]).sum(axis=1) / (8 * one.shape[2])
            else:
                alike = np.einsum("pd,pd->p", looking[:, row].astype(np.float64), found[:, 0].astype(np.float64))
            best = np.where(usable, np.maximum(best, np.nan_to_num(alike, nan=-1)), best)
    return best


def _best(who, found, similar):
    """(image, what it finds in ascending order, how similar at best) for each image that finds any."""
    order = np.lexsort((-similar, found, who))
    who, found, similar = who[order], found[order], similar[order]
    first = np.ones(len(who), bool)
    first[1:] = (who[1:] != who[:-1]) | (found[1:] != found[:-1])
    who, found, similar = who[first], found[first], similar[first]
    images, starts = np.unique(who, return_index=True)
    ends = np.append(starts, len(who))[1:]  # of none none
    for image, start, end in zip(images, starts, ends, strict=True):
        yield int(image), found[start:end], similar[start:end]
