"""A batch of examples, its captions' features, and their shapes: all that the trainer sees of a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float, Int, UInt32
from numpy import ndarray


class Conditions(NamedTuple):
    """The text features of examples' captions, by token (`context`) and as a whole (`pooled`)."""

    context: Float[ndarray, "batch tokens context_size"]
    pooled: Float[ndarray, "batch pooled_size"]

    def rows(self, places: Int[ndarray, " n"] | Bool[ndarray, " batch"]) -> Conditions:
        """The conditions of the examples at `places` of the batch."""
        return Conditions(self.context[places], self.pooled[places])


class Batch(NamedTuple):
    """The examples of one step, or a slice of them."""

    latents: Float[ndarray, "batch height width channels"]
    context: Float[ndarray, "batch tokens context_size"]
    pooled: Float[ndarray, "batch pooled_size"]
    example_ids: UInt32[ndarray, " batch"]  # the place in the split, by which validation noise is keyed

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

    latents: tuple[int, int, int]  # height, width, channels
    context: tuple[int, int]  # tokens, size
    pooled: int
    encoders: tuple[EncoderSlot, ...]
