"""Batches of training steps, read ahead.

Grain is used for reading ahead alone: which examples a step gets is a formula of the step, so a
run resumed at a step, or one spread over other hosts, sees the very same data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import grain.python as grain
import numpy as np
from jaxtyping import Int

from rfjax.data.batch import Batch
from rfjax.data.buckets import schedule_of
from rfjax.data.corpus import Corpus
from rfjax.errors import ConfigError


def batch_of_step(
    corpus: Corpus, step: int, *, batch_size: int, places: Int[np.ndarray, " rows"] | None = None
) -> Batch:
    """The training examples earlier*batch_size + place of the step's part, for the `places` given or all of the
    batch's. `earlier` is how many steps before took that part: the step itself, where there is but one part."""
    places = np.arange(batch_size) if places is None else places
    part, earlier = schedule_of(corpus).at(step)
    return corpus.parts[part].examples(np.uint64(earlier * batch_size) + places.astype(np.uint64), "train")


def batches(
    corpus: Corpus,
    *,
    batch_size: int,
    start_step: int,
    stop_step: int,
    places: Int[np.ndarray, " rows"] | None = None,
    read_ahead: int = 4,
    threads: int | None = None,
) -> Iterator[Batch]:
    """`batch_of_step` for every step from `start_step` up to `stop_step`, exclusive.

    `threads` (by default one for every four cores, at most `read_ahead`) prepare up to `read_ahead`
    batches while earlier ones are in use; their number changes neither batches nor order. `places` are
    those of the global batch that this process's devices hold: any of them, for a mesh may give a process
    rows that do not follow each other, or two processes the same.
    """
    if places is not None and not (np.all(places >= 0) and np.all(places < batch_size)):
        raise ConfigError(
            f"the places {places.tolist()} are not all among a batch of config.train.batch_size={batch_size}"
        )
    if start_step >= stop_step:
        return iter(())

    def load(step):
        return batch_of_step(corpus, int(step), batch_size=batch_size, places=places)

    threads = threads or max(1, min(read_ahead, (os.cpu_count() or 1) // 4))  # the step needs the other cores
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=read_ahead)
    return iter(grain.MapDataset.range(start_step, stop_step).map(load).to_iter_dataset(options))
