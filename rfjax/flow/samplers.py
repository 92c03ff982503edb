"""Integrates dz/dt = v(z, t) from noise (t=1) to data (t=0), with classifier-free guidance.

One integrator samples every formulation, in rectified flow's coordinates (`rfjax.flow.matched`): y = z / (a + b) and
s = b / (a + b), where dy/ds = eps_hat - x0_hat. An Euler step there is a step of DDIM: from a x0_hat + b eps_hat to
a' x0_hat + b' eps_hat. The formulation decides only where in s the steps are (`sampling_levels`).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rfjax.data.batch import Conditions
from rfjax.errors import ConfigError
from rfjax.flow.density import shift_time
from rfjax.flow.formulation import Formulation
from rfjax.flow.path import VarianceExplodingEDM, rectified_time

TimeVelocity = Callable[..., Float[Array, "batch ..."]]  # (z, time) -> dz/dt, or (z, entry) as in `integrate`


def _uniform(steps, shift):
    return np.linspace(1.0, 0.0, steps + 1)


def _diffusers(steps, shift):
    """The times of diffusers' FlowMatchEulerDiscreteScheduler before their shift: equal steps from 1 to the scheduler's
    least training time (0.001, shifted), then 0.

    diffusers shifts the least time, and then shifts all times. `sampling_times` shifts all times too, so the least time
    is shifted twice, as in diffusers.
    """
    return np.append(np.linspace(1.0, shift_time(np.array([1e-3]), shift)[0], steps), 0.0)


# name of a spacing -> function (steps, shift) -> steps + 1 times before the shift. In diffusers a sigma is this time t.
SIGMAS = {"uniform": _uniform, "matched": _uniform, "diffusers": _diffusers}


def sampling_times(steps: int, timestep_shift: float = 1.0, sigmas: str = "uniform") -> Float[np.ndarray, " times"]:
    """Returns steps + 1 times from exactly 1 to exactly 0, shifted as in training (SD3 eq. 23)."""
    return shift_time(SIGMAS[sigmas](steps, timestep_shift), timestep_shift)


def _even(steps, first, last):
    return np.maximum(np.linspace(last, 0.0, steps + 1), first)


def _karras(steps, first, last, rho=7.0):
    """Returns the times t = sigma / (1 + sigma) of `steps` sigmas that fall evenly in sigma^(1/7), and then of
    sigma = 0 (Karras 2022, eq. 5)."""
    ends = [(t / (1.0 - t)) ** (1.0 / rho) for t in (last, first)]
    sigma = np.linspace(*ends, steps) ** rho
    return np.append(sigma / (1.0 + sigma), 0.0)


# The "uniform" steps of a path in its own t, between the ends of its span. Paths without a row have even steps.
OWN_STEPS = {VarianceExplodingEDM: _karras}


def sampling_levels(formulation: Formulation, steps: int, sigmas: str = "uniform") -> Float[np.ndarray, " levels"]:
    """Returns steps + 1 levels s = sigma / (1 + sigma), from the formulation's noisiest level to exactly 0.

    For rectified flow they are `sampling_times`. For other formulations "uniform" is the path's usual spacing, and
    "matched" is even in s. The usual spacing is Karras's from 80 to 0.002 for edm, and even in t for the other paths.
    Sampling starts from y = s times unit noise at the first level s, so z = (a + b) y is N(0, b^2). Heun's method also
    evaluates the network at the last level, 0. If the formulation's span begins above sigma = 0, the network gets the
    smallest sigma of the span there. Raises `ConfigError` for "diffusers" unless the formulation is rectified flow.
    """
    if formulation.is_rectified_flow:
        return sampling_times(steps, formulation.timestep_shift, sigmas)
    first, last = formulation.span or formulation.path.span
    if sigmas == "uniform":
        times = OWN_STEPS.get(type(formulation.path), _even)(steps, first, last)
        inside = np.clip(times, first, last)
        levels = rectified_time(formulation.path, inside)
    elif sigmas == "matched":
        levels = np.linspace(formulation.rectified_span[1], 0.0, steps + 1)
    else:
        given = f"config.evaluation.sampler.sigmas is {sigmas}, which is a scheduler of rectified flow"
        raise ConfigError(f"{given}, and the formulation is {formulation.name}; use uniform or matched")
    levels[-1] = 0.0
    return levels


def _euler(velocity, z, dt, now, then):
    return z + dt * velocity(z, now)


def _heun(velocity, z, dt, now, then):
    first = velocity(z, now)
    second = velocity(z + dt * first, then)
    return z + dt * 0.5 * (first + second)


METHODS = {"euler": _euler, "heun": _heun}  # order of convergence 1 and 2
EVALUATIONS_PER_STEP = {"euler": 1, "heun": 2}


def _steps(times, at):
    """Returns (the signed length of each step, the entries of `at` at each step's beginning, the entries of `at` at
    each step's end), each with a leading axis of steps. If `at` is None, the times take its place."""
    times = jnp.asarray(times, jnp.result_type(float))
    now, then = (
        jax.tree.map(lambda a, part=part: jnp.asarray(a, times.dtype)[part], times if at is None else at)
        for part in (slice(-1), slice(1, None))
    )
    return times[1:] - times[:-1], now, then


def integrate(
    velocity: TimeVelocity,
    noise: Float[Array, "batch ..."],
    times: Float[Array | np.ndarray, " times"],
    method: str = "euler",
    at=None,
) -> Float[Array, "batch ..."]:
    """Integrates the ODE dz/dt = v (SD3 eq. 1) from `noise` at times[0], and returns z at times[-1].

    `at` is a tree of arrays [times], by default the times. The velocity at times[i] is `velocity(z, entry)`, where
    `entry` is the tree of the arrays' entries i.
    """
    step = METHODS[method]

    def body(z, row):
        return step(velocity, z, *row), None

    return jax.lax.scan(body, noise, _steps(times, at))[0]


def integrate_with_length(
    velocity: TimeVelocity,
    noise: Float[Array, "batch ..."],
    times: Float[Array | np.ndarray, " times"],
    method: str = "euler",
    at=None,
) -> tuple[Float[Array, "batch ..."], Float[Array, " batch"]]:
    """Returns the result of `integrate`, and the length of each example's path: the sum over steps of ||z_next - z||,
    the norm over all elements of the example. With Euler's method this is sum ||v dt||, as in SD3 table 6."""
    step = METHODS[method]

    def body(carry, row):
        z, length = carry
        moved = step(velocity, z, *row)
        square = jnp.square((moved - z).astype(jnp.float32)).reshape(z.shape[0], -1).sum(axis=1)
        return (moved, length + jnp.sqrt(square)), None

    start = (noise, jnp.zeros(noise.shape[0], jnp.float32))
    return jax.lax.scan(body, start, _steps(times, at))[0]


def guided_velocity(
    velocity: Callable[..., Float[Array, "batch ..."]],
    guidance_scale: float,
    conditions: Conditions,
    negative: Conditions | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
) -> TimeVelocity:
    """Returns the function v_neg + scale (v_pos - v_neg) of (z, at), for `integrate`.

    Both velocities are computed in one batch, `velocity(z, at, conditions)`. The default negative is training's null
    condition, zeros. At scale 1, and at times outside `interval`, only v_pos is computed (Kynkaanniemi et al. 2024,
    section 3).
    """
    negative = negative or jax.tree.map(jnp.zeros_like, conditions)
    both = jax.tree.map(lambda *halves: jnp.concatenate(halves), conditions, negative)

    def guided(z, at):
        positive, null = jnp.split(velocity(jnp.concatenate([z, z]), at, both), 2)
        return null + guidance_scale * (positive - null)

    return _guided_within(guided, lambda z, at: velocity(z, at, conditions), guidance_scale, interval)


def autoguided_velocity(
    velocity: Callable[..., Float[Array, "batch ..."]],
    weaker: Callable[..., Float[Array, "batch ..."]],
    guidance_scale: float,
    conditions: Conditions,
    interval: tuple[float, float] = (0.0, 1.0),
) -> TimeVelocity:
    """Returns the function v_weak + scale (v - v_weak) of (z, at), for `integrate`: autoguidance (Karras et al. 2024,
    eq. 3, for velocities). `weaker` computes v_weak by a weaker network from the same conditions. At scale 1, and at
    times outside `interval`, only v is computed.
    """

    def alone(z, at):
        return velocity(z, at, conditions)

    def guided(z, at):
        weak = weaker(z, at, conditions)
        return weak + guidance_scale * (alone(z, at) - weak)

    return _guided_within(guided, alone, guidance_scale, interval)


def _guided_within(guided, alone, guidance_scale, interval):
    """Returns the velocity function that is `guided` at times inside the interval, and `alone` outside it and at scale
    1."""
    if guidance_scale == 1.0:
        return alone
    if interval == (0.0, 1.0):
        return guided
    low, high = interval

    def within(z, at):
        time = getattr(at, "time", at)
        return jax.lax.cond((low <= time) & (time <= high), guided, alone, z, at)

    return within


def guided_share(
    times: Float[np.ndarray, " times"], method: str, guidance_scale: float, interval: tuple[float, float]
) -> float:
    """The share of a sampler's velocity evaluations that use guidance, and so cost two evaluations of the network.

    Times and interval are compared in float32, as the sampler compares them.
    """
    if guidance_scale == 1.0:
        return 0.0
    times, (low, high) = np.float32(times), np.float32(interval)
    inside = (times >= low) & (times <= high)
    ends = inside[:-1], inside[1:]  # at a step's beginning, and at its end, where Heun's method evaluates again
    return float(np.mean(ends[: EVALUATIONS_PER_STEP[method]]))
