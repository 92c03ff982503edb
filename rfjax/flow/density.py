"""Densities of the timestep t in training (SD3 section 3.1), each with an exact sampler.

The sampler is the quantile function of u ~ U(0, 1). So one uniform number per example decides t, for any density.
`pdf` and `cdf` are for tests, weights and plots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rfjax.errors import ConfigError

MODE_SCALE_MAX = 2.0 / (math.pi - 2.0)  # f_mode stays monotone up to here (SD3, below eq. 20)


@runtime_checkable
class TimeDensity(Protocol):
    def quantile(self, u: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Returns the t in [0, 1] with P(T <= t) = u."""

    def pdf(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...
    def cdf(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...


@dataclass(frozen=True)
class Uniform:
    def quantile(self, u):
        return u

    def pdf(self, t):
        return jnp.ones_like(t)

    def cdf(self, t):
        return t


@dataclass(frozen=True)
class UniformAbove:
    """Uniform on [first, 1], for a path whose velocity is infinite at t = 0."""

    first: float

    def quantile(self, u):
        return self.first + (1.0 - self.first) * u

    def pdf(self, t):
        return jnp.where(t >= self.first, 1.0 / (1.0 - self.first), 0.0)

    def cdf(self, t):
        return jnp.clip((t - self.first) / (1.0 - self.first), 0.0, 1.0)


@dataclass(frozen=True)
class Discrete:
    """Uniform on the levels n / steps, n = 1, ..., steps, of a discrete schedule.

    `pdf` is the probability of a level times the number of levels, so it is 1 at each level.
    """

    steps: int = 1000

    def quantile(self, u):
        return (jnp.clip(jnp.floor(u * self.steps), 0, self.steps - 1) + 1.0) / self.steps

    def pdf(self, t):
        return jnp.ones_like(t)

    def cdf(self, t):
        return jnp.floor(t * self.steps + 1e-3) / self.steps  # n / steps is not exact in float32


@dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(x), x ~ N(mean, scale^2)  (SD3 eq. 19). A negative mean favours the data.

    With sigma = t / (1 - t) this means ln(sigma) ~ N(mean, scale^2), EDM's density of the noise level sigma.
    """

    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self):
        if not 0 < self.scale < math.inf:
            raise ConfigError(f"lognorm scale is {self.scale}; it must be positive and finite")
        if not math.isfinite(self.mean):
            raise ConfigError(f"lognorm mean is {self.mean}; it must be a finite number")

    def quantile(self, u):
        return jax.nn.sigmoid(self.mean + self.scale * jax.scipy.special.ndtri(u))

    def pdf(self, t):
        x = (jax.scipy.special.logit(t) - self.mean) / self.scale
        return jnp.exp(-0.5 * x * x) / (self.scale * math.sqrt(2 * math.pi) * t * (1 - t))

    def cdf(self, t):
        return jax.scipy.special.ndtr((jax.scipy.special.logit(t) - self.mean) / self.scale)


@dataclass(frozen=True)
class Mode:
    """t = 1 - u' - s (cos^2(pi u'/2) - 1 + u'), u' ~ U(0, 1), with s = `scale`  (SD3 eq. 20). It has heavy tails.

    Valid for -1 <= s <= 2/(pi - 2), where the map is monotone (decreasing in u').
    """

    scale: float

    def __post_init__(self):
        if not -1.0 <= self.scale <= MODE_SCALE_MAX:
            raise ConfigError(f"mode scale is {self.scale}; it must lie in [-1, {MODE_SCALE_MAX:.4f}]")

    def _map(self, v):
        return 1.0 - v - self.scale * (jnp.cos(0.5 * jnp.pi * v) ** 2 - 1.0 + v)

    def _inverse(self, t):
        """Finds the v with _map(v) = t by bisection: exact to float precision, even where the map is flat."""

        def halve(_, bounds):
            low, high = bounds
            middle = 0.5 * (low + high)
            above = self._map(middle) > t  # the map falls, so the root lies to the right
            return jnp.where(above, middle, low), jnp.where(above, high, middle)

        low, high = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(t), jnp.ones_like(t)))
        return 0.5 * (low + high)

    def quantile(self, u):
        return self._map(1.0 - u)  # the map falls in v, so v = 1 - u makes t rise with u

    def pdf(self, t):
        v = self._inverse(t)
        return 1.0 / (1.0 + self.scale - 0.5 * jnp.pi * self.scale * jnp.sin(jnp.pi * v))

    def cdf(self, t):
        return 1.0 - self._inverse(t)


@dataclass(frozen=True)
class CosMap:
    """The density that gives rectified flow the log-SNR of the cosine schedule:
    t = 1 - 1/(tan(pi u/2) + 1)  (SD3 eq. 21)."""

    def quantile(self, u):
        # sin/(sin + cos) is the same map without the pole of tan at u = 1.
        angle = 0.5 * jnp.pi * u
        return jnp.sin(angle) / (jnp.sin(angle) + jnp.cos(angle))

    def pdf(self, t):
        return 2.0 / (jnp.pi - 2.0 * jnp.pi * t + 2.0 * jnp.pi * t * t)

    def cdf(self, t):
        return 2.0 / jnp.pi * jnp.arctan2(t, 1.0 - t)


def shift_time(t: Float[Array | np.ndarray, "*n"], alpha: float) -> Float[Array | np.ndarray, "*n"]:
    """Maps a timestep t at n pixels to the timestep t' at m pixels that has the same uncertainty (SD3 eq. 23):
    t' = alpha t / (1 + (alpha - 1) t), with alpha = sqrt(m/n).

    Training and sampling both call this function, so they cannot disagree. A shifted logit-normal(m, s) is a
    logit-normal(m + ln alpha, s).
    """
    return alpha * t / (1.0 + (alpha - 1.0) * t)


@dataclass(frozen=True)
class Shifted:
    """A density after `shift_time`."""

    base: TimeDensity
    alpha: float

    def quantile(self, u):
        return shift_time(self.base.quantile(u), self.alpha)

    def pdf(self, t):
        jacobian = (1.0 / self.alpha) / (1.0 + (1.0 / self.alpha - 1.0) * t) ** 2
        return self.base.pdf(shift_time(t, 1.0 / self.alpha)) * jacobian

    def cdf(self, t):
        return self.base.cdf(shift_time(t, 1.0 / self.alpha))
