"""The training objective: conditional flow matching at a random t (SD3 eqs. 8 and 13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rfjax.flow.formulation import Formulation
from rfjax.flow.path import interpolate, velocity_target

VelocityFn = Callable[..., Float[Array, "batch height width channels"]]


class Draws(NamedTuple):
    """The random numbers of one step."""

    t: Float[Array, "batch"]
    noise: Float[Array, "batch height width channels"]
    keep: Float[Array, "batch encoders"]  # 1 where an encoder's output is kept, 0 where dropped


def draw(
    formulation: Formulation,
    key: Key[Array, ""],
    step: Int[Array, ""],
    places: Int[Array, "batch"],
    latent_shape: tuple[int, int, int],
    encoders: int,
    condition_dropout: float,
) -> Draws:
    """Noise, t and condition dropout, each a function of (key, step, place in the global batch).

    A place's numbers do not depend on which other places are drawn with it, so neither the
    number of devices nor the microbatch size can change them.
    """
    step_key = jax.random.fold_in(key, step)

    def one(place):
        t_key, noise_key, drop_key = jax.random.split(jax.random.fold_in(step_key, place), 3)
        # The open interval: a logit-normal has no finite value at 0 or 1.
        u = jax.random.uniform(t_key, (), minval=jnp.finfo(jnp.float32).tiny, maxval=1.0)
        noise = jax.random.normal(noise_key, latent_shape)
        keep = jax.random.bernoulli(drop_key, 1.0 - condition_dropout, (encoders,))
        return formulation.density.quantile(u), noise, keep.astype(jnp.float32)

    return Draws(*jax.vmap(one)(places))


def drop_conditions(
    context: Float[Array, "batch tokens size"],
    pooled: Float[Array, "batch pooled"],
    keep: Float[Array, "batch encoders"],
    slots: Sequence,
) -> tuple[Float[Array, "batch tokens size"], Float[Array, "batch pooled"]]:
    """Zeroes the outputs of dropped text encoders, each independently (SD3 section 5.1).

    `slots` say which tokens and channels of the context, and which part of the pooled vector,
    each encoder fills (`rfjax.data.batch.EncoderSlot`).
    """
    for index, slot in enumerate(slots):
        kept = keep[:, index]
        (first, last), (low, high) = slot.tokens, slot.channels
        context = context.at[:, first:last, low:high].multiply(kept[:, None, None])
        low, high = slot.pooled
        pooled = pooled.at[:, low:high].multiply(kept[:, None])
    return context, pooled


def flow_matching_loss(
    velocity: VelocityFn,
    formulation: Formulation,
    draws: Draws,
    latents: Float[Array, "batch height width channels"],
    context: Float[Array, "batch tokens size"],
    pooled: Float[Array, "batch pooled"],
) -> Float[Array, "batch"]:
    """Per-example mean squared velocity error, unweighted: t's density alone sets the weight.

    `velocity(z, t, context, pooled)` is the network; conditions are taken as given.
    """
    z = interpolate(formulation.path, latents, draws.noise, draws.t)
    target = velocity_target(formulation.path, latents, draws.noise, draws.t)
    error = velocity(z, draws.t, context, pooled).astype(jnp.float32) - target
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
