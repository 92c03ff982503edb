"""The training objective of every formulation: a squared error at a random t (SD3 eqs. 8 to 13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rfjax.data.batch import Conditions
from rfjax.flow.formulation import Formulation
from rfjax.flow.path import Path, Times, expand_time
from rfjax.flow.prediction import Mixing

NetworkFn = Callable[..., Float[Array, "batch frames height width channels"]]


class Draws(NamedTuple):
    """The random numbers of one step. They are the same for all formulations; a formulation turns u into t."""

    u: Float[Array, " batch"]
    noise: Float[Array, "batch frames height width channels"]
    keep: Float[Array, "batch encoders"]  # 1 where an encoder's output is kept, 0 where dropped


def draw(
    key: Key[Array, ""],
    step: Int[Array, ""],
    places: Int[Array, " batch"],
    latent_shape: tuple[int, ...],
    encoders: int,
    condition_dropout: float,
) -> Draws:
    """Draws u for t, noise and condition dropout, each as a function of (key, step, place in the global batch).

    A place's numbers do not depend on the other places, so neither the number of devices nor the size of a microbatch
    can change them.
    """
    step_key = jax.random.fold_in(key, step)

    def one(place):
        t_key, noise_key, drop_key = jax.random.split(jax.random.fold_in(step_key, place), 3)
        # The open interval: a logit-normal has no finite value at 0 or 1.
        u = jax.random.uniform(t_key, (), minval=jnp.finfo(jnp.float32).tiny, maxval=1.0)
        noise = jax.random.normal(noise_key, latent_shape)
        keep = jax.random.bernoulli(drop_key, 1.0 - condition_dropout, (encoders,))
        return u, noise, keep.astype(jnp.float32)

    return Draws(*jax.vmap(one)(places))


def drop_conditions(conditions: Conditions, keep: Float[Array, "batch encoders"], slots: Sequence) -> Conditions:
    """Zeroes the outputs of the dropped text encoders (SD3 section 5.1).

    `slots` say which tokens and channels of the context, and which part of the pooled vector, each encoder fills
    (`rfjax.data.batch.EncoderSlot`).
    """
    context, pooled = conditions
    for index, slot in enumerate(slots):
        kept = keep[:, index]
        (first, last), (low, high) = slot.tokens, slot.channels
        context = context.at[:, first:last, low:high].multiply(kept[:, None, None])
        low, high = slot.pooled
        pooled = pooled.at[:, low:high].multiply(kept[:, None])
    return Conditions(context, pooled)


class Examples(NamedTuple):
    """A formulation's coefficients for a batch: a value per example, at its t, or one value for all examples."""

    mixing: Mixing
    input_scale: Times | float
    network_time: Times  # the network's time input, a function of t
    weight: Times | float


def examples_at(formulation: Formulation, t: Float[Array, " batch"]) -> Examples:
    """Returns the coefficients of a formulation for examples at times t."""
    mixing = formulation.prediction.mixing(formulation.path, t)
    scale = formulation.prediction.input_scale(mixing.a, mixing.b)
    return Examples(mixing, scale, formulation.path.condition(t), formulation.weight.at(t))


def example_losses(
    network: NetworkFn,
    examples: Examples,
    noise: Float[Array, "batch frames height width channels"],
    latents: Float[Array, "batch frames height width channels"],
    conditions: Conditions,
) -> Float[Array, " batch"]:
    """Returns each example's mean squared error of the prediction, times the weight at the example's t.

    Calls `network(scaled z, time, context, pooled)`; `time` is the formulation's function of t (for EDM ln(sigma) / 4).
    Condition dropout has been applied before. For rf this is conditional flow matching (SD3 eqs. 8 and 13).
    """
    mixing, scale, network_time, weight = examples
    a, b, m, n = (expand_time(coefficient, latents) for coefficient in mixing)
    z = a * latents + b * noise
    target = m * latents + n * noise
    seen = (scale if isinstance(scale, float) else expand_time(scale, latents)) * z
    error = network(seen, network_time, *conditions).astype(jnp.float32) - target
    return weight * jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def log_snr(path: Path, t: Times) -> Times:
    """log(a^2 / b^2) (SD3 section 2)."""
    return 2.0 * jnp.log(path.a(t) / path.b(t))


def effective_weight(formulation: Formulation, t: Times) -> Times:
    """Computes w of SD3 eq. 12 at the log-SNR of t. In expectation over t and eps the loss is

        L = 1/2 integral of w(lambda) ||eps_hat - eps||^2 d lambda.

    So w is twice the product of two numbers: the factor that the loss has on ||eps_hat - eps||^2 at t, and the density
    of lambda in training.
    """
    mixing = formulation.prediction.mixing(formulation.path, t)
    a, b = mixing.a, mixing.b
    slope = 2.0 * (formulation.path.da(t) / a - formulation.path.db(t) / b)
    factor = formulation.weight.at(t) * (mixing.determinant / a) ** 2
    return 2.0 * factor * formulation.density.pdf(t) / jnp.abs(slope)
