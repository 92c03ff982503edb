"""A stochastic sampler with the ODE's distribution at every time (Flow-GRPO, Liu et al. 2025, arXiv 2505.05470).

The sampler solves eq. 9 with eq. 12's sigma, in rectified flow's coordinates (`rfjax.flow.matched`). With noise level
s, ds < 0 and a Wiener process w it is

    dy = [v + sigma^2 / (2 s) (y + (1 - s) v)] ds + sigma dw,      sigma = amount sqrt(s / (1 - s)).

y + (1 - s) v is the network's estimate of the noise, and -1/s times that estimate is the score. The score term in the
bracket balances the added noise, so y keeps the ODE's distribution at every s. Steps are Euler-Maruyama steps. At s = 1
sigma would be infinite, so the first step's sigma uses the 1 - s of the step's end. The last step adds no noise, so
that images end clean. So the last step is deterministic, and has no probability density that a loss could use.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rfjax.flow.path import expand_time

Levels = Float[Array, " levels"] | Float[np.ndarray, " levels"]


def noise_sizes(levels: Levels, amount: float) -> Float[Array, " steps"]:
    """Returns sigma for each step between the noise levels s, which fall from at most 1 to 0.

    `amount` is the paper's a; the paper uses 0.7.
    """
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
    """The mean of y after a step from `level` to `after`, given y and its velocity at `level`, with sigma = `size`."""
    s, dt, factor = (expand_time(x, y) for x in (level, after - level, jnp.square(size) / (2.0 * level)))
    return y + (velocity + factor * (y + (1.0 - s) * velocity)) * dt


def move_variance(
    level: Float[Array, " batch"], after: Float[Array, " batch"], size: Float[Array, " batch"]
) -> Float[Array, " batch"]:
    """The variance sigma^2 |ds| that a step from `level` to `after` adds to each element of y, with sigma = `size`."""
    return jnp.square(size) * (level - after)
