"""A stochastic sampler with the marginals of the ODE (Flow-GRPO, Liu et al. 2025, arXiv 2505.05470, eq. 9 and 12).

In rectified flow's coordinates (`rfjax.flow.matched`), with ds < 0 and w a Wiener process,

    dy = [v + sigma^2 / (2 s) (y + (1 - s) v)] ds + sigma dw,      sigma = amount sqrt(s / (1 - s)).

y + (1 - s) v is the network's guess of the noise, so the bracket adds the score that sigma's noise calls for, and y has
the distribution of the ODE at every s. Steps are Euler-Maruyama's. At s = 1, where sigma is infinite, 1 - s is taken at
the end of the step. The last step adds no noise: images end clean, and it has no probability to train on.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rfjax.flow.path import expand_time

Levels = Float[Array, " levels"] | Float[np.ndarray, " levels"]


def noise_sizes(levels: Levels, amount: float) -> Float[Array, " steps"]:
    """sigma of each step between levels s, which fall from at most 1 to 0; `amount` is a in the paper, 0.7 there."""
    levels = jnp.asarray(levels)
    now, then = levels[:-1], levels[1:]
    rest = jnp.where(now == 1, 1.0 - then, 1.0 - now)
    return jnp.where(then == 0, 0.0, amount * jnp.sqrt(now / rest))


def expected_move(
    velocity: Float[Array, "batch ..."],
    y: Float[Array, "batch ..."],
    level: Float[Array, " batch"],
    after: Float[Array, " batch"],
    size: Float[Array, " batch"],
) -> Float[Array, "batch ..."]:
    """The mean of y at the level `after`, from y and its velocity at `level`, for sigma = `size`."""
    s, dt, factor = (expand_time(x, y) for x in (level, after - level, jnp.square(size) / (2.0 * level)))
    return y + (velocity + factor * (y + (1.0 - s) * velocity)) * dt


def move_variance(
    level: Float[Array, " batch"], after: Float[Array, " batch"], size: Float[Array, " batch"]
) -> Float[Array, " batch"]:
    """The variance of each element of y at the level `after`: sigma^2 |ds|."""
    return jnp.square(size) * (level - after)
