"""Batches of training steps, read ahead.

Grain does nothing but read ahead. A formula gives the examples of a step, so a resumed run, or a run on another number
of hosts, sees the very same data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import grain.python as grain
import numpy as np
from jaxtyping import Int

from rfjax.data.batch import Batch
from rfjax.data.corpus import Corpus
from rfjax.data.stream import stream_of
from rfjax.errors import ConfigError

Places = Sequence[Int[np.ndarray, " _"]]  # rows of a batch, for each part of the corpus


def batch_of_step(corpus: Corpus, step: int, *, batch_size: int | Sequence[int], places: Places | None = None) -> Batch:
    """Reads the training examples of one step. `places` has, for each part of the corpus, the rows of the batch that
    are read; None reads the whole batch.

    The examples come from the part that the step takes. The example in row `place` has index first + place, where
    `first` is the number of examples that earlier steps took from this part.
    """
    stream = stream_of(corpus, batch_size)
    part, first = stream.at(step)
    here = np.arange(stream.sizes[part]) if places is None else places[part]
    return corpus.parts[part].examples(np.uint64(first) + here.astype(np.uint64), "train")


def batches(
    corpus: Corpus,
    *,
    batch_size: int | Sequence[int],
    start_step: int,
    stop_step: int,
    places: Places | None = None,
    read_ahead: int = 4,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Returns an iterator over the batches (`batch_of_step`) of all steps from `start_step` up to, but without,
    `stop_step`.

    `threads` threads (by default one for every four cores, at most `read_ahead`) prepare up to `read_ahead` batches
    while earlier batches are in use. The number of threads changes neither the batches nor their order. `batch_size` is
    one number for all parts, or one for each part. `places` gives, for each part, the rows of the global batch that
    this process's devices hold. The rows need not be consecutive, and processes may share rows.
    """
    for here, size in zip(places or (), stream_of(corpus, batch_size).sizes, strict=places is not None):
        if not (np.all(here >= 0) and np.all(here < size)):
            raise ConfigError(
                f"places {here.tolist()} are not all below config.train.batch_size={size}; give places in the batch"
            )
    if start_step >= stop_step:
        return iter(())

    def load(step):
        return batch_of_step(corpus, int(step), batch_size=batch_size, places=places)

    threads = threads or max(1, min(read_ahead, (os.cpu_count() or 1) // 4))  # the step needs the other cores
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=read_ahead)
    return iter(grain.MapDataset.range(start_step, stop_step).map(load).to_iter_dataset(options))
