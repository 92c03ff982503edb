"""A random order of a finite corpus's examples for every epoch, as a function of (key, epoch)."""

from __future__ import annotations

import threading
from functools import lru_cache

import numpy as np
from jaxtyping import Integer, UInt32, UInt64

from rfjax.data import hashing
from rfjax.errors import ConfigError


class EpochOrders:
    """The orders of `count` examples, one order for each epoch; safe to share between threads.

    The last three orders are kept: a batch may span two epochs, and the batches read ahead may reach a third.
    """

    def __init__(self, count: int, key: int):
        self._count, self._lock = count, threading.Lock()  # threads that read ahead may reach a new epoch together
        self._order = lru_cache(maxsize=3)(lambda epoch: _order(key, epoch, count))

    def places(self, indices: Integer[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
        """Returns the number of the example at each index of the endless sequence of epochs. An epoch has every example
        once."""
        epochs, positions = np.divmod(np.asarray(indices, np.uint64), np.uint64(self._count))
        places = np.empty(len(positions), np.uint64)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            with self._lock:
                order = self._order(int(epoch))
            places[mine] = order[positions[mine].astype(np.int64)]
        return places


def _order(key: int, epoch: int, count: int) -> UInt32[np.ndarray, " count"]:
    """Returns the order of an epoch: the examples' numbers, sorted by a random number that is hashed for each example.
    The array takes 4 bytes per example."""
    if count > 2**32:
        raise ConfigError(f"a split has {count} images; at most {2**32} can be put in order")
    numbers = hashing.uniforms(hashing.key("epoch", key, epoch), np.arange(count, dtype=np.uint64), 1)[:, 0]
    return np.argsort(numbers, kind="stable").astype(np.uint32)
