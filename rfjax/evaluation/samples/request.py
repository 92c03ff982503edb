"""The settings of sampling from a run, for one picture (`sample_picture`) or a folder (`sample_folder`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rfjax import limits
from rfjax.data.buckets import format_shape, trained_parts
from rfjax.data.prepared.corpus import with_encoders
from rfjax.errors import ConfigError
from rfjax.evaluation.sampler_name import SamplerName
from rfjax.training.processes import distributed
from rfjax.training.progress import note
from rfjax.training.run import Run, open_run

NAMED = 10  # unknown words that a warning names


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The images that a user asks for. Raises `ConfigError` for a number of samples or a seed out of range."""

    step: int | None  # None: the newest checkpoint
    weights: str
    samples: int  # of each prompt
    negative: str | None  # the caption that guidance leads away from; None: the null condition
    seed: int
    latent_size: tuple[int, int] | None = None  # height, width; None: the first of the corpus's shapes
    encoders: tuple[str, ...] = ()  # text encoders of the prompts, on a prepared corpus; empty: the run's

    def __post_init__(self):
        if self.samples < 1:
            raise ConfigError(f"--samples is {self.samples}; it must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"--seed is {self.seed}; it must lie in [0, 2^32)")


def open_for_sampling(workdir: Path, overrides: Mapping[str, object], wanted: Wanted) -> Run:
    """Opens the run with the wanted text encoders. Raises `ConfigError` for a run that cannot be sampled from."""
    run = open_run(workdir, overrides)
    return replace(run, corpus=with_encoders(run.corpus, wanted.encoders)) if wanted.encoders else run


def latents_shape(run: Run, size: tuple[int, int] | None, *, clips: bool = False) -> tuple[int, ...]:
    """Returns the shape of the latents to sample: one frame of `size` (height, width), or by default the corpus's first
    shape.

    Raises `ConfigError` for a size that the network cannot take, naming the shapes of training, and for a default shape
    of several frames if the caller cannot write clips (`clips` is false).
    """
    frames, height, width, channels = run.corpus.shapes.latents
    if size is None:
        if frames > 1 and not clips:
            given = f"{run.name} was trained on latents of {frames} frames, and a folder for scorers holds images"
            stills = f"give --latent-size={height}x{width} to sample stills"
            raise ConfigError(f"{given}; {stills}, or --prompt for clips")
        return run.corpus.shapes.latents
    latents = (1, *size, channels)
    try:
        if min(size) < 1:
            raise ConfigError("both sides must be at least 1")
        limits.check_latents(run.config.model, latents)
    except ConfigError as error:
        trained = ", ".join(format_shape(run.corpus.parts[part].shapes.latents) for part in trained_parts(run.corpus))
        raise ConfigError(
            f"--latent-size={format_shape(latents)}: {error}. {run.name} was trained on {trained}"
        ) from None
    return latents


def image_size(run: Run, wanted: Wanted) -> tuple[int, int]:
    """Returns (height, width) in pixels of the images that `sample_folder` makes, by decoding one latent of zeros."""
    shape = latents_shape(run, wanted.latent_size)
    return tuple(np.shape(run.corpus.to_images(np.zeros((1, *shape), np.float32)))[-3:-1])


def what_made_them(
    run: Run, step: int, wanted: Wanted, shape: tuple[int, ...], images: tuple[int, int] | None = None
) -> dict:
    """Returns the facts for the JSON file beside images. For a folder, `images` is (number of prompts, images of each
    prompt).

    Settings that differ from the run's are part of the sampler's name, so that their scores have different records.
    """
    shapes = run.corpus.shapes
    sampler = SamplerName.of(
        run.config,
        run.config.evaluation.sampler,
        encoders=tuple(slot.name for slot in shapes.encoders) if wanted.encoders else (),
        latent_size=None if shape == shapes.latents else shape[1:3],
        images=images,
    )
    return {
        "run": run.name,
        "step": step,
        "weights": wanted.weights,
        "sampler": sampler.format(),
        "negative": "null condition (zeros)" if wanted.negative is None else wanted.negative,
        "seed": wanted.seed,
        "samples": wanted.samples,
    }


def warn_of_unknown_words(run: Run, prompts: Sequence[str], wanted: Wanted) -> None:
    """Warns of words that no caption of the corpus has, in one line and from one process."""
    unknown = run.corpus.unknown_words([*prompts, wanted.negative or ""])
    if unknown and distributed.is_first():
        words = ", ".join(map(repr, unknown[:NAMED])) + (", ..." if len(unknown) > NAMED else "")
        note(f"warning: the corpus {run.corpus.name} has no caption with {words}, so the network has not learnt them")
