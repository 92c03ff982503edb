"""The table of tuning methods. A method makes examples from a round's images and rewards, and has a loss on them.

Sampling, rewards, logging, checkpoints and resuming are the same for all methods.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from rfjax.config import SamplerConfig
from rfjax.data.batch import Conditions
from rfjax.evaluation.generate import noise_for
from rfjax.flow.formulation import Formulation
from rfjax.tune import grpo, losses
from rfjax.tune.config import TuneConfig
from rfjax.tune.method import Draws, Groups, Loss, Method, Networks, mean_square, network_inputs

# Diffusion-DPO


class Pairs(NamedTuple):
    """Pairs of images of one prompt. On the second axis of `latents` and `ids`, index 0 is the winner, 1 the loser."""

    latents: Float[np.ndarray, "pairs 2 frames height width channels"]
    context: Float[np.ndarray, "pairs tokens context_size"]
    pooled: Float[np.ndarray, "pairs pooled_size"]
    ids: Int[np.ndarray, "pairs 2 2"]  # keys of the noise that the two images were sampled from, as in `Groups`


def choose_pairs(groups: Groups, tune: TuneConfig) -> Pairs:
    """Pairs the best image of each group with the worst, the second best with the second worst, and so on, up to
    `dpo.pairs_per_prompt` pairs of a group, as long as the two rewards differ. Among equal rewards the earlier image
    ranks higher. A group whose rewards are all equal gives no pair."""
    order = np.argsort(-groups.rewards, axis=1, kind="stable")
    prompts, images = order.shape
    rows, places = [], []
    for prompt in range(prompts):
        for rank in range(min(tune.dpo.pairs_per_prompt, images // 2)):
            winner, loser = order[prompt, rank], order[prompt, images - 1 - rank]
            if groups.rewards[prompt, winner] <= groups.rewards[prompt, loser]:
                break
            rows.append(prompt)
            places.append((winner, loser))
    rows, places = np.array(rows, int), np.array(places, int).reshape(-1, 2)
    chosen = groups.conditions.rows(rows)
    return Pairs(groups.latents[rows[:, None], places], *chosen, groups.ids[rows[:, None], places])


def dpo_loss(
    networks: Networks,
    formulation: Formulation,
    draws: Draws,
    pairs: Pairs,
    tune: TuneConfig,
    sampler: SamplerConfig | None = None,
) -> Loss:
    """Returns (DPO's losses, times t, measures), each with one value per pair.

    Winner, loser, policy and reference share one t. If `dpo.noise` is fresh, they also share one noise.
    """
    count = pairs.latents.shape[0]
    both = lambda array: jnp.repeat(array, 2, axis=0)  # noqa: E731
    apart = lambda array: array.reshape(2 * count, *array.shape[2:])  # noqa: E731
    latents, conditions = apart(pairs.latents), Conditions(both(pairs.context), both(pairs.pooled))
    if tune.dpo.noise == "own":
        noise = noise_for(draws.seed, apart(pairs.ids), latents.shape[1:])
    else:
        noise = both(draws.noise)
    given = network_inputs(formulation, both(draws.t), latents, noise)
    policy, reference = (given.predict(network, conditions) for network in (networks.policy, networks.reference))
    winner, loser = (given.weight * losses.error_change(policy, reference, given.target)).reshape(count, 2).T
    factor = 1.0
    if tune.dpo.error == "noise":
        mixing = formulation.prediction.mixing(formulation.path, draws.t)
        factor = jnp.square(mixing.a / mixing.determinant)
    loss, margin = losses.dpo(winner, loser, tune.dpo.beta * factor)
    before, now = (given.weight * given.error(prediction) for prediction in (reference, policy))
    measures = {
        "winner_error": now.reshape(count, 2)[:, 0],
        "loser_error": now.reshape(count, 2)[:, 1],
        "winner_error_reference": before.reshape(count, 2)[:, 0],
        "loser_error_reference": before.reshape(count, 2)[:, 1],
        "winner_rise": winner,
        "winner_rise_square": jnp.square(winner),
        "accuracy": 0.5 * (1.0 + jnp.sign(margin)),  # a tie counts as half
        "margin": margin,
        "margin_size": jnp.abs(margin),
    }
    return loss, draws.t, measures


# DiffusionNFT


class Rated(NamedTuple):
    """Images with their rewards r in [0, 1]."""

    latents: Float[np.ndarray, "images frames height width channels"]
    context: Float[np.ndarray, "images tokens context_size"]
    pooled: Float[np.ndarray, "images pooled_size"]
    reward: Float[np.ndarray, " images"]


def rate(groups: Groups, tune: TuneConfig) -> Rated:
    """Selects the images of groups whose rewards differ, and scales their rewards to r in [0, 1].

    In a group of equal rewards all images would have r = 1/2. They would only pull the policy towards the sampling
    policy.
    """
    telling = np.flatnonzero(np.ptp(groups.rewards, axis=1))
    count = groups.rewards.shape[1]
    reward = losses.shares(groups.rewards[telling], tune.nft.clip) if len(telling) else np.zeros((0, count))
    rows = np.repeat(telling, count)
    latents = groups.latents[telling].reshape(-1, *groups.latents.shape[2:])
    return Rated(latents, *groups.conditions.rows(rows), reward.reshape(-1).astype(np.float32))


def nft_loss(
    networks: Networks,
    formulation: Formulation,
    draws: Draws,
    rated: Rated,
    tune: TuneConfig,
    sampler: SamplerConfig | None = None,
) -> Loss:
    """Returns (losses, times t, measures), each with one value per image. A loss is the DiffusionNFT loss plus
    `nft.kl` times the mean squared difference between the policy's and the reference's predictions."""
    given = network_inputs(formulation, draws.t, rated.latents, draws.noise)
    conditions, target = Conditions(rated.context, rated.pooled), given.target
    each = networks.policy, networks.sampler, networks.reference
    prediction, old, reference = (given.predict(network, conditions) for network in each)
    mixing = formulation.prediction.mixing(formulation.path, draws.t)
    to_data = jnp.broadcast_to(mixing.b / mixing.determinant, draws.t.shape) if tune.nft.error == "data" else None
    moved, moved_from_sampler = mean_square(prediction - reference), mean_square(prediction - old)
    loss = losses.nft(prediction, old, target, rated.reward, tune.nft.beta, to_data)
    error, old_error = given.error(prediction), given.error(old)
    measures = {
        "error": error,
        "error_sampler": old_error,
        "moved_from_reference": moved,
        "moved_from_sampler": moved_from_sampler,
        "gain": (2.0 * rated.reward - 1.0) * (old_error - error),  # positive: the policy prefers what was rated well
    }
    return loss + tune.nft.kl * moved, draws.t, measures


METHODS: dict[str, Method] = {
    "dpo": Method(
        "Diffusion-DPO: prefer the better image of each prompt",
        examples=choose_pairs,
        loss=dpo_loss,
        kept=lambda tune, number: 1.0 if tune.dpo.sampled_by == "base" else 0.0,
        evaluations=(2, 2),
    ),
    "nft": Method(
        "DiffusionNFT: towards images above their group's mean, away from those below",
        examples=rate,
        loss=nft_loss,
        kept=lambda tune, number: jnp.minimum(tune.nft.keep_growth * number, tune.nft.keep_most),
        evaluations=(2, 1),
    ),
    "grpo": Method(
        "Flow-GRPO: make the steps of images above their group's mean more likely",
        examples=grpo.transitions,
        loss=grpo.loss,
        kept=lambda tune, number: 0.0,
        evaluations=(2, 1),
        stochastic=True,
    ),
}
