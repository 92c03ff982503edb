"""The methods as a table: what each learns from a round's groups, and the loss of what it learns from.

Sampling, rewards, groups, logging, checkpoints and resuming are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from rfjax.data.batch import Conditions
from rfjax.evaluation.generate import noise_for
from rfjax.flow.formulation import Formulation
from rfjax.flow.objective import NetworkFn, example_losses, examples_at
from rfjax.flow.path import expand_time
from rfjax.tune import losses
from rfjax.tune.config import TuneConfig


class Groups(NamedTuple):
    """The images of a round and their rewards, in host memory: a group for each prompt."""

    latents: Float[np.ndarray, "prompts images frames height width channels"]
    ids: Int[np.ndarray, "prompts images 2"]  # by which their noise is keyed
    conditions: Conditions  # of each prompt
    rewards: Float[np.ndarray, "prompts images"]


class Networks(NamedTuple):
    """The adapted network, and two that no gradient reaches: the run as it was, and the policy that made the images."""

    policy: NetworkFn
    reference: NetworkFn
    sampler: NetworkFn


class Draws(NamedTuple):
    """A step's random numbers for its examples, and the seed of the noise that images were made from."""

    t: Float[Array, " batch"]
    noise: Float[Array, "batch frames height width channels"]
    seed: UInt32[np.ndarray, ""] | int


Loss = tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    about: str
    # (groups, config) -> what a step draws its examples from: a named tuple of arrays with a leading axis
    examples: Callable[[Groups, TuneConfig], NamedTuple]
    # (networks, formulation, draws, examples, config) -> each example's loss, and measures to show beside it
    loss: Callable[[Networks, Formulation, Draws, NamedTuple, TuneConfig], Loss]
    # (config, number of the round that ends) -> the share of its adapter that the sampling policy keeps
    kept: Callable[[TuneConfig, Int[Array, ""]], Float[Array, ""] | float]
    # evaluations of the network in a step, per example: forward passes, and forward passes with gradients
    evaluations: tuple[int, int]


# Diffusion-DPO


class Pairs(NamedTuple):
    """Winners and losers of one prompt each, the winner first."""

    latents: Float[np.ndarray, "pairs 2 frames height width channels"]
    context: Float[np.ndarray, "pairs tokens context_size"]
    pooled: Float[np.ndarray, "pairs pooled_size"]
    ids: Int[np.ndarray, "pairs 2 2"]


def choose_pairs(groups: Groups, tune: TuneConfig) -> Pairs:
    """The best image of each group with the worst, then the second with the second from the end, and so on, as long as
    their rewards differ. Of equal rewards the earlier image ranks higher. A group of equal rewards gives no pair."""
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


def dpo_loss(networks: Networks, formulation: Formulation, draws: Draws, pairs: Pairs, tune: TuneConfig) -> Loss:
    """The loss of each pair. Winner and loser, policy and reference see the same t and, where noise is fresh, the same
    noise."""
    count = pairs.latents.shape[0]
    both = lambda array: jnp.repeat(array, 2, axis=0)  # noqa: E731
    apart = lambda array: array.reshape(2 * count, *array.shape[2:])  # noqa: E731
    latents, conditions = apart(pairs.latents), Conditions(both(pairs.context), both(pairs.pooled))
    if tune.dpo.noise == "own":
        noise = noise_for(draws.seed, apart(pairs.ids), latents.shape[1:])
    else:
        noise = both(draws.noise)
    examples = examples_at(formulation, both(draws.t))

    def errors(network):
        return example_losses(network, examples, noise, latents, conditions).reshape(count, 2).T

    weight = 1.0
    if tune.dpo.error == "noise":
        mixing = formulation.prediction.mixing(formulation.path, draws.t)
        weight = jnp.square(mixing.a / mixing.determinant)
    return losses.dpo(*errors(networks.policy), *errors(networks.reference), tune.dpo.beta * weight)


# DiffusionNFT


class Rated(NamedTuple):
    """Images with their r in [0, 1]."""

    latents: Float[np.ndarray, "images frames height width channels"]
    context: Float[np.ndarray, "images tokens context_size"]
    pooled: Float[np.ndarray, "images pooled_size"]
    reward: Float[np.ndarray, " images"]


def rate(groups: Groups, tune: TuneConfig) -> Rated:
    """All images of the groups whose rewards differ; the others' would all have r = 1/2 and pull to the old policy."""
    telling = np.flatnonzero(np.ptp(groups.rewards, axis=1))
    count = groups.rewards.shape[1]
    reward = losses.advantages(groups.rewards[telling], tune.nft.clip) if len(telling) else np.zeros((0, count))
    rows = np.repeat(telling, count)
    latents = groups.latents[telling].reshape(-1, *groups.latents.shape[2:])
    return Rated(latents, *groups.conditions.rows(rows), reward.reshape(-1).astype(np.float32))


def nft_loss(networks: Networks, formulation: Formulation, draws: Draws, rated: Rated, tune: TuneConfig) -> Loss:
    """The loss of each image, and `kl` times the squared difference to the run's own prediction."""
    scale, condition = examples_at(formulation, draws.t)[1:3]
    mixing = formulation.prediction.mixing(formulation.path, draws.t)
    a, b, m, n = (expand_time(coefficient, rated.latents) for coefficient in mixing)
    seen = a * rated.latents + b * draws.noise
    seen = (scale if isinstance(scale, float) else expand_time(scale, seen)) * seen
    target = m * rated.latents + n * draws.noise
    given = seen, condition, rated.context, rated.pooled
    each = networks.policy, networks.sampler, networks.reference
    prediction, old, reference = (network(*given).astype(jnp.float32) for network in each)
    to_data = jnp.broadcast_to(mixing.b / mixing.determinant, draws.t.shape) if tune.nft.error == "data" else None
    axes = tuple(range(1, prediction.ndim))
    moved = jnp.mean(jnp.square(prediction - reference), axis=axes)
    loss = losses.nft(prediction, old, target, rated.reward, tune.nft.beta, to_data)
    error = jnp.mean(jnp.square(jax.lax.stop_gradient(prediction) - target), axis=axes)
    old_error = jnp.mean(jnp.square(old - target), axis=axes)
    measures = {
        "error": error,
        "error_sampler": old_error,
        "moved_from_reference": moved,
        "moved_from_sampler": jnp.mean(jnp.square(prediction - old), axis=axes),
        "gain": (2.0 * rated.reward - 1.0) * (old_error - error),  # positive: nearer to what was rated well
    }
    return loss + tune.nft.kl * moved, measures


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
}
