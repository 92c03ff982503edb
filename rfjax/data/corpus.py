"""The protocol of a corpus, and the table of all corpora."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, Integer
from numpy import ndarray

from rfjax.config import DataConfig
from rfjax.data.batch import Batch, BatchShapes, Conditions
from rfjax.limits import check_choice

Split = Literal["train", "validation"]


# The seed of the validation examples of embedded corpora. It is fixed, so runs of all seeds have the same examples.
VALIDATION_SEED = 0


def split_seed(seed: int, split: Split) -> int:
    """The seed of a split of an embedded corpus: `seed` for training, and one fixed seed for validation."""
    return VALIDATION_SEED if split == "validation" else seed


def seed_facts(seed: int) -> tuple[int | str, ...]:
    """The facts about an embedded corpus's seeds that go into the corpus's fingerprint."""
    return (seed,) if seed == VALIDATION_SEED else (seed, f"validation of seed {VALIDATION_SEED}")


@runtime_checkable
class Corpus(Protocol):
    """A source of examples with random access. Training examples never end; a prepared corpus repeats its images.

    All results are functions of the corpus's seed and the arguments. `fingerprint` is a hash of all that decides the
    data: equal fingerprints mean equal examples. `parts` are corpora of one latent shape each, and only they give
    examples. A corpus of one shape is its own only part; a `buckets.BucketedCorpus` has several parts.
    """

    name: str
    shapes: BatchShapes
    fingerprint: str
    parts: tuple[Corpus, ...]
    made_with: Mapping[str, object]  # name -> hash of a frozen model, or the latents' shift or scale

    def examples(self, indices: Integer[ndarray, " n"], split: Split) -> Batch:
        """The examples at these indices. An example depends only on its own index."""

    def captions(self, indices: Integer[ndarray, " n"], split: Split) -> list[str]:
        """The captions of the examples at these indices, as text; `examples` returns their features."""

    def encode(self, captions: Sequence[str]) -> Conditions:
        """Encodes captions as float32 text features. Raises `ConfigError` for a caption that is too long."""

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        """The words of `captions` that no training caption contains, each once. A network knows nothing about them."""

    def evaluation_prompts(self, prompts_per_task: int, seed: int) -> list[dict]:
        """Returns prompts for evaluation, as GenEval's metadata rows with the key "held_out" added, in the official
        order of tasks; [] for a corpus without prompts."""

    def render_prompt(self, row: dict, seed: int) -> Float[ndarray, "h w 3"]:
        """A ground-truth image in [0, 1] that satisfies a row of `evaluation_prompts`."""

    def to_images(self, latents: Float[ndarray, "n frames h w c"]) -> Float[ndarray, "n h w 3"]:
        """Converts latents of one frame to pixels in [0, 1]. Raises `ConfigError` for latents of several frames."""

    def to_clips(self, latents: Float[ndarray, "n f h w c"]) -> Float[ndarray, "n frames h w 3"]:
        """Converts every frame of latents to pixels in [0, 1]."""

    def to_latents(self, images: Float[ndarray, "n h w 3"]) -> Float[ndarray, "n 1 h w c"]:
        """Converts images to latents of one frame, with about zero mean and unit variance per channel."""


# name -> the module whose `make(data, seed)` builds the corpus; imported when it is asked for
CORPORA = {
    "shapes": "rfjax.data.shapes",
    "digits": "rfjax.data.digits",
    "random": "rfjax.data.random",
    "motion": "rfjax.data.motion",
    "prepared": "rfjax.data.prepared.corpus",
}


def load_corpus(data: DataConfig, seed: int) -> Corpus:
    """The corpus that a config names. Raises `ConfigError` for an unknown name or unusable sizes."""
    check_choice("data.corpus", data.corpus)
    return importlib.import_module(CORPORA[data.corpus]).make(data, seed)
