"""The stream of a run's training examples: for each step its part, its batch size, and the index of its first example.

Either all parts have the same batch size, or each part has its own, so that all batches have about equally many tokens;
a batch of stills then has more examples than a batch of clips. Positions in the stream are counted in examples. All of
this is computed from (seed, step) in closed form.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rfjax.data.buckets import Schedule, schedule_of
from rfjax.data.corpus import Corpus


def batch_sizes(tokens: Sequence[int], batch_size: int, tokens_per_batch: int) -> tuple[int, ...]:
    """Computes the batch size of each part. `tokens` has, for each part, the number of tokens of one example.

    A part's batch size is the largest multiple of `batch_size` with at most `tokens_per_batch` tokens, and at least
    `batch_size`. So devices and microbatches that divide `batch_size` also divide all batches.
    """
    return tuple(batch_size * max(1, tokens_per_batch // (batch_size * each)) for each in tokens)


@dataclass(frozen=True)
class Stream:
    """Which part each step takes (`schedule`), and the batch size of each part (`sizes`)."""

    schedule: Schedule
    sizes: tuple[int, ...]

    def at(self, step: int) -> tuple[int, int]:
        """Returns (part, first): the part that a step takes, and the index in this part of the batch's first
        example."""
        part, earlier = self.schedule.at(step)
        return part, earlier * self.sizes[part]

    def examples_of_parts(self, steps: int) -> tuple[int, ...]:
        """Returns how many examples the first `steps` steps take from each part."""
        return tuple(taken * size for taken, size in zip(self.schedule.taken(steps), self.sizes, strict=True))

    def examples_before(self, step: int) -> int:
        """Returns how many examples all steps before `step` take together."""
        return sum(self.examples_of_parts(step))

    def step_after(self, examples: int) -> int:
        """Returns the first step before which at least `examples` examples have been taken."""
        trained = [size for size, count in zip(self.sizes, self.schedule.counts, strict=True) if count]
        last = math.ceil(examples / min(trained))
        return bisect.bisect_left(range(last), examples, key=self.examples_before)


def stream_of(corpus: Corpus, batch_size: int | Sequence[int]) -> Stream:
    """Makes the `Stream` of training examples that a run takes from a corpus. `batch_size` is one number for all parts
    of the corpus, or one for each part."""
    parts = len(corpus.parts)
    sizes = (batch_size,) * parts if isinstance(batch_size, int) else tuple(batch_size)
    return Stream(schedule_of(corpus, sizes), sizes)
