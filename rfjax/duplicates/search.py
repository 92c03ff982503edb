"""Clusters descriptors, searches the clusters by range with FAISS, and removes near-duplicates greedily.

The similarity of bits is 1 - 2 h / bits, where h is the Hamming distance. That is the cosine of vectors of +1 and -1,
so a threshold means the same for bits and for vectors. Only an image's first row is indexed; all its rows are queries.
The similarity of two images is the best match between any row of one and the first row of the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from rfjax.prepare.libraries import require

ONE_CLUSTER = 50_000  # up to so many images, every pair is compared
BLOCK = 512  # images whose rows are queried at once
TRAINED_ON = 256  # k-means is trained on at most this many descriptors per cluster
ROUNDS = 20
SEED = 0
SLACK = 1e-4  # FAISS's float32 search goes so far below the threshold; its hits are computed again in float64
CHUNK = 65536  # pairs compared in float64 at once


def default_clusters(images: int) -> int:
    """Returns 1 up to 50,000 images, else 2 sqrt(images). For 64 million images that is 16,000, as in Esser et al."""
    return 1 if images <= ONE_CLUSTER else round(2 * math.sqrt(images))


def faiss_module():
    """Imports and returns FAISS. Raises `ConfigError`, with the command that installs it, if it is missing."""
    return require("faiss", "searching for near-duplicates needs faiss")


class Index:
    """The search index: the first descriptor row of each image, in clusters. A query searches the `probes` clusters
    nearest to it."""

    def __init__(self, rows: Shaped[np.ndarray, "n size"], clusters: int, probes: int):
        faiss = faiss_module()
        self._binary = rows.dtype == np.uint8
        self._rows, size = np.ascontiguousarray(rows), rows.shape[1]
        self.clusters = max(1, min(clusters, len(rows)))
        self._index = flat = faiss.IndexBinaryFlat(8 * size) if self._binary else faiss.IndexFlatIP(size)
        if self.clusters > 1:
            self._quantizer = flat  # faiss does not keep a reference
            if self._binary:
                self._index = faiss.IndexBinaryIVF(flat, 8 * size, self.clusters)
            else:
                self._index = faiss.IndexIVFFlat(flat, size, self.clusters, faiss.METRIC_INNER_PRODUCT)
            self._index.cp.seed, self._index.cp.niter = SEED, ROUNDS
            self._index.cp.max_points_per_centroid, self._index.cp.min_points_per_centroid = TRAINED_ON, 1
            self._index.cp.spherical = not self._binary
            self._index.train(self._rows)
            self._index.nprobe = min(probes, self.clusters)
        self._index.add(self._rows)

    def near(
        self, looking: Shaped[np.ndarray, "m size"], least: float
    ) -> tuple[Int[np.ndarray, " hits"], Int[np.ndarray, " hits"], Float[np.ndarray, " hits"]]:
        """Finds all pairs of similarity >= `least` in the clusters searched. Returns three arrays, with an element for
        each pair: (the query's row in `looking`, the index of the image found, the similarity)."""
        looking = np.ascontiguousarray(looking)
        if not len(looking):
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        if self._binary:
            bits = 8 * looking.shape[1]
            radius = math.floor((1 - least) / 2 * bits + 1e-9) + 1  # faiss finds distances below this
            starts, distances, found = self._index.range_search(looking, radius)
            similar = 1 - 2 * distances.astype(np.float64) / bits
        else:
            starts, _, found = self._index.range_search(looking, least - SLACK)
        who = np.repeat(np.arange(len(looking)), np.diff(starts.astype(np.int64)))
        if not self._binary:
            chunks = [slice(start, start + CHUNK) for start in range(0, len(who), CHUNK)]
            cosines = (_cosines(looking[who[chunk]], self._rows[found[chunk]]) for chunk in chunks)
            similar = np.concatenate([np.zeros(0), *cosines])
        enough = similar >= least - 1e-9
        return who[enough], found[enough].astype(np.int64), similar[enough]


@dataclass(frozen=True)
class Removal:
    """The result of the search at one threshold. `keeper` has for each image the index of the image that stays in its
    place, or -1 if the image itself stays."""

    threshold: float
    dropped: Bool[np.ndarray, " n"]
    keeper: Int[np.ndarray, " n"]


def remove(
    views: Shaped[np.ndarray, "n views size"],
    index: Index,
    thresholds: Sequence[float],
    tell: Callable[[int], None] = lambda done: None,
) -> list[Removal]:
    """Drops near-duplicates at each threshold by algorithm 1 of Esser et al. 2024, appendix E.2, in the images' order.

    Dropped images are skipped. Every other image stays, and the later images that it finds are dropped. One exception
    makes the search symmetric: an image that finds an earlier image that stays is itself dropped. Calls `tell` with the
    number of images done.
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


def _cosines(first: Shaped[np.ndarray, "n size"], second: Shaped[np.ndarray, "n size"]) -> Float[np.ndarray, " n"]:
    """Computes the dot product of each row of `first` with the same row of `second`. The sums are in float64; sums in
    float32 would depend on how many rows are computed at once."""
    return np.einsum("pd,pd->p", first.astype(np.float64), second.astype(np.float64))


def similarity(
    one: Shaped[np.ndarray, "pairs views size"], other: Shaped[np.ndarray, "pairs views size"]
) -> Float[np.ndarray, " pairs"]:
    """Computes the similarity of `one[i]` and `other[i]` for each i. The first view of an image is the whole image; its
    other views are mirrored and cropped versions. The similarity is the best match between any view of either image and
    the first view of its partner, or -1 if no view can be compared."""
    best = np.full(len(one), -1.0)
    for looking, found in ((one, other), (other, one)):
        for row in range(one.shape[1]):
            usable = looking[:, row].any(axis=1) & np.isfinite(looking[:, row]).all(axis=1)
            if one.dtype == np.uint8:
                alike = 1 - 2 * np.bitwise_count(looking[:, row] ^ found[:, 0]).sum(axis=1) / (8 * one.shape[2])
            else:
                alike = _cosines(looking[:, row], found[:, 0])
            best = np.where(usable, np.maximum(best, np.nan_to_num(alike, nan=-1)), best)
    return best


def _best(who, found, similar):
    """Groups the search's hits by query image: yields (query image, the images that it found in ascending order, the
    best similarity of each)."""
    order = np.lexsort((-similar, found, who))
    who, found, similar = who[order], found[order], similar[order]
    first = np.ones(len(who), bool)
    first[1:] = (who[1:] != who[:-1]) | (found[1:] != found[:-1])
    who, found, similar = who[first], found[first], similar[first]
    images, starts = np.unique(who, return_index=True)
    ends = np.append(starts, len(who))[1:]
    for image, start, end in zip(images, starts, ends, strict=True):
        yield int(image), found[start:end], similar[start:end]
