"""Aspect buckets: one corpus of several latent shapes, and which shape a training step takes.

A batch has one shape, so a corpus of several is a tuple of parts of one shape each, and every
training step takes one part. Which one is a function of (seed, step): steps come in cycles of
`CYCLE`, in each of which a part has as many steps as its share of the training images, in an order of
the cycle's own. So a run that is resumed, or spread over other hosts, sees the very same batches.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, Integer

from rfjax.data import hashing
from rfjax.data.batch import Batch, BatchShapes, Conditions
from rfjax.data.corpus import Corpus
from rfjax.errors import ConfigError

VERSION = "buckets-1"  # raised whenever a step of a seed comes to mean another part
CYCLE = 1000  # steps; a part's share of them is its share of the images to within 1 / CYCLE, tiny parts' one step apart
_LOCK = threading.Lock()  # threads that read ahead meet a new cycle together


def shared_out(total: int, counts: Sequence[int], *, at_least: int = 0) -> tuple[int, ...]:
    """`total` things shared out in proportion to `counts`, by largest remainder; earlier ones first among equals.

    A count above zero gets `at_least` so many, of zero none. Raises `ConfigError` where `total` does not
    suffice for that, and where all counts are zero.
    """
    filled = [index for index, count in enumerate(counts) if count]
    if not filled or at_least * len(filled) > total:
        raise ConfigError(f"{total} cannot be shared out over {len(filled)} parts with {at_least} each at least")
    everything = sum(counts)
    # In whole numbers: quotients of floats could order equal remainders by their rounding.
    shares = [max(total * count // everything, at_least if count else 0) for count in counts]
    while sum(shares) < total:
        behind = max(filled, key=lambda index: (total * counts[index] - shares[index] * everything, -index))
        shares[behind] += 1
    while sum(shares) > total:  # what the small ones were given is taken from whom it leaves furthest ahead
        able = [index for index in filled if shares[index] > at_least]
        shares[max(able, key=lambda index: (shares[index] * everything - total * counts[index], index))] -= 1
    return tuple(shares)


@dataclass(frozen=True)
class Schedule:
    """Which part a training step takes, and how many earlier steps took it, as functions of the step.

    `counts` are the parts' numbers of training images. Every part that has any gets at least one step
    of a cycle. With one part, every step takes it.
    """

    counts: tuple[int, ...]
    seed: int

    @property
    def quotas(self) -> tuple[int, ...]:
        """The steps of each part in a cycle of `CYCLE`. Raises `ConfigError` for more parts than that."""
        return _quotas(self.counts)

    def at(self, step: int) -> tuple[int, int]:
        """(part, earlier): the part of a step, and how many of the steps before it took that part."""
        if len(self.counts) == 1:
            return 0, step
        cycle, place = divmod(int(step), CYCLE)
        parts, earlier = self._cycle(cycle)
        part = int(parts[place])
        return part, cycle * self.quotas[part] + int(earlier[place])

    def taken(self, steps: int) -> tuple[int, ...]:
        """How many of the first `steps` steps took each part."""
        if len(self.counts) == 1:
            return (steps,)
        cycle, place = divmod(int(steps), CYCLE)
        within = np.bincount(self._cycle(cycle)[0][:place], minlength=len(self.counts))
        return tuple(cycle * quota + int(count) for quota, count in zip(self.quotas, within, strict=True))

    def _cycle(self, cycle):
        with _LOCK:
            return _order(self.quotas, self.seed, cycle)


@lru_cache(maxsize=16)
def _quotas(counts):
    if sum(1 for count in counts if count) > CYCLE:
        raise ConfigError(
            f"a corpus has {len(counts)} aspect buckets with training images; at most {CYCLE} can be trained on"
        )
    return shared_out(CYCLE, counts, at_least=1)


@lru_cache(maxsize=16)
def _order(
    quotas: tuple[int, ...], seed: int, cycle: int
) -> tuple[Int[np.ndarray, " steps"], Int[np.ndarray, " steps"]]:
    """The part of each step of a cycle, and how many steps of the cycle before it took the same."""
    numbers = hashing.uniforms(hashing.key(VERSION, seed, cycle), np.arange(CYCLE, dtype=np.uint64), 1)[:, 0]
    parts = np.repeat(np.arange(len(quotas)), quotas)[np.argsort(numbers, kind="stable")]
    earlier = np.empty(CYCLE, np.int64)
    for part in range(len(quotas)):
        earlier[parts == part] = np.arange(quotas[part])
    return parts, earlier


@dataclass(frozen=True)
class BucketedCorpus:
    """Parts of one latent shape each as one corpus; see `corpus.Corpus` for the methods.

    `shapes`, and whatever needs no example, are the first part's: it is the one that is sampled at where
    no shape is asked for, so it should be the largest. Examples are the parts' own, `parts[i].examples`.
    Their example ids must be unique among all parts: validation noise and pairs of losses are keyed by
    them. `training` and `validation` are the parts' numbers of images.
    """

    name: str
    parts: tuple[Corpus, ...]
    seed: int
    training: tuple[int, ...]
    validation: tuple[int, ...]

    def __post_init__(self):
        if not self.parts or not len(self.parts) == len(self.training) == len(self.validation):
            raise ConfigError(
                f"corpus {self.name} has {len(self.parts)} parts, {len(self.training)} numbers of training images and "
                f"{len(self.validation)} of validation images; give one of each for every part, and at least one"
            )
        if not any(self.training):
            raise ConfigError(
                f"corpus {self.name} has no training images in any of its {len(self.parts)} aspect buckets"
            )
        first, seen = self.shapes, set()
        for part in self.parts:
            latents = part.shapes.latents
            if (latents[2], part.shapes.context, part.shapes.pooled, part.shapes.encoders) != (
                first.latents[2],
                first.context,
                first.pooled,
                first.encoders,
            ):
                raise ConfigError(
                    f"the aspect buckets of corpus {self.name} differ in more than height and width: {part.shapes} "
                    f"and {first}"
                )
            if latents in seen:
                raise ConfigError(f"corpus {self.name} has two aspect buckets of {latents[0]}x{latents[1]}; join them")
            seen.add(latents)

    @property
    def shapes(self) -> BatchShapes:
        return self.parts[0].shapes

    @property
    def fingerprint(self) -> str:
        facts = (VERSION, self.seed, self.training, self.validation, tuple(part.fingerprint for part in self.parts))
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def examples(self, indices: Integer[np.ndarray, " n"], split: str) -> Batch:
        raise ConfigError(
            f"examples of corpus {self.name} have {len(self.parts)} latent shapes; ask one of its parts for them"
        )

    def captions(self, indices: Integer[np.ndarray, " n"], split: str) -> list[str]:
        raise ConfigError(
            f"examples of corpus {self.name} have {len(self.parts)} latent shapes; ask one of its parts for captions"
        )

    def encode(self, captions: Sequence[str]) -> Conditions:
        return self.parts[0].encode(captions)

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        return self.parts[0].unknown_words(captions)

    @property
    def made_with(self) -> Mapping[str, object]:
        return self.parts[0].made_with

    def evaluation_prompts(self, prompts_per_task: int, seed: int) -> list[dict]:
        return self.parts[0].evaluation_prompts(prompts_per_task, seed)

    def render_prompt(self, row: dict, seed: int) -> Float[np.ndarray, "h w 3"]:
        return self.parts[0].render_prompt(row, seed)

    def to_images(self, latents: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n height width 3"]:
        return self.parts[0].to_images(latents)

    def to_latents(self, images: Float[np.ndarray, "n height width 3"]) -> Float[np.ndarray, "n h w c"]:
        return self.parts[0].to_latents(images)


def schedule_of(corpus: Corpus) -> Schedule:
    """The schedule of a run's steps over a corpus's parts."""
    if len(corpus.parts) == 1:
        return Schedule((1,), 0)
    return Schedule(corpus.training, corpus.seed)


def trained_parts(corpus: Corpus) -> tuple[int, ...]:
    """The numbers of the parts that training steps take."""
    return tuple(part for part, count in enumerate(schedule_of(corpus).counts) if count)


def largest(corpus: Corpus) -> Corpus:
    """The part that costs most to train on: of those that steps take, the one of most latent pixels."""
    return max(
        (corpus.parts[part] for part in trained_parts(corpus)), key=lambda part: math.prod(part.shapes.latents[:2])
    )


def validation_shares(corpus, examples: int) -> tuple[int, ...]:
    """How many of so many validation examples each part gives, its first: in proportion to those it has.

    Raises `ConfigError` where there are not as many; a corpus of one part says so itself when asked for them.
    """
    if len(corpus.parts) == 1:
        return (examples,)
    if examples > sum(corpus.validation):
        raise ConfigError(
            f"config.evaluation.validation.examples is {examples}, and the corpus {corpus.name} has "
            f"{sum(corpus.validation)} "
            f"validation images in its {len(corpus.parts)} aspect buckets; ask for at most as many"
        )
    return shared_out(examples, corpus.validation)


def described(latents: Sequence[int]) -> str:
    """A latent shape as text: 40x24, the height first."""
    return f"{latents[0]}x{latents[1]}"
