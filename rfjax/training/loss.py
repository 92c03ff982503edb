"""The loss of a batch at a step: network, formulation and condition dropout bound together."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rfjax.config import Config
from rfjax.flow.formulation import parse_formulation
from rfjax.flow.objective import draw, drop_conditions, example_losses


class ExampleLosses(NamedTuple):
    """What a loss says beside its mean."""

    t: Float[Array, "batch"]
    losses: Float[Array, "batch"]


# (params, batch, step, places) -> (mean loss, ExampleLosses); `places` are the examples' places
# in the global batch, which with the step decide their random numbers.
LossFn = Callable[..., tuple[Float[Array, ""], ExampleLosses]]


def run_keys(seed: int) -> tuple[Array, Array]:
    """The keys of a run: (initialisation, training noise)."""
    initial, noise = jax.random.split(jax.random.key(seed, impl="threefry2x32"))
    return initial, noise


def make_loss(config: Config, apply: Callable, encoders: tuple) -> LossFn:
    """The formulation's training loss for a backbone's `apply`.

    `encoders` are the corpus's `EncoderSlot`s, each dropped independently.
    """
    formulation = parse_formulation(config.formulation, config.timestep_shift)
    dropout = config.train.condition_dropout

    def loss_fn(params, batch, step: Int[Array, ""], places: Int[Array, "batch"]):
        _, key = run_keys(config.seed)
        draws = draw(formulation, key, step, places, batch.latents.shape[1:], len(encoders), dropout)
        context, pooled = drop_conditions(batch.context, batch.pooled, draws.keep, encoders)
        losses = example_losses(
            lambda *inputs: apply(params, *inputs), formulation, draws, batch.latents, context, pooled
        )
        return jnp.mean(losses), ExampleLosses(draws.t, losses)

    return loss_fn
