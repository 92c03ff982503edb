"""The losses of preference tuning, in terms of predictions and their errors alone. They know no network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Errors = Float[Array, " batch"]
Latents = Float[Array, "batch frames height width channels"]
SMALLEST_SIZE = 1e-5  # of an error of x0, by which DiffusionNFT's loss is divided


def dpo(
    winner: Errors, loser: Errors, reference_winner: Errors, reference_loser: Errors, beta: Errors | float
) -> tuple[Errors, dict[str, Errors]]:
    """Returns (each pair's loss, its measures): -log sigmoid(-beta/2 [(e_w - e_w,ref) - (e_l - e_l,ref)]).

    An error e is the mean square over an image's elements (Wallace et al. 2023, arXiv 2311.12908, eq. 14, with T and a
    constant weight in beta). Where policy and reference are one network, the loss is ln 2. `accuracy` is the share of
    pairs whose winner the policy prefers more than the reference does; a tie counts as half.
    """
    inside = -0.5 * beta * ((winner - reference_winner) - (loser - reference_loser))
    measures = {
        "winner_error": winner,
        "loser_error": loser,
        "winner_error_reference": reference_winner,
        "loser_error_reference": reference_loser,
        "accuracy": 0.5 * (1.0 + jnp.sign(inside)),
        "margin": inside,
        "margin_size": jnp.abs(inside),
        "winner_rise": winner - reference_winner,
        "winner_rise_square": jnp.square(winner - reference_winner),
    }
    return -jax.nn.log_sigmoid(inside), measures


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


def advantages(rewards: Float[np.ndarray, "prompts images"], clip: float) -> Float[np.ndarray, "prompts images"]:
    """Rewards as r in [0, 1]: 1/2 + A / (2 clip), with A the difference to the group's mean, in standard deviations
    over all groups, and clipped."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    spread = centred.std() if centred.any() else 1.0
    return 0.5 + 0.5 * (centred / spread / clip).clip(-1.0, 1.0)
