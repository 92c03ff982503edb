"""The arrays that the trainer gets from a corpus (latents, text features and ids of a batch), and their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float, Int, UInt32
from numpy import ndarray

from rfjax.errors import ConfigError


def latent_shape(written: Sequence[int]) -> tuple[int, int, int, int]:
    """Converts a shape as users and files write it to (frames, height, width, channels).

    They may write an image as (height, width, channels). Raises `ConfigError` for another number of entries.
    """
    if len(written) not in (3, 4):
        given = f"latents are {tuple(written)}; they have (height, width, channels)"
        raise ConfigError(f"{given}, or with several frames (frames, height, width, channels)")
    frames, height, width, channels = (1, *written)[-4:]
    return frames, height, width, channels


def written_shape(latents: Sequence[int]) -> tuple[int, ...]:
    """The inverse of `latent_shape`: latents of one frame are written as (height, width, channels)."""
    return tuple(latents[1:] if latents[0] == 1 else latents)


def stills(latents: Float[ndarray, "n frames height width channels"]) -> Float[ndarray, "n height width channels"]:
    """Removes the axis of frames from latents of one frame. Raises `ConfigError` if there are several frames."""
    if latents.shape[1] != 1:
        raise ConfigError(f"latents of {latents.shape[1]} frames are clips, not images; give latents of one frame")
    return latents[:, 0]


class Conditions(NamedTuple):
    """The text features of captions: a vector for each token (`context`), and one for the whole caption (`pooled`)."""

    context: Float[ndarray, "batch tokens context_size"]
    pooled: Float[ndarray, "batch pooled_size"]

    def rows(self, places: Int[ndarray, " n"] | Bool[ndarray, " batch"]) -> Conditions:
        """The conditions of the examples at `places` of the batch."""
        return Conditions(self.context[places], self.pooled[places])


class Batch(NamedTuple):
    """The examples of one step, or a slice of them."""

    latents: Float[ndarray, "batch frames height width channels"]
    context: Float[ndarray, "batch tokens context_size"]
    pooled: Float[ndarray, "batch pooled_size"]
    example_ids: UInt32[ndarray, " batch"]  # each example's number in its split; it keys the validation noise

    @property
    def conditions(self) -> Conditions:
        return Conditions(self.context, self.pooled)


@dataclass(frozen=True)
class EncoderSlot:
    """The part of `context` and `pooled` that one text encoder fills, as (start, stop) pairs.

    Condition dropout zeroes each slot independently. A slot may be empty along an axis.
    """

    name: str
    tokens: tuple[int, int]
    channels: tuple[int, int]
    pooled: tuple[int, int]


@dataclass(frozen=True)
class BatchShapes:
    """The shapes of one example."""

    latents: tuple[int, ...]  # frames, height, width, channels; may be given as (height, width, channels) of an image
    context: tuple[int, int]  # tokens, size
    pooled: int
    encoders: tuple[EncoderSlot, ...]

    def __post_init__(self):
        object.__setattr__(self, "latents", latent_shape(self.latents))

    def __repr__(self) -> str:
        """The shapes as text, with the latents as `written_shape` gives them. A corpus's fingerprint is a hash that
        includes this text, so it must not change."""
        latents = f"latents={written_shape(self.latents)!r}"
        return f"BatchShapes({latents}, context={self.context!r}, pooled={self.pooled!r}, encoders={self.encoders!r})"
