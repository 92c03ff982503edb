"""The state that a tuning carries from step to step: the training state of an adapter, and the sampling policy's
adapter."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from rfjax.models.lora import Adapter, init_adapter
from rfjax.training.state import Optimizer, OptState, TrainState, start_state


class TuneState(NamedTuple):
    """`TrainState` with an adapter's factors for parameters. `sampler` makes the images of a round and changes only
    between rounds. So a tuning that is resumed inside a round makes the same images again."""

    step: Int[Array, ""]
    params: Adapter
    ema: Adapter
    opt_state: OptState
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]
    sampler: Adapter

    @property
    def trained(self) -> TrainState:
        """The part that an update of training takes."""
        return TrainState(*self[: len(TrainState._fields)])

    @classmethod
    def of(cls, trained: TrainState, sampler: Adapter) -> TuneState:
        return cls(*trained, sampler)


def init_tuning(key: Array, base, rank: int, optimizer: Optimizer) -> TuneState:
    """The state before the first step: a new adapter of the parameters `base`, of which only the shapes are used."""
    adapter = init_adapter(key, base, rank)
    average, sampler = (jax.tree.map(jnp.copy, adapter) for _ in range(2))  # a donated state shares no buffer
    return TuneState.of(start_state(adapter, average, optimizer), sampler)
