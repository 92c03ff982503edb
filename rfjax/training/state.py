"""The state that a run carries from step to step, as one pytree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

Params = Any  # nested dict of float32 arrays
OptState = optax.OptState
Optimizer = optax.GradientTransformation
State = Any  # a named tuple with the fields of `TrainState`, and perhaps more


class TrainState(NamedTuple):
    step: Int[Array, ""]  # completed steps, skipped ones included: the clock
    params: Params
    ema: Params  # exponential moving average of the parameters
    opt_state: OptState
    skipped: Int[Array, ""]  # steps whose loss or gradient was not finite
    skipped_in_row: Int[Array, ""]  # such steps in a row, up to the latest step; 0 if the latest step was finite


def start_state(params: Params, ema: Params, optimizer: Optimizer) -> TrainState:
    """The state at step 0 with the given parameters and average, and a fresh optimiser."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, ema, optimizer.init(params), zero, zero)


def init_state(init: Callable[[Array], Params], optimizer: Optimizer, key: Array) -> TrainState:
    """The state at step 0, with the parameters of a network's `init`; the average equals the parameters."""
    params = init(key)
    return start_state(params, jax.tree.map(jnp.copy, params), optimizer)  # a donated state shares no buffer
