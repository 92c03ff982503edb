"""The state of a tuning: the training state of the adapter, and a second adapter, the sampling policy's."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from rfjax.models.lora import Adapter, init_adapter
from rfjax.training.state import Optimizer, OptState, start_state


class TuneState(NamedTuple):
    """A `TrainState` whose parameters are an adapter's factors, with the sampling policy's adapter `sampler`.

    The sampling policy samples the images of a round. It changes only between rounds, so a tuning that is resumed
    inside a round samples the same images again.
    """

    step: Int[Array, ""]
    params: Adapter
    ema: Adapter
    opt_state: OptState
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]
    sampler: Adapter


def init_tuning(key: Array, base, rank: int, optimizer: Optimizer) -> TuneState:
    """The state before the first step, with a new adapter. Only the shapes of the parameters `base` are used."""
    adapter = init_adapter(key, base, rank)
    average, sampler = (jax.tree.map(jnp.copy, adapter) for _ in range(2))  # donated buffers must not be shared
    return TuneState(*start_state(adapter, average, optimizer), sampler)
