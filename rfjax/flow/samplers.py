"""Integrating dz/dt = v(z, t) from noise (t=1) to data (t=0), with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rfjax.flow.density import shift_time

TimeVelocity = Callable[[Float[Array, "batch ..."], Float[Array, ""]], Float[Array, "batch ..."]]


def _uniform(steps, shift):
    return np.linspace(1.0, 0.0, steps + 1)


def _diffusers(steps, shift):
    """What diffusers' FlowMatchEulerDiscreteScheduler takes: equal steps down to the least of its
    1,000 training times, which has been shifted already; then 0."""
    return np.append(np.linspace(1.0, shift_time(np.array([1e-3]), shift)[0], steps), 0.0)


SIGMAS = {"uniform": _uniform, "diffusers": _diffusers}  # times before the shift, which is sigma = t


def sampling_times(steps: int, timestep_shift: float = 1.0, sigmas: str = "uniform") -> Float[np.ndarray, "times"]:
    """steps + 1 times from 1 to 0, shifted as in training (SD3 eq. 23). First 1, last 0 exactly."""
    return shift_time(SIGMAS[sigmas](steps, timestep_shift), timestep_shift)


def _euler(velocity, z, t, t_next):
    return z + (t_next - t) * velocity(z, t)


def _heun(velocity, z, t, t_next):
    first = velocity(z, t)
    second = velocity(z + (t_next - t) * first, t_next)
    return z + (t_next - t) * 0.5 * (first + second)


METHODS = {"euler": _euler, "heun": _heun}  # order of convergence 1 and 2
EVALUATIONS_PER_STEP = {"euler": 1, "heun": 2}


def integrate(
    velocity: TimeVelocity,
    noise: Float[Array, "batch ..."],
    times: Float[Array | np.ndarray, "times"],
    method: str = "euler",
) -> Float[Array, "batch ..."]:
    """z at times[-1] of the ODE started from `noise` at times[0] (SD3 eq. 1)."""
    step = METHODS[method]
    times = jnp.asarray(times, jnp.float32)

    def body(z, pair):
        return step(velocity, z, pair[0], pair[1]), None

    return jax.lax.scan(body, noise, jnp.stack([times[:-1], times[1:]], axis=1))[0]


def integrate_with_length(
    velocity: TimeVelocity,
    noise: Float[Array, "batch ..."],
    times: Float[Array | np.ndarray, "times"],
    method: str = "euler",
) -> tuple[Float[Array, "batch ..."], Float[Array, "batch"]]:
    """`integrate`, and how long each example's way was: the sum over steps of the norm of its move,
    over all elements. With Euler's method sum ||v dt||, as in SD3 table 6."""
    step = METHODS[method]
    times = jnp.asarray(times, jnp.float32)

    def body(carry, pair):
        z, length = carry
        moved = step(velocity, z, pair[0], pair[1])
        square = jnp.square((moved - z).astype(jnp.float32)).reshape(z.shape[0], -1).sum(axis=1)
        return (moved, length + jnp.sqrt(square)), None

    start = (noise, jnp.zeros(noise.shape[0], jnp.float32))
    return jax.lax.scan(body, start, jnp.stack([times[:-1], times[1:]], axis=1))[0]


def guided_velocity(
    velocity: Callable[..., Float[Array, "batch ..."]],
    guidance_scale: float,
    context: Float[Array, "batch tokens size"],
    pooled: Float[Array, "batch pooled"],
    negative: tuple[Float[Array, "batch tokens size"], Float[Array, "batch pooled"]] | None = None,
) -> TimeVelocity:
    """v_neg + scale (v_pos - v_neg), both halves in one batch; scale 1 costs one half.

    `velocity(z, t, context, pooled)` takes t of shape [batch]. The default negative is the null
    condition that training knows: zeros.
    """

    def spread(t, z):
        return jnp.full((z.shape[0],), t, jnp.float32)

    if guidance_scale == 1.0:
        return lambda z, t: velocity(z, spread(t, z), context, pooled)
    negative_context, negative_pooled = negative or (jnp.zeros_like(context), jnp.zeros_like(pooled))
    both_contexts = jnp.concatenate([context, negative_context])
    both_pooled = jnp.concatenate([pooled, negative_pooled])

    def guided(z, t):
        both = velocity(jnp.concatenate([z, z]), jnp.concatenate([spread(t, z)] * 2), both_contexts, both_pooled)
        positive, null = jnp.split(both, 2)
        return null + guidance_scale * (positive - null)

    return guided
