"""What a method of preference tuning is: a round's groups, the networks and random numbers of its step, and the inputs
of a network for noised latents. `methods.py` has the table."""

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
    """The images of a round and their rewards, in host memory: a group for each prompt."""

    latents: Float[np.ndarray, "prompts images frames height width channels"]
    ids: Int[np.ndarray, "prompts images 2"]  # by which their noise is keyed
    conditions: Conditions  # of each prompt
    rewards: Float[np.ndarray, "prompts images"]
    states: Float[np.ndarray, "prompts images levels frames height width channels"] | None = None  # of stochastic paths


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


class NetworkInputs(NamedTuple):
    """The inputs of a network for noised latents, and the target of its prediction."""

    seen: Float[Array, "batch frames height width channels"]
    condition: Float[Array, " batch"]
    target: Float[Array, "batch frames height width channels"]
    weight: Float[Array, " batch"] | float  # the formulation's, of a squared error

    def predict(self, network: NetworkFn, conditions: Conditions) -> Float[Array, "batch ..."]:
        return network(self.seen, self.condition, *conditions).astype(jnp.float32)

    def error(self, prediction: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
        """Each image's mean squared error."""
        return mean_square(prediction - self.target)


def mean_square(x: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    """The mean square of each image's elements."""
    return jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim)))


def network_inputs(formulation: Formulation, t: Float[Array, " batch"], latents, noise) -> NetworkInputs:
    """The inputs and target of a formulation's network for latents noised to times t, as in `flow.objective`."""
    mixing, scale, condition, weight = examples_at(formulation, t)
    a, b, m, n = (expand_time(coefficient, latents) for coefficient in mixing)
    z = a * latents + b * noise
    seen = (scale if isinstance(scale, float) else expand_time(scale, z)) * z
    return NetworkInputs(seen, condition, m * latents + n * noise, weight)


Loss = tuple[Float[Array, " batch"], Float[Array, " batch"], dict[str, Float[Array, " batch"]]]


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    about: str
    # (groups, config) -> what a step draws its examples from: a named tuple of arrays with a leading axis
    examples: Callable[[Groups, TuneConfig], NamedTuple]
    # (networks, formulation, draws, examples, config, sampler of the round) -> each example's loss, its time t, and
    # measures to show beside it
    loss: Callable[[Networks, Formulation, Draws, NamedTuple, TuneConfig, SamplerConfig], Loss]
    # (config, number of the round that ends) -> the share of its adapter that the sampling policy keeps
    kept: Callable[[TuneConfig, Int[Array, ""]], Float[Array, ""] | float]
    # evaluations of the network in a step, per example: forward passes, and forward passes with gradients
    evaluations: tuple[int, int]
    stochastic: bool = False  # images are made by `flow.stochastic`, their paths are kept, and steps are guided, too


def take(examples, rows: Int[np.ndarray, " rows"]):
    """Rows of a method's examples."""
    return examples.take(rows) if hasattr(examples, "take") else jax.tree.map(lambda array: array[rows], examples)
