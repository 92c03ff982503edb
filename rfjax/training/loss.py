"""Makes the training loss of a batch at a step, from network, formulation and condition dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rfjax.config import Config
from rfjax.data.batch import Batch, Conditions
from rfjax.flow.objective import draw, drop_conditions, example_losses, examples_at
from rfjax.flow.resolution import formulation_at


class ExampleLosses(NamedTuple):
    """Each example's t and loss. The batch's loss is the mean of the losses."""

    t: Float[Array, " batch"]
    losses: Float[Array, " batch"]
    measures: dict[str, Float[Array, " batch"]] = {}  # other numbers of the examples; the curve has their means


# (params, batch, step, places) -> (mean loss, ExampleLosses); `places` are the examples' places
# in the global batch, which with the step decide their random numbers.
LossFn = Callable[..., tuple[Float[Array, ""], ExampleLosses]]


def run_keys(seed: int) -> tuple[Array, Array]:
    """Returns a run's random keys: (the key of its initialisation, the key of its training noise)."""
    initial, noise = jax.random.split(jax.random.key(seed, impl="threefry2x32"))
    return initial, noise


class StepInputs(NamedTuple):
    """The inputs of a step that are the same for every formulation. A formulation maps the uniform number u to t."""

    u: Float[Array, " batch"]
    noise: Float[Array, "batch frames height width channels"]
    conditions: Conditions


def step_inputs(
    config: Config, encoders: tuple, batch: Batch, step: Int[Array, ""], places: Int[Array, " batch"]
) -> StepInputs:
    """Draws the random numbers of a step, and applies condition dropout to the batch's conditions.

    `encoders` are the corpus's `EncoderSlot`s, each of which is dropped independently.
    """
    _, key = run_keys(config.seed)
    dropout = config.train.dropout(len(encoders))
    draws = draw(key, step, places, batch.latents.shape[1:], len(encoders), dropout)
    return StepInputs(draws.u, draws.noise, drop_conditions(batch.conditions, draws.keep, encoders))


def make_loss(config: Config, apply: Callable, encoders: tuple) -> LossFn:
    """Makes the training loss of the config's formulation for a backbone's `apply`. `encoders` are the corpus's
    `EncoderSlot`s. If the timestep shift depends on the latent shape, it is computed from the batch's latent shape."""

    def loss_fn(params, batch, step: Int[Array, ""], places: Int[Array, " batch"]):
        formulation = formulation_at(config, batch.latents.shape[1:])
        inputs = step_inputs(config, encoders, batch, step, places)
        t = formulation.density.quantile(inputs.u)
        losses = example_losses(
            lambda *given: apply(params, *given),
            examples_at(formulation, t),
            inputs.noise,
            batch.latents,
            inputs.conditions,
        )
        return jnp.mean(losses), ExampleLosses(t, losses)

    return loss_fn
