"""Aspect buckets: a corpus of several latent shapes, and the shape that each training step takes.

All examples of a batch must have one shape. So a corpus of several shapes is a tuple of parts of one shape each, and
each training step takes its batch from one part, which is a function of (seed, step). So a run that is resumed, or
moved to other hosts, sees the same batches. Steps are grouped into cycles of `CYCLE` steps. In every cycle, a part's
share of the examples is its share of the training images, up to rounding. The order of the parts differs from cycle to
cycle.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, Integer

from rfjax.data import hashing
from rfjax.data.batch import Batch, BatchShapes, Conditions, written_shape
from rfjax.data.corpus import Corpus
from rfjax.errors import ConfigError

VERSION = "buckets-1"  # to be raised whenever the part of a step changes
# Steps of a cycle. Rounding to whole steps changes a part's share of the steps by less than 1 / CYCLE; if parts that
# are due less than one step get one, the larger parts give up more.
CYCLE = 1000
_LOCK = threading.Lock()  # threads that read ahead come to a new cycle at the same time


def share_out(total: int, counts: Sequence[int], *, at_least: int = 0) -> tuple[int, ...]:
    """Divides `total` in proportion to `counts`, by largest remainder. The first of several equal remainders wins.

    A count above zero gets at least `at_least`; a count of zero gets 0. Raises `ConfigError` if `total` is too small
    for this, or if all counts are zero.
    """
    filled = [index for index, count in enumerate(counts) if count]
    if not filled or at_least * len(filled) > total:
        raise ConfigError(f"{total} cannot be shared out over {len(filled)} parts with {at_least} each at least")
    everything = sum(counts)
    # Integers, because rounding could order equal remainders of floats.
    shares = [max(total * count // everything, at_least if count else 0) for count in counts]
    while sum(shares) < total:
        behind = max(filled, key=lambda index: (total * counts[index] - shares[index] * everything, -index))
        shares[behind] += 1
    while sum(shares) > total:  # `at_least` gave too much: the share furthest above its quota gives one back
        able = [index for index in filled if shares[index] > at_least]
        shares[max(able, key=lambda index: (shares[index] * everything - total * counts[index], index))] -= 1
    return tuple(shares)


@dataclass(frozen=True)
class Schedule:
    """Computes, in closed form, which part a training step takes and how many earlier steps took the same part.

    Each part gets steps in proportion to its entry in `counts`: its number of training images or, if batch sizes differ
    between parts, a number in proportion to images / batch size. A part with images gets a step or more in each cycle.
    """

    counts: tuple[int, ...]
    seed: int

    @property
    def quotas(self) -> tuple[int, ...]:
        """The number of steps of each part in a cycle. Raises `ConfigError` if more than `CYCLE` parts have images."""
        return _quotas(self.counts)

    def at(self, step: int) -> tuple[int, int]:
        """Returns (part, earlier): the part that a step takes, and how many earlier steps took the same part."""
        if len(self.counts) == 1:
            return 0, step
        cycle, place = divmod(int(step), CYCLE)
        parts, earlier = self._cycle(cycle)
        part = int(parts[place])
        return part, cycle * self.quotas[part] + int(earlier[place])

    def taken(self, steps: int) -> tuple[int, ...]:
        """Returns how many of the first `steps` steps take each part."""
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
    if len(counts) - counts.count(0) > CYCLE:
        raise ConfigError(f"a corpus has {len(counts)} aspect buckets; at most {CYCLE} may have training images")
    return share_out(CYCLE, counts, at_least=1)


@lru_cache(maxsize=16)
def _order(
    quotas: tuple[int, ...], seed: int, cycle: int
) -> tuple[Int[np.ndarray, " steps"], Int[np.ndarray, " steps"]]:
    """Returns (parts, earlier): for each step of a cycle, the part that the step takes, and how many earlier steps of
    the cycle take the same part."""
    numbers = hashing.uniforms(hashing.key(VERSION, seed, cycle), np.arange(CYCLE, dtype=np.uint64), 1)[:, 0]
    parts = np.repeat(np.arange(len(quotas)), quotas)[np.argsort(numbers, kind="stable")]
    earlier = np.empty(CYCLE, np.int64)
    for part in range(len(quotas)):
        earlier[parts == part] = np.arange(quotas[part])
    return parts, earlier


@dataclass(frozen=True)
class BucketedCorpus:
    """A corpus of several latent shapes, with a part for each; see `corpus.Corpus` for the methods.

    Only the parts give examples and captions (`parts[i].examples`). Example ids must be unique over all parts, because
    validation noise and paired losses are keyed by id. `fingerprint` covers all parts, and a word is unknown only if it
    is unknown to all parts. `shapes` and the remaining methods are those of the first part. The first part should be
    the largest, since sampling uses its shape by default. `training` and `validation` have each part's number of
    images.
    """

    name: str
    parts: tuple[Corpus, ...]
    seed: int
    training: tuple[int, ...]
    validation: tuple[int, ...]

    def __post_init__(self):
        parts, training, validation = len(self.parts), len(self.training), len(self.validation)
        if not parts or not parts == training == validation:
            given = f"{parts} parts, {training} numbers of training images and {validation} of validation images"
            raise ConfigError(f"corpus {self.name} has {given}; give both numbers for every part, and some part")
        if not any(self.training):
            raise ConfigError(f"corpus {self.name} has no training images in any of its {parts} aspect buckets")
        first, seen = self.shapes, set()
        for shapes in (part.shapes for part in self.parts):
            latents = shapes.latents
            if replace(shapes, latents=(*first.latents[:3], latents[3])) != first:
                differ = "differ in more than frames, height and width"
                raise ConfigError(f"aspect buckets of {self.name} {differ}: {shapes}, {first}")
            if latents in seen:
                raise ConfigError(f"corpus {self.name} has two aspect buckets of {format_shape(latents)}; join them")
            seen.add(latents)

    @property
    def shapes(self) -> BatchShapes:
        return self.parts[0].shapes

    @property
    def fingerprint(self) -> str:
        facts = (VERSION, self.seed, self.training, self.validation, tuple(part.fingerprint for part in self.parts))
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def examples(self, indices: Integer[np.ndarray, " n"], split: str) -> Batch:
        raise ConfigError(f"corpus {self.name} has {len(self.parts)} latent shapes; ask one of its parts for examples")

    def captions(self, indices: Integer[np.ndarray, " n"], split: str) -> list[str]:
        raise ConfigError(f"corpus {self.name} has {len(self.parts)} latent shapes; ask one of its parts for captions")

    def encode(self, captions: Sequence[str]) -> Conditions:
        return self.parts[0].encode(captions)

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        each = [part.unknown_words(captions) for part in self.parts]
        return [word for word in each[0] if all(word in unknown for unknown in each[1:])]

    @property
    def made_with(self) -> Mapping[str, object]:
        return self.parts[0].made_with

    def evaluation_prompts(self, prompts_per_task: int, seed: int) -> list[dict]:
        return self.parts[0].evaluation_prompts(prompts_per_task, seed)

    def render_prompt(self, row: dict, seed: int) -> Float[np.ndarray, "h w 3"]:
        return self.parts[0].render_prompt(row, seed)

    def to_images(self, latents: Float[np.ndarray, "n frames h w c"]) -> Float[np.ndarray, "n height width 3"]:
        return self.parts[0].to_images(latents)

    def to_clips(self, latents: Float[np.ndarray, "n f h w c"]) -> Float[np.ndarray, "n frames height width 3"]:
        return self.parts[0].to_clips(latents)

    def to_latents(self, images: Float[np.ndarray, "n height width 3"]) -> Float[np.ndarray, "n 1 h w c"]:
        return self.parts[0].to_latents(images)


def schedule_of(corpus: Corpus, sizes: Sequence[int] = ()) -> Schedule:
    """Makes the schedule of a run's steps over a corpus's parts.

    `sizes` are the parts' batch sizes, by default all equal. A part's share of the images decides its share of the
    examples, so a part with larger batches has fewer steps.
    """
    if len(corpus.parts) == 1:
        return Schedule((1,), 0)
    whole = math.lcm(*sizes)
    weights = [whole // size for size in sizes] or [1] * len(corpus.parts)
    return Schedule(tuple(map(math.prod, zip(corpus.training, weights, strict=True))), corpus.seed)


def trained_parts(corpus: Corpus) -> tuple[int, ...]:
    """Returns the indices of the parts that have training images. Training steps take batches from no other part."""
    return tuple(part for part, count in enumerate(schedule_of(corpus).counts) if count)


def validation_shares(corpus, examples: int) -> tuple[int, ...]:
    """Divides `examples` validation examples among the parts, in proportion to their validation images.

    Raises `ConfigError` if there are fewer images than examples. For a corpus of one part this error is raised later,
    when the examples are read.
    """
    if len(corpus.parts) == 1:
        return (examples,)
    if examples > sum(corpus.validation):
        given = f"config.evaluation.validation.examples is {examples}, and the corpus {corpus.name}"
        held = f"{sum(corpus.validation)} validation images in its {len(corpus.parts)} aspect buckets"
        raise ConfigError(f"{given} has {held}; ask for at most as many")
    return share_out(examples, corpus.validation)


def format_shape(latents: Sequence[int]) -> str:
    """Formats a shape (frames, height, width, ...): a still as HEIGHTxWIDTH, such as 40x24, and a clip as
    FRAMESxHEIGHTxWIDTH, such as 8x40x24."""
    return "x".join(map(str, written_shape(latents[:3])))
