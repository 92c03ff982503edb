"""The losses of preference tuning, in terms of predictions and their errors alone. They know no network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Errors = Float[Array, " batch"]
Latents = Float[Array, "batch frames height width channels"]
SMALLEST_SIZE = 1e-5  # of an error of x0, by which DiffusionNFT's loss is divided


def error_change(prediction: Latents, reference: Latents, target: Latents) -> Errors:
    """||p - v*||^2 - ||p_ref - v*||^2 as means over an image's elements.

    It is computed as a mean of (p - p_ref)(p + p_ref - 2 v*), which stays precise if the two errors are nearly equal.
    The rounding of each error, multiplied by a beta of thousands, would otherwise show in the loss.
    """
    product = (prediction - reference) * (prediction + reference - 2.0 * target)
    return jnp.mean(product, axis=tuple(range(1, product.ndim)))


def dpo(winner: Errors, loser: Errors, beta: Errors | float) -> tuple[Errors, Errors]:
    """Returns (each pair's loss, its margin m): -log sigmoid(m) with m = -beta/2 (winner - loser).

    `winner` and `loser` are the changes of their errors from the reference to the policy (Wallace et al. 2023, arXiv
    2311.12908, eq. 14, with T and a constant weight in beta). Where policy and reference are one network, the loss is
    ln 2.
    """
    margin = -0.5 * beta * (winner - loser)
    return -jax.nn.log_sigmoid(margin), margin


def nft(
    prediction: Latents,
    old: Latents,
    target: Latents,
    reward: Errors,
    beta: float,
    to_data: Errors | None = None,
) -> Errors:
    """Each image's loss r ||v+ - v*||^2 + (1 - r) ||v- - v*||^2, with v+ = (1 - beta) v_old + beta v and
    v- = (1 + beta) v_old - beta v (Zheng et al. 2025, arXiv 2509.16117, section 3.2).

    `reward` r is in [0, 1]. Norms are means over an image's elements. With `to_data`, the factor of a prediction's
    error to that of x0, errors are those of x0, and each is divided by its own mean size, through which no gradient
    flows. Without it and with the right v_old, the optimum is v_old + 2/beta E[r] (v' - v_old), where v' is the
    velocity of the distribution that is proportional to r times the old one.
    """
    ahead = (1.0 - beta) * old + beta * prediction
    behind = (1.0 + beta) * old - beta * prediction

    def error(guess):
        difference = guess - target
        axes = tuple(range(1, difference.ndim))
        if to_data is None:
            return jnp.mean(jnp.square(difference), axis=axes)
        difference = difference * to_data.reshape(-1, *[1] * len(axes))
        size = jax.lax.stop_gradient(jnp.mean(jnp.abs(difference), axis=axes))
        return jnp.mean(jnp.square(difference), axis=axes) / jnp.maximum(size, SMALLEST_SIZE)

    return reward * error(ahead) + (1.0 - reward) * error(behind)


def grpo(log_ratio: Errors, advantage: Errors, clip_ratio: float) -> tuple[Errors, Errors]:
    """Returns (each step's loss -min(r A, clip(r) A), its ratio r): r is the step's probability under the policy,
    divided by that under the policy that made it, and clip(r) is within 1 +- clip_ratio (Liu et al. 2025, eq. 7, where
    the logarithm of a probability is a mean over an image's elements)."""
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip_ratio, 1.0 + clip_ratio)
    return -jnp.minimum(ratio * advantage, clipped * advantage), ratio


def shares(rewards: Float[np.ndarray, "prompts images"], clip: float) -> Float[np.ndarray, "prompts images"]:
    """Rewards as r in [0, 1]: 1/2 + A / (2 clip), with the advantages A."""
    return 0.5 + 0.5 * _within(rewards, clip)


def advantages(rewards: Float[np.ndarray, "prompts images"], clip: float) -> Float[np.ndarray, "prompts images"]:
    """The differences of rewards to their group's mean, in standard deviations over all groups, and clipped."""
    return clip * _within(rewards, clip)


def _within(rewards, clip):
    """Advantages as shares of `clip`, in [-1, 1]."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    spread = centred.std() if centred.any() else 1.0
    return (centred / spread / clip).clip(-1.0, 1.0)
