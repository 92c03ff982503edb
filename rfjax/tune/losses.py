"""The losses of preference tuning, as functions of predictions and their errors; networks do not appear here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Errors = Float[Array, " batch"]
Latents = Float[Array, "batch frames height width channels"]
SMALLEST_SIZE = 1e-5  # lower bound of the mean absolute error of x0 by which DiffusionNFT's loss is divided


def error_change(prediction: Latents, reference: Latents, target: Latents) -> Errors:
    """Returns each image's ||p - v*||^2 - ||p_ref - v*||^2: the error of `prediction` minus that of `reference`, both
    against `target`. Norms are means over an image's elements.

    It is computed as the mean of (p - p_ref)(p + p_ref - 2 v*), which stays precise if the two errors are nearly equal.
    A plain difference would round each error first, and a beta of thousands would multiply this rounding.
    """
    product = (prediction - reference) * (prediction + reference - 2.0 * target)
    return jnp.mean(product, axis=tuple(range(1, product.ndim)))


def dpo(winner: Errors, loser: Errors, beta: Errors | float) -> tuple[Errors, Errors]:
    """Returns (each pair's loss -log sigmoid(m), its margin m) with m = -beta/2 (winner - loser).

    `winner` and `loser` are `error_change` of the two images: the policy's error minus the reference's. This is eq. 14
    of Wallace et al. 2023 (arXiv 2311.12908) with its T (the number of time steps) and a constant weight included in
    beta. If the policy equals the reference, the loss is ln 2.
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
    """Returns each image's loss r ||v+ - v*||^2 + (1 - r) ||v- - v*||^2, with v+ = (1 - beta) v_old + beta v and
    v- = (1 + beta) v_old - beta v (Zheng et al. 2025, arXiv 2509.16117, section 3.2).

    v is `prediction`, v_old is `old`, v* is `target`, and the reward r is in [0, 1]. Norms are means over an image's
    elements.

    `to_data` is the factor from an error of the prediction to the error of x0. If it is given, the loss uses squared
    errors of x0, and divides each by the mean absolute error of x0, through which no gradient flows. Without `to_data`,
    and if v_old is the exact velocity of the images' distribution, the loss is least at v_old + 2/beta E[r] (v' -
    v_old). Here v' is the velocity of the distribution whose density is proportional to r times that of the images.
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
    """Returns (each step's loss -min(r A, clip(r) A), its ratio r), as in Liu et al. 2025, eq. 7.

    r = exp(log_ratio) is the probability of the step under the policy, divided by its probability under the sampling
    policy. clip(r) limits r to 1 +- clip_ratio. Logarithms of probabilities are means over an image's elements. A is
    the advantage.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip_ratio, 1.0 + clip_ratio)
    return -jnp.minimum(ratio * advantage, clipped * advantage), ratio


def shares(rewards: Float[np.ndarray, "prompts images"], clip: float) -> Float[np.ndarray, "prompts images"]:
    """Maps rewards to r = 1/2 + A / (2 clip) in [0, 1], with A the `advantages`."""
    return 0.5 + 0.5 * _within(rewards, clip)


def advantages(rewards: Float[np.ndarray, "prompts images"], clip: float) -> Float[np.ndarray, "prompts images"]:
    """Each reward minus its group's mean, in units of the standard deviation over all groups, clipped to +- clip."""
    return clip * _within(rewards, clip)


def _within(rewards, clip):
    """The advantages divided by `clip`, in [-1, 1]."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    spread = centred.std() if centred.any() else 1.0
    return (centred / spread / clip).clip(-1.0, 1.0)
