"""The class of the corpora of drawn scenes (`shapes`, `digits`): turns scenes and words into batches and prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Integer

from rfjax.config import DataConfig
from rfjax.data import grammar, hashing, scenes, text
from rfjax.data.batch import Batch, BatchShapes, Conditions, stills
from rfjax.data.corpus import seed_facts, split_seed
from rfjax.data.scenes import Contents, Layout, Vocabulary
from rfjax.errors import ConfigError

SPLITS = ("train", "validation")
GROUND_TRUTH = "validation"  # ground-truth images show the object pictures (such as scans of digits) of this split
IMAGE_SIZES = (16, 32)  # the smallest and the largest side in pixels; on a smaller one, objects cannot be told apart
OWN_SIZES = {
    "frames": 1,
    "channels": 3,
    "context_tokens": text.CONTEXT_TOKENS,
    "context_size": text.CONTEXT_SIZE,
    "pooled_size": text.POOLED_SIZE,
}


@dataclass(frozen=True)
class SceneCorpus:
    """A corpus whose examples are scenes drawn by `render`; see `corpus.Corpus` for the methods.

    The two splits are separate random streams of one generator. Neither shows a held-out pair of class and colour.
    """

    name: str
    version: str  # to be raised whenever the data of a seed change
    seed: int
    image_size: int
    vocabulary: Vocabulary
    mean: tuple[float, float, float]  # per channel over training images, in [0, 1]
    std: tuple[float, float, float]
    render: Callable[[Layout, str], Float[np.ndarray, "n h w 3"]]  # (layout, split) -> images
    made_with: ClassVar[Mapping[str, object]] = {}

    @property
    def shapes(self) -> BatchShapes:
        return BatchShapes(
            latents=(self.image_size, self.image_size, 3),
            context=(text.CONTEXT_TOKENS, text.CONTEXT_SIZE),
            pooled=text.POOLED_SIZE,
            encoders=(text.SLOT,),
        )

    @property
    def parts(self) -> tuple[SceneCorpus]:
        return (self,)

    @property
    def fingerprint(self) -> str:
        facts = (self.name, self.version, *seed_facts(self.seed), self.image_size, self.vocabulary, self.mean, self.std)
        return hashlib.sha256(f"{facts!r}|{_encoder(self.vocabulary).fingerprint}".encode()).hexdigest()

    def scenes(self, indices: Integer[np.ndarray, " n"], split: str) -> tuple[Contents, Layout, list[str]]:
        """Contents, layout and captions of examples."""
        if split not in SPLITS:
            raise ConfigError(f"split {split!r} is unknown; it must be one of {', '.join(SPLITS)}")
        key = hashing.key(self.name, self.version, split_seed(self.seed, split), split)
        slots = (scenes.CONTENT_SLOTS, scenes.LAYOUT_SLOTS, grammar.WORDING_SLOTS)
        content, layout, wording = np.split(hashing.uniforms(key, indices, sum(slots)), np.cumsum(slots)[:-1], axis=1)
        contents = scenes.draw_contents(self.vocabulary, content)
        return contents, scenes.place(contents, layout), grammar.captions(self.vocabulary, contents, wording)

    def examples(self, indices: Integer[np.ndarray, " n"], split: str) -> Batch:
        indices = np.asarray(indices, np.uint64)
        _, layout, captions = self.scenes(indices, split)
        return Batch(self.to_latents(self.render(layout, split)), *self.encode(captions), indices.astype(np.uint32))

    def captions(self, indices: Integer[np.ndarray, " n"], split: str) -> list[str]:
        return self.scenes(np.asarray(indices, np.uint64), split)[2]

    def encode(self, captions: Sequence[str]) -> Conditions:
        return _encoder(self.vocabulary)(captions)

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        known, used = grammar.words(self.vocabulary), (word for caption in captions for word in caption.split())
        return [word for word in dict.fromkeys(used) if word.casefold() not in known]

    def evaluation_prompts(self, prompts_per_task: int, seed: int) -> list[dict]:
        return grammar.evaluation_prompts(self.vocabulary, prompts_per_task, seed)

    def render_prompt(self, row: dict, seed: int) -> Float[np.ndarray, "h w 3"]:
        u = hashing.uniforms(hashing.key("ground truth", row["prompt"]), np.array([seed]), 4 + scenes.LAYOUT_SLOTS)
        contents = grammar.contents_of_row(self.vocabulary, row, u[0, :4])
        return self.render(scenes.place(contents, u[:, 4:]), GROUND_TRUTH)[0].astype(np.float32)

    def to_images(self, latents: Float[np.ndarray, "n frames h w 3"]) -> Float[np.ndarray, "n h w 3"]:
        return self.to_clips(stills(latents)[:, None])[:, 0]

    def to_clips(self, latents: Float[np.ndarray, "n frames h w 3"]) -> Float[np.ndarray, "n frames h w 3"]:
        images = np.asarray(latents, np.float32) * np.float32(self.std) + np.float32(self.mean)
        return np.clip(images, 0.0, 1.0)

    def to_latents(self, images: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n 1 h w 3"]:
        scaled = (np.asarray(images, np.float32) - np.float32(self.mean)) / np.float32(self.std)
        return scaled.astype(np.float32)[:, None]


@lru_cache(maxsize=8)
def _encoder(vocabulary):
    """The text encoder of a vocabulary. Its tokenizer is trained once per process, in a few hundredths of a second."""
    return text.TextEncoder.fit(list(grammar.specimens(vocabulary)))


def scene_corpus(
    data: DataConfig, seed: int, *, name: str, renderer: Callable[[int], Callable], **facts
) -> SceneCorpus:
    """Makes the corpus `name` at the config's image size, drawn by `renderer(image_size)`.

    `facts` are the other fields of `SceneCorpus`. Raises `ConfigError` for an image size that is odd or outside
    `IMAGE_SIZES`. The other sizes of the config (`OWN_SIZES`) must be the corpus's own, since other values would be
    ignored; otherwise `ConfigError` is raised, too.
    """
    size, (low, high) = data.image_size, IMAGE_SIZES
    if size % 2 or not low <= size <= high:
        raise ConfigError(f"config.data.image_size is {size}; the {name} corpus needs an even one from {low} to {high}")
    for field, own in OWN_SIZES.items():
        if getattr(data, field) != own:
            given = f"config.data.{field} is {getattr(data, field)}; the {name} corpus has {own}"
            raise ConfigError(f"{given}: leave it out, or set config.data.corpus=random, which takes any")
    return SceneCorpus(name=name, seed=seed, image_size=size, render=renderer(size), **facts)
