"""The stream of a run's training examples: which part a step takes, how many of its examples, and from which one on.

All parts may have equally many examples in a batch. Or each part has a batch of its own, so that all batches have about
equally many tokens: then a step on stills takes more of them than a step on clips. A position in the stream is a count
of examples. It is in closed form in (seed, step), as the schedule is.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rfjax.data.buckets import Schedule, schedule_of
from rfjax.data.corpus import Corpus


def batch_sizes(tokens: Sequence[int], batch_size: int, tokens_per_batch: int) -> tuple[int, ...]:
    """The examples in a batch of each part, from the tokens of an example of it.

    It is the largest multiple of `batch_size` with at most `tokens_per_batch` tokens, and never less than `batch_size`.
    So devices and microbatches that divide `batch_size` divide all batches.
    """
    return tuple(batch_size * max(1, tokens_per_batch // (batch_size * each)) for each in tokens)


@dataclass(frozen=True)
class Stream:
    """The schedule of the parts, and the examples in a batch of each (`sizes`)."""

    schedule: Schedule
    sizes: tuple[int, ...]

    def at(self, step: int) -> tuple[int, int]:
        """(part, first): the part of a step, and the index in it of the batch's first example."""
        part, earlier = self.schedule.at(step)
        return part, earlier * self.sizes[part]

    def examples_of_parts(self, steps: int) -> tuple[int, ...]:
        """How many examples of each part the first `steps` steps take."""
        return tuple(taken * size for taken, size in zip(self.schedule.taken(steps), self.sizes, strict=True))

    def examples_before(self, step: int) -> int:
        """How many examples all steps before `step` take together."""
        return sum(self.examples_of_parts(step))

    def step_after(self, examples: int) -> int:
        """The first step before which the stream has taken at least so many examples."""
        trained = [size for size, count in zip(self.sizes, self.schedule.counts, strict=True) if count]
        last = math.ceil(examples / min(trained))
        return bisect.bisect_left(range(last), examples, key=self.examples_before)


def stream_of(corpus: Corpus, batch_size: int | Sequence[int]) -> Stream:
    """The stream of a run's steps over a corpus's parts. `batch_size` is one for all parts, or one for each."""
    parts = len(corpus.parts)
    sizes = (batch_size,) * parts if isinstance(batch_size, int) else tuple(batch_size)
    return Stream(schedule_of(corpus, sizes), sizes)
