"""What sampling from a run needs, for one picture (`sample_picture`) or a folder (`sample_folder`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rfjax import limits
from rfjax.data.buckets import format_shape, trained_parts
from rfjax.data.prepared.corpus import with_encoders
from rfjax.errors import ConfigError
from rfjax.evaluation.sampler_name import SamplerName
from rfjax.training.processes import distributed
from rfjax.training.progress import note
from rfjax.training.run import Run, open_run

NAMED = 10  # unknown words, of a warning


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The images that a user asks for. Raises `ConfigError` for impossible numbers."""

    step: int | None  # None: the newest
    weights: str
    samples: int  # of each prompt
    negative: str | None  # None: guidance is away from the null condition
    seed: int
    latent_size: tuple[int, int] | None = None  # height, width; None: the corpus's own, the first of several
    encoders: tuple[str, ...] = ()  # of a prepared corpus, those that prompts are encoded with; none named: the run's

    def __post_init__(self):
        if self.samples < 1:
            raise ConfigError(f"--samples is {self.samples}; it must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"--seed is {self.seed}; it must lie in [0, 2^32)")


def open_for_sampling(workdir: Path, overrides: Mapping[str, object], wanted: Wanted) -> Run:
    """Opens the run to be sampled from, with the wanted text encoders. Raises `ConfigError` for what cannot be."""
    run = open_run(workdir, overrides)
    return replace(run, corpus=with_encoders(run.corpus, wanted.encoders)) if wanted.encoders else run


def latents_shape(run: Run, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """The shape of latents of the `size` (height, width) asked for; by default the first of the corpus's own shapes.

    Raises `ConfigError` for a size that the network cannot take, with the shapes that it was trained on.
    """
    if size is None:
        return run.corpus.shapes.latents
    latents = (*size, run.corpus.shapes.latents[2])
    try:
        if min(size) < 1:
            raise ConfigError(f"latents of {format_shape(size)} have no pixels")
        limits.check_latents(run.config.model, latents)
    except ConfigError as error:
        trained = ", ".join(format_shape(run.corpus.parts[part].shapes.latents) for part in trained_parts(run.corpus))
        raise ConfigError(f"--latent-size={format_shape(size)}: {error}. {run.name} was trained on {trained}") from None
    return latents


def what_made_them(
    run: Run, step: int, wanted: Wanted, shape: tuple[int, int, int], images: tuple[int, int] | None = None
) -> dict:
    """The facts for the JSON beside images; `images` are the numbers of prompts and of each one's images, of a folder.

    What is not the run's own way of sampling is in the sampler's name, so that its scores have a record of their own.
    """
    shapes = run.corpus.shapes
    sampler = SamplerName.of(
        run.config,
        run.config.evaluation.sampler,
        encoders=tuple(slot.name for slot in shapes.encoders) if wanted.encoders else (),
        latent_size=None if shape == shapes.latents else shape[:2],
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
    """Warns in one line, from one process, of words in the captions that the corpus does not have."""
    unknown = run.corpus.unknown_words([*prompts, wanted.negative or ""])
    if unknown and distributed.is_first():
        words = ", ".join(map(repr, unknown[:NAMED])) + (", ..." if len(unknown) > NAMED else "")
        note(
            f"warning: the corpus {run.corpus.name} has no caption with {words}; the network has not learnt what "
            "that means"
        )
