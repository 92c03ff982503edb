"""Each family's path and prediction by its own definition, written without the code under test."""

import functools

import jax.numpy as jnp
import numpy as np


@functools.cache
def alpha_bar():
    """The cumulative products of latent diffusion's schedule, in double precision."""
    root = np.sqrt(0.00085) + np.arange(1000) / 999 * (np.sqrt(0.012) - np.sqrt(0.00085))
    return np.array([np.prod(1 - root[: n + 1] ** 2) for n in range(1000)])


def _linear(condition):
    """log(alpha bar) runs straight between the steps; the network is told the step's index / 1000."""
    log_a_squared = jnp.interp(
        condition * 1000, jnp.arange(-1.0, 1000.0), jnp.asarray(np.log(np.append(1.0, alpha_bar())))
    )
    return jnp.exp(log_a_squared / 2), jnp.sqrt(-jnp.expm1(log_a_squared))


def _vp(t):
    a = jnp.exp(-(0.1 * t + 9.95 * t * t) / 2)
    return a, jnp.sqrt(1 - a * a)


PATHS = {
    "rf": lambda t: (1 - t, t),
    "cos": lambda t: (jnp.cos(jnp.pi * t / 2), jnp.sin(jnp.pi * t / 2)),
    "linear": _linear,
    "edm": lambda c_noise: (jnp.ones_like(c_noise), jnp.exp(4 * c_noise)),
    "ot": lambda t: (1 - t, 1e-5 + (1 - 1e-5) * t),
    "vp": _vp,
    "ve": lambda t: (jnp.ones_like(t), 0.01 * 5000**t),
}


def own_prediction(name, z, condition):
    """(a, b, z, prediction of (x0, eps)) from what the network is given: its input z, which for EDM is
    scaled and comes back unscaled, and what it is told of t, both of one rank."""
    kind = name.split("(")[0]
    path = "edm" if kind.startswith("edm") else "rf" if kind.startswith("rf") else kind.split("/")[1]
    a, b = PATHS[path](condition)
    if path == "edm":
        z = z * jnp.sqrt(b**2 + 0.25)
        skip, out = 0.25 / (b**2 + 0.25), 0.5 * b / jnp.sqrt(b**2 + 0.25)
        return a, b, z, lambda x0, eps: (x0 - skip * z) / out
    predictions = {
        "rf": lambda x0, eps: eps - x0,
        "eps": lambda x0, eps: eps,
        "v": lambda x0, eps: a * eps - b * x0,
        "x": lambda x0, eps: x0,
        "fm/ot": lambda x0, eps: (1 - 1e-5) * eps - x0,
        "fm/vp": lambda x0, eps: (0.05 + 9.95 * condition) * a * (a / b * eps - x0),
        "fm/ve": lambda x0, eps: np.log(5000.0) * b * eps,
    }
    return a, b, z, predictions.get(kind) or predictions[kind.split("/")[0]]
