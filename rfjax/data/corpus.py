"""What a corpus is, and the table of those there are."""

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


@runtime_checkable
class Corpus(Protocol):
    """An unlimited source of examples with random access.

    Everything is a function of the corpus's seed and the arguments; `fingerprint` is a hash of
    all that decides the data, so that equal fingerprints mean equal examples. `parts` are corpora
    of one latent shape each, and it is they that give examples: the corpus itself, or where the
    shapes are several those of a `buckets.BucketedCorpus`.
    """

    name: str
    shapes: BatchShapes
    fingerprint: str
    parts: tuple[Corpus, ...]
    made_with: Mapping[str, object]  # what frozen models and scales made its arrays, by name; empty where none did

    def examples(self, indices: Integer[ndarray, " n"], split: Split) -> Batch:
        """Examples by index, each independent of the others asked for with it."""

    def captions(self, indices: Integer[ndarray, " n"], split: Split) -> list[str]:
        """The captions that `examples` encodes."""

    def encode(self, captions: Sequence[str]) -> Conditions:
        """Text features, float32. `ConfigError` for a caption that does not fit."""

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        """The words that no training caption holds, once each: a network has learnt nothing of them."""

    def evaluation_prompts(self, prompts_per_task: int, seed: int) -> list[dict]:
        """GenEval metadata rows, tasks in the official order, with "held_out" added.

        Empty where the corpus has none.
        """

    def render_prompt(self, row: dict, seed: int) -> Float[ndarray, "h w 3"]:
        """A ground-truth image in [0, 1] that satisfies a row of `evaluation_prompts`."""

    def to_images(self, latents: Float[ndarray, "n h w c"]) -> Float[ndarray, "n h w 3"]:
        """Pixels in [0, 1]."""

    def to_latents(self, images: Float[ndarray, "n h w 3"]) -> Float[ndarray, "n h w c"]:
        """Latents of about zero mean and unit variance per channel."""


# name -> module whose `make(data, seed)` builds it; imported when asked for
CORPORA = {
    "shapes": "rfjax.data.shapes",
    "digits": "rfjax.data.digits",
    "random": "rfjax.data.random",
    "prepared": "rfjax.data.prepared.corpus",
}


def load_corpus(data: DataConfig, seed: int) -> Corpus:
    """The corpus a config names. Raises `ConfigError` for an unknown name or unusable sizes."""
    check_choice("data.corpus", data.corpus)
    return importlib.import_module(CORPORA[data.corpus]).make(data, seed)
