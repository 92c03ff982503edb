"""The corpus `random`: Gaussian latents and features of any size, for benchmarks and dry runs.

Nothing can be learnt from it. All sizes come from the config, so it can replace a corpus that is not available.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Integer

from rfjax.config import DataConfig
from rfjax.data import hashing
from rfjax.data.batch import Batch, BatchShapes, Conditions, EncoderSlot, stills
from rfjax.data.corpus import seed_facts, split_seed
from rfjax.errors import ConfigError

VERSION = "random-1"

# (context_tokens, context_size, pooled_size) -> the encoders' slots. SD3 puts the two CLIP models side by side over the
# first 77 tokens, and T5 after them (Esser et al. 2024, fig. 2).
ENCODERS = {
    (154, 4096, 2048): (
        EncoderSlot("clip_l", (0, 77), (0, 768), (0, 768)),
        EncoderSlot("clip_g", (0, 77), (768, 2048), (768, 2048)),
        EncoderSlot("t5", (77, 154), (0, 4096), (0, 0)),
    ),
}


@dataclass(frozen=True)
class RandomCorpus:
    """Independent standard normals; see `corpus.Corpus` for the methods."""

    seed: int
    shapes: BatchShapes
    name: str = "random"
    made_with: ClassVar[Mapping[str, object]] = {}

    @property
    def parts(self) -> tuple[RandomCorpus]:
        return (self,)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr((VERSION, *seed_facts(self.seed), self.shapes)).encode()).hexdigest()

    def examples(self, indices: Integer[np.ndarray, " n"], split: str) -> Batch:
        indices = np.asarray(indices, np.uint64)
        stream = hashing.key(VERSION, split_seed(self.seed, split), split)
        latents = _normals(stream, indices, self.shapes.latents)
        return Batch(latents, *self.encode(self.captions(indices, split)), indices.astype(np.uint32))

    def captions(self, indices: Integer[np.ndarray, " n"], split: str) -> list[str]:
        seed = split_seed(self.seed, split)
        return [f"{split} example {index} of seed {seed}" for index in np.asarray(indices).tolist()]

    def encode(self, captions: Sequence[str]) -> Conditions:
        """Random text features, hashed from the captions' text, in the encoders' slots; zero outside the slots."""
        keys = np.array([hashing.key(VERSION, caption) for caption in captions], np.uint64)
        drawn_context = _normals(1, keys, self.shapes.context)
        drawn_pooled = _normals(2, keys, (self.shapes.pooled,))
        context, pooled = np.zeros_like(drawn_context), np.zeros_like(drawn_pooled)
        for slot in self.shapes.encoders:
            tokens, channels = slice(*slot.tokens), slice(*slot.channels)
            context[:, tokens, channels] = drawn_context[:, tokens, channels]
            pooled[:, slice(*slot.pooled)] = drawn_pooled[:, slice(*slot.pooled)]
        return Conditions(context, pooled)

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        return []  # any text is as random as any other

    def evaluation_prompts(self, prompts_per_task: int, seed: int) -> list[dict]:
        return []

    def render_prompt(self, row: dict, seed: int) -> Float[np.ndarray, "h w 3"]:
        raise ConfigError("the random corpus has no scenes to render; set config.data.corpus to shapes or digits")

    def to_images(self, latents: Float[np.ndarray, "n frames h w c"]) -> Float[np.ndarray, "n h w 3"]:
        return self.to_clips(stills(latents)[:, None])[:, 0]

    def to_clips(self, latents: Float[np.ndarray, "n frames h w c"]) -> Float[np.ndarray, "n frames h w 3"]:
        """Pictures to look at: the latents' first three channels, with +-2 standard deviations mapped to [0, 1]."""
        channels = self.shapes.latents[-1]
        first = np.asarray(latents, np.float32)[..., [0, 1 % channels, 2 % channels]]
        return np.clip(0.5 + 0.25 * first, 0.0, 1.0)

    def to_latents(self, images: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n 1 h w c"]:
        raise ConfigError("the random corpus has no images to encode; set config.data.corpus to shapes or digits")


def _normals(stream: int, keys: np.ndarray, shape: tuple[int, ...]) -> Float[np.ndarray, " n *shape"]:
    """Float32 normals by Philox (Salmon et al. 2011), with a separate counter-based stream for each example.

    An example may have a million numbers, so the cost of making a generator for it does not matter.
    """
    out = np.empty((len(keys), *shape), np.float32)
    for row, key in zip(out, keys, strict=True):
        bits = np.random.Philox(key=np.array([stream, key], np.uint64))
        np.random.Generator(bits).standard_normal(dtype=np.float32, out=row)
    return out


def make(data: DataConfig, seed: int) -> RandomCorpus:
    for field in ("context_tokens", "context_size", "pooled_size"):
        if getattr(data, field) < 1:
            raise ConfigError(f"config.data.{field} is {getattr(data, field)}; it must be at least 1")
    tokens, size, pooled = sizes = (data.context_tokens, data.context_size, data.pooled_size)
    encoders = ENCODERS.get(sizes, (EncoderSlot("text", (0, tokens), (0, size), (0, pooled)),))
    latents = (data.frames, data.image_size, data.image_size, data.channels)
    return RandomCorpus(seed, BatchShapes(latents, (tokens, size), pooled, encoders))
