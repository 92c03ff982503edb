"""Flow-GRPO (Liu et al. 2025, arXiv 2505.05470).

Images are sampled by stochastic steps, whose probability under the policy is known. Training makes the steps of an
image more likely if the image's reward is above the mean of its group, and less likely if it is below. A path is the
sequence of noisy latents through which an image was sampled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from rfjax.config import SamplerConfig
from rfjax.data.batch import Conditions
from rfjax.errors import ConfigError
from rfjax.evaluation.generate import noise_for, sampler_rows
from rfjax.flow.formulation import Formulation
from rfjax.flow.matched import Matched, velocity_of
from rfjax.flow.path import expand_time
from rfjax.flow.samplers import guided_velocity
from rfjax.flow.stochastic import expected_move, move_variance, noise_sizes
from rfjax.training.processes import distributed
from rfjax.tune import losses
from rfjax.tune.config import TuneConfig
from rfjax.tune.method import Draws, Groups, Loss, Networks, mean_square

NOISE_APART = 2**20  # the noise of step i = 1, 2, ... is keyed by the image's number in its group plus i times this


def check(tune: TuneConfig, sampler: SamplerConfig) -> None:
    """Raises `ConfigError` for a sampler of fewer than two steps, since the last step is not learnt from."""
    if sampler.steps < 2:
        raise ConfigError(
            f"grpo learns from all steps of its sampler but the last, and config.rollout.sampler_steps is "
            f"{sampler.steps}; take 2 or more (the paper takes 10)"
        )


def compile_paths(
    apply: Callable,
    sampler: SamplerConfig,
    latent_shape: tuple[int, ...],
    amount: float,
    *,
    batch_sharding: NamedSharding | None = None,
) -> Callable:
    """Makes the program that samples a batch's paths [batch, levels, *latent_shape] by stochastic steps.

    The program takes the arguments of `evaluation.generate.sampling_program`, and is compiled at its first call. Its
    steps are Euler-Maruyama steps, whatever the sampler's `method`; `amount` is the factor a of their noise
    a sqrt(t / (1 - t)).
    """

    def make_batch(params, levels, at, seed, ids, conditions, negative):
        negative = jax.tree.map(lambda row, each: jnp.broadcast_to(row, each.shape), negative, conditions)
        interval = sampler.guidance_from, sampler.guidance_to
        velocity = functools.partial(velocity_of, apply, params)
        field = guided_velocity(velocity, sampler.guidance_scale, conditions, negative, interval)
        each = lambda number: jnp.broadcast_to(number, len(ids))  # noqa: E731

        def step(y, row):
            place, level, after, size, now = row
            level, after, size = each(level), each(after), each(size)
            noise = noise_for(seed, ids + NOISE_APART * jnp.array([0, 1]) * (place + 1), latent_shape)
            spread = expand_time(jnp.sqrt(move_variance(level, after, size)), y)
            y = expected_move(field(y, now), y, level, after, size) + spread * noise
            return y, y

        start = levels[0] * noise_for(seed, ids, latent_shape)
        now = jax.tree.map(lambda array: array[:-1], at)
        rows = jnp.arange(len(levels) - 1), levels[:-1], levels[1:], noise_sizes(levels, amount), now
        _, states = jax.lax.scan(step, start, rows)
        return jnp.moveaxis(jnp.concatenate([start[None], states]), 0, 1)

    whole = None if batch_sharding is None else NamedSharding(batch_sharding.mesh, PartitionSpec())
    return distributed.compiled_at_first_call("the stochastic sampler", jax.jit(make_batch, out_shardings=whole))


class Transitions(NamedTuple):
    """A batch of examples for GRPO's loss: single sampling steps, each with the advantage of the image in which its
    path ends."""

    latents: Float[np.ndarray, "steps frames height width channels"]  # before the step
    moved: Float[np.ndarray, "steps frames height width channels"]  # after it
    context: Float[np.ndarray, "steps tokens context_size"]
    pooled: Float[np.ndarray, "steps pooled_size"]
    place: Int[np.ndarray, " steps"]  # the step's number in its path, from 0
    advantage: Float[np.ndarray, " steps"]


class Paths(NamedTuple):
    """The paths of a round's images. Text conditions are stored once for each prompt.

    The examples are numbered path by path: every step of a path except its last is an example (`take`).
    """

    states: Float[np.ndarray, "images levels frames height width channels"]
    conditions: Conditions  # one row for each prompt
    prompt: Int[np.ndarray, " images"]
    advantage: Float[np.ndarray, " images"]

    @property
    def latents(self) -> Float[np.ndarray, "steps frames height width channels"]:
        """The noisy latent at which each example (one sampling step) begins, in the order of the examples."""
        return self.states[:, :-2].reshape(-1, *self.states.shape[2:])

    def take(self, rows: Int[np.ndarray, " rows"]) -> Transitions:
        image, place = np.divmod(rows, self.states.shape[1] - 2)
        texts = self.conditions.rows(self.prompt[image])
        states = self.states[image, place], self.states[image, place + 1]
        return Transitions(*states, *texts, place.astype(np.int32), self.advantage[image])


def transitions(groups: Groups, tune: TuneConfig) -> Paths:
    """Selects the paths of each group whose images differ in reward, and computes the images' advantages. In a group of
    equal rewards all advantages would be zero."""
    telling = np.flatnonzero(np.ptp(groups.rewards, axis=1))
    states = groups.states[telling]
    count = groups.rewards.shape[1]
    advantage = losses.advantages(groups.rewards[telling], tune.grpo.clip) if len(telling) else np.zeros((0, count))
    return Paths(
        states.reshape(-1, *states.shape[2:]),
        groups.conditions,
        np.repeat(telling, count),
        advantage.reshape(-1).astype(np.float32),
    )


def loss(
    networks: Networks,
    formulation: Formulation,
    draws: Draws,
    steps: Transitions,
    tune: TuneConfig,
    sampler: SamplerConfig,
) -> Loss:
    """Returns (losses, times t, measures), each with one value per sampling step. A loss is the GRPO loss plus
    `grpo.kl` times the KL divergence of the policy's step from the reference's step.

    The probability of a step under the sampling policy is not stored: it is computed again from that policy's weights.
    """
    levels, at = sampler_rows(formulation, sampler)
    sizes, place = noise_sizes(levels, tune.grpo.noise), steps.place
    levels = jnp.asarray(levels)
    level, after, size = levels[place], levels[place + 1], sizes[place]
    now = Matched(*(jnp.asarray(field)[place] for field in at))
    conditions = Conditions(steps.context, steps.pooled)

    def mean(network) -> Float[Array, "steps ..."]:
        velocity = _guided(network, steps.latents, now, conditions, sampler)
        return expected_move(velocity, steps.latents, level, after, size)

    policy, old, reference = (mean(each) for each in (networks.policy, networks.sampler, networks.reference))
    precision = 0.5 / move_variance(level, after, size)
    log_ratio = -precision * losses.error_change(policy, old, steps.moved)
    divergence = precision * mean_square(policy - reference)
    each, ratio = losses.grpo(log_ratio, steps.advantage, tune.grpo.clip_ratio)
    measures = {
        "ratio_change": jnp.abs(ratio - 1.0),
        "clipped": (jnp.abs(ratio - 1.0) > tune.grpo.clip_ratio).astype(jnp.float32),
        "gain": steps.advantage * log_ratio,  # positive: the policy prefers what was rated well
        "kl": divergence,
    }
    return each + tune.grpo.kl * divergence, formulation.path.time_at(level), measures


def _guided(network, y, now: Matched, conditions: Conditions, sampler: SamplerConfig):
    """Returns the velocity at the points `y`; each point has its own time. The velocity is guided at times inside the
    sampler's guidance interval."""

    def velocity(given):
        return velocity_of(lambda _, *inputs: network(*inputs), None, y, now, given)

    positive = velocity(conditions)
    if sampler.guidance_scale == 1:
        return positive
    null = velocity(jax.tree.map(jnp.zeros_like, conditions))
    inside = ((sampler.guidance_from <= now.time) & (now.time <= sampler.guidance_to)).astype(y.dtype)
    return jnp.where(expand_time(inside, y) > 0, null + sampler.guidance_scale * (positive - null), positive)
