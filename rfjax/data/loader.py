"""Batches of training steps, read ahead.

Grain is used for reading ahead alone: which examples a step gets is a formula of the step, so a
run resumed at a step, or one spread over other hosts, sees the very same data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import grain.python as grain
import numpy as np

from rfjax.data.batch import Batch
from rfjax.data.corpus import Corpus
from rfjax.errors import ConfigError


def batch_of_step(corpus: Corpus, step: int, *, batch_size: int, shard: tuple[int, int] = (0, 1)) -> Batch:
    """The training examples step*batch_size .. (step+1)*batch_size - 1, or shard (i, n)'s slice of them.

    Shards are contiguous and equal: shard i of n holds rows i*batch_size/n .. (i+1)*batch_size/n - 1.
    """
    index, count = shard
    size = batch_size // count
    start = step * batch_size + index * size
    return corpus.examples(np.arange(start, start + size, dtype=np.uint64), "train")


def batches(
    corpus: Corpus,
    *,
    batch_size: int,
    start_step: int,
    stop_step: int,
    shard: tuple[int, int] = (0, 1),
    read_ahead: int = 4,
    threads: int | None = None,
) -> Iterator[Batch]:
    """`batch_of_step` for every step from `start_step` up to `stop_step`, exclusive.

    `threads` (by default one for every four cores, at most `read_ahead`) prepare up to `read_ahead`
    batches while earlier ones are in use; their number changes neither batches nor order. Raises
    `ConfigError` where the shards do not divide the batch.
    """
    index, count = shard
    if not 0 <= index < count or batch_size % count:
        raise ConfigError(
            f"shard {index} of {count} cannot take an equal part of config.train.batch_size={batch_size}; "
            "the number of shards must divide it"
        )
    if start_step >= stop_step:
        return iter(())

    def load(step):
        return batch_of_step(corpus, int(step), batch_size=batch_size, shard=shard)

    threads = threads or max(1, min(read_ahead, (os.cpu_count() or 1) // 4))  # the step needs the other cores
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=read_ahead)
    return iter(grain.MapDataset.range(start_step, stop_step).map(load).to_iter_dataset(options))
