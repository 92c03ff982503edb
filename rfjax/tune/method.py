"""The types that every method of preference tuning uses; `methods.py` has the table of methods.

They are the images and rewards of a round, the networks and random numbers of a step, and the network's inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from rfjax.config import SamplerConfig
from rfjax.data.batch import Conditions
from rfjax.flow.formulation import Formulation
from rfjax.flow.objective import NetworkFn, examples_at
from rfjax.flow.path import expand_time
from rfjax.tune.config import TuneConfig


class Groups(NamedTuple):
    """The images of a round and their rewards, in host memory. The images of one prompt are a group."""

    latents: Float[np.ndarray, "prompts images frames height width channels"]
    ids: Int[np.ndarray, "prompts images 2"]  # keys of the noise that the images were sampled from
    conditions: Conditions  # one row for each prompt
    rewards: Float[np.ndarray, "prompts images"]
    states: Float[np.ndarray, "prompts images levels frames height width channels"] | None = None  # if stochastic


class Networks(NamedTuple):
    """The three networks of a loss. Gradients flow only through the policy, the network that is trained.

    The reference is the base run's network, before tuning. `sampler` is the sampling policy: it sampled the images.
    """

    policy: NetworkFn
    reference: NetworkFn
    sampler: NetworkFn


class Draws(NamedTuple):
    """A training step's random t and noise for each example, and the seed of the noise that images started from."""

    t: Float[Array, " batch"]
    noise: Float[Array, "batch frames height width channels"]
    seed: UInt32[np.ndarray, ""] | int


class NetworkInputs(NamedTuple):
    """A network's inputs for noised latents, and the target and weight of its prediction."""

    seen: Float[Array, "batch frames height width channels"]  # the noised latents, scaled as the network gets them
    condition: Float[Array, " batch"]  # the network's time input
    target: Float[Array, "batch frames height width channels"]
    weight: Float[Array, " batch"] | float  # the formulation's factor on the squared error

    def predict(self, network: NetworkFn, conditions: Conditions) -> Float[Array, "batch ..."]:
        return network(self.seen, self.condition, *conditions).astype(jnp.float32)

    def error(self, prediction: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
        """Each image's mean squared error."""
        return mean_square(prediction - self.target)


def mean_square(x: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    """The mean square of each image's elements."""
    return jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim)))


def network_inputs(formulation: Formulation, t: Float[Array, " batch"], latents, noise) -> NetworkInputs:
    """Noises latents to times t, and returns the network's inputs and target, as `flow.objective` does in training."""
    mixing, scale, condition, weight = examples_at(formulation, t)
    a, b, m, n = (expand_time(coefficient, latents) for coefficient in mixing)
    z = a * latents + b * noise
    seen = (scale if isinstance(scale, float) else expand_time(scale, z)) * z
    return NetworkInputs(seen, condition, m * latents + n * noise, weight)


Loss = tuple[Float[Array, " batch"], Float[Array, " batch"], dict[str, Float[Array, " batch"]]]


@dataclass(frozen=True)
class Method:
    """A method of preference tuning: a row of `methods.METHODS`."""

    about: str
    # (groups, config) -> the examples of a round: a named tuple of arrays, whose leading axis is the example
    examples: Callable[[Groups, TuneConfig], NamedTuple]
    # (networks, formulation, draws, examples, config, sampler of the round) -> (losses, times t, {name of a further
    # measure, for the curve: values}), each with one value per example
    loss: Callable[[Networks, Formulation, Draws, NamedTuple, TuneConfig, SamplerConfig], Loss]
    # (config, number of the round that ends) -> the share of its own adapter that the sampling policy keeps
    kept: Callable[[TuneConfig, Int[Array, ""]], Float[Array, ""] | float]
    # evaluations of the network for each example: (forward passes without a gradient, forward passes with one)
    evaluations: tuple[int, int]
    # if true, images are sampled by `flow.stochastic`, their paths are kept, and the loss uses guidance
    stochastic: bool = False


def take(examples, rows: Int[np.ndarray, " rows"]):
    """Takes some rows of a method's examples."""
    return examples.take(rows) if hasattr(examples, "take") else jax.tree.map(lambda array: array[rows], examples)
