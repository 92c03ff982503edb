"""Paths from data to noise: z_t = a(t) x0 + b(t) eps  (SD3 eq. 2).

Time runs from data (t=0) to noise (t=1). Functions of t also take NumPy arrays, because schedules are made in float64
on the host. So each function computes with the library of its argument: NumPy or jax.numpy.

Divided by a + b, each of these paths is the straight path of rectified flow at the time

    s = b / (a + b) = sigma / (1 + sigma),   sigma = b / a,   log-SNR = 2 log((1 - s) / s).

Validation, sampling and tests compare formulations at equal s (`rfjax.flow.matched`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float

from rfjax.errors import ConfigError

Times = Float[Array | np.ndarray, "*n"]


@runtime_checkable
class Path(Protocol):
    """The coefficients of z_t = a(t) x0 + b(t) eps, their derivatives in t, and the network's time input."""

    @property
    def span(self) -> tuple[float, float]:
        """The range of t in which the network is evaluated. Sampling ends at sigma = 0, even if the range does not."""

    def a(self, t: Times) -> Times: ...
    def b(self, t: Times) -> Times: ...
    def da(self, t: Times) -> Times: ...
    def db(self, t: Times) -> Times: ...

    def time_at(self, s: Times) -> Times:
        """Returns the time t of this path at which b(t) / (a(t) + b(t)) = s."""

    def condition(self, t: Times) -> Times:
        """The network's time input at t."""


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path z_t = (1 - t) x0 + t eps  (SD3 eq. 13)."""

    span = (0.0, 1.0)

    def a(self, t):
        return 1.0 - t

    def b(self, t):
        return t

    def da(self, t):
        return 0.0 * t - 1.0

    def db(self, t):
        return 0.0 * t + 1.0

    def time_at(self, s):
        return s

    def condition(self, t):
        return t


@dataclass(frozen=True)
class Cosine:
    """z_t = cos(pi t/2) x0 + sin(pi t/2) eps  (SD3 section 2, after Nichol and Dhariwal 2021)."""

    span = (0.0, 1.0)

    def a(self, t):
        return t.__array_namespace__().cos(0.5 * math.pi * t)

    def b(self, t):
        return t.__array_namespace__().sin(0.5 * math.pi * t)

    def da(self, t):
        return -0.5 * math.pi * self.b(t)

    def db(self, t):
        return 0.5 * math.pi * self.a(t)

    def time_at(self, s):
        return s.__array_namespace__().arctan2(s, 1.0 - s) * (2.0 / math.pi)

    def condition(self, t):
        return t


@functools.lru_cache
def _log_alpha_bar(steps, first, last):
    """Returns log prod_{i < n} (1 - beta_i) for n = 0, ..., steps, in float64; sqrt(beta_i) rises evenly from
    sqrt(first) to sqrt(last)."""
    betas = np.linspace(math.sqrt(first), math.sqrt(last), steps) ** 2
    return np.append(0.0, np.cumsum(np.log1p(-betas)))


@dataclass(frozen=True)
class LatentDiffusionLinear:
    """The discrete schedule of latent diffusion, "linear" in SD3 (section 2): sqrt(beta) rises evenly.

    After n of `steps` steps, at t = n / steps, a^2 = prod_{i < n} (1 - beta_i) and b^2 = 1 - a^2. Training visits
    n = 1, ..., steps. The network's time input is (n - 1) / steps. The network's embedding multiplies this input by
    1000; with 1000 steps the product is the index n - 1, from 0 to 999, as in latent diffusion. Between steps, for
    validation and sampling, log a^2 is interpolated linearly; the derivatives are the interpolation's. The betas are
    Stable Diffusion's; SD3 does not print them.
    """

    steps: int = 1000
    first_beta: float = 0.00085
    last_beta: float = 0.012

    @property
    def span(self):
        return 1.0 / self.steps, 1.0

    @property
    def _table(self):
        return _log_alpha_bar(self.steps, self.first_beta, self.last_beta)

    def _log_a_squared(self, t):
        return t.__array_namespace__().interp(t * self.steps, np.arange(self.steps + 1.0), self._table)

    def a(self, t):
        return t.__array_namespace__().exp(0.5 * self._log_a_squared(t))

    def b(self, t):
        xp = t.__array_namespace__()
        return xp.sqrt(-xp.expm1(self._log_a_squared(t)))

    def da(self, t):
        xp = t.__array_namespace__()
        index = xp.clip(xp.floor(t * self.steps), 0, self.steps - 1).astype(int)
        return 0.5 * self.a(t) * xp.asarray(np.diff(self._table) * self.steps, t.dtype)[index]

    def db(self, t):
        return -self.a(t) * self.da(t) / self.b(t)

    def time_at(self, s):
        xp = s.__array_namespace__()
        log_a_squared = -xp.log1p((s / (1.0 - s)) ** 2)
        return xp.interp(-log_a_squared, -self._table, np.arange(self.steps + 1.0) / self.steps)

    def condition(self, t):
        return t - 1.0 / self.steps


# The least distance from 0 and 1 that float32 resolves: sigma goes from 6e-8 to 1.7e7.
_NEAREST = 2.0**-24


@dataclass(frozen=True)
class VarianceExplodingEDM:
    """EDM's path z = x0 + sigma eps (Karras 2022), in the time t = sigma / (1 + sigma).

    If ln(sigma) is normal, this t is logit-normal. At equal t this path and rectified flow have equal log-SNR. So rf's
    densities of t can be used. The network's time input is c_noise = ln(sigma) / 4. SD3 writes the same density as
    b_t = exp F^-1(t), where t is uniform and F^-1 is the quantile function of ln(sigma). Sampling uses sigma from 80
    down to 0.002, as EDM does.
    """

    span = (0.002 / 1.002, 80.0 / 81.0)

    def _inside(self, t):
        return t.__array_namespace__().clip(t, _NEAREST, 1.0 - _NEAREST)

    def a(self, t):
        return 0.0 * t + 1.0

    def b(self, t):
        t = self._inside(t)
        return t / (1.0 - t)

    def da(self, t):
        return 0.0 * t

    def db(self, t):
        return 1.0 / (1.0 - self._inside(t)) ** 2

    def time_at(self, s):
        return s

    def condition(self, t):
        return 0.25 * t.__array_namespace__().log(self.b(t))


@dataclass(frozen=True)
class OptimalTransport:
    """Flow matching's conditional optimal transport (Lipman 2023, eq. 20), with t = 0 at the data: a = 1 - t, b =
    sigma_min + (1 - sigma_min) t. With sigma_min = 0 it is rectified flow."""

    sigma_min: float = 1e-5

    span = (0.0, 1.0)

    def __post_init__(self):
        if not 0 <= self.sigma_min < 1:
            raise ConfigError(f"sigma_min is {self.sigma_min}; it must lie in [0, 1)")

    def a(self, t):
        return 1.0 - t

    def b(self, t):
        return self.sigma_min + (1.0 - self.sigma_min) * t

    def da(self, t):
        return 0.0 * t - 1.0

    def db(self, t):
        return 0.0 * t + (1.0 - self.sigma_min)

    def time_at(self, s):
        return ((1.0 + self.sigma_min) * s - self.sigma_min) / (1.0 - self.sigma_min + self.sigma_min * s)

    def condition(self, t):
        return t


@dataclass(frozen=True)
class VariancePreserving:
    """The variance-preserving path of Lipman et al. 2023 (section 4.1), with t = 0 at the data: a = exp(-T(t)/2),
    b = sqrt(1 - a^2), T(t) = beta_min t + (beta_max - beta_min) t^2 / 2.

    db grows as 1/sqrt(t) near the data, so t stays above 1e-5 in training and in sampling.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    span = (1e-5, 1.0)

    def __post_init__(self):
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ConfigError(f"beta runs from {self.beta_min} to {self.beta_max}; it must be positive and not fall")

    def _integral(self, t):
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def a(self, t):
        return t.__array_namespace__().exp(-0.5 * self._integral(t))

    def b(self, t):
        xp = t.__array_namespace__()
        return xp.sqrt(-xp.expm1(-self._integral(t)))

    def da(self, t):
        return -0.5 * (self.beta_min + (self.beta_max - self.beta_min) * t) * self.a(t)

    def db(self, t):
        return -self.a(t) * self.da(t) / self.b(t)

    def time_at(self, s):
        xp = s.__array_namespace__()
        integral = xp.log1p((s / (1.0 - s)) ** 2)
        slope = self.beta_max - self.beta_min
        # The quadratic's root in the form that does not cancel at small t.
        return 2.0 * integral / (self.beta_min + xp.sqrt(self.beta_min**2 + 2.0 * slope * integral))

    def condition(self, t):
        return t


@dataclass(frozen=True)
class VarianceExploding:
    """The variance-exploding path of Lipman et al. 2023 (section 4.1), with t = 0 at the data: a = 1 and
    b = sigma_min (sigma_max / sigma_min)^t. This b is the noise schedule of Song et al. 2021."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    span = (0.0, 1.0)

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ConfigError(f"sigma runs from {self.sigma_min} to {self.sigma_max}; it must be positive and rise")

    @property
    def _rate(self):
        return math.log(self.sigma_max / self.sigma_min)

    def a(self, t):
        return 0.0 * t + 1.0

    def b(self, t):
        return self.sigma_min * t.__array_namespace__().exp(self._rate * t)

    def da(self, t):
        return 0.0 * t

    def db(self, t):
        return self._rate * self.b(t)

    def time_at(self, s):
        return s.__array_namespace__().log(s / (1.0 - s) / self.sigma_min) / self._rate

    def condition(self, t):
        return t


def rectified_time(path: Path, t: Times) -> Times:
    """Returns s = b / (a + b): the time at which rectified flow has the log-SNR that `path` has at t."""
    a, b = path.a(t), path.b(t)
    return b / (a + b)


def expand_time(t: Float[Array, " batch"], like: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """Returns `t` with trailing axes of size one, so that it multiplies arrays of `like`'s rank."""
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


def interpolate(
    path: Path, data: Float[Array, "batch ..."], noise: Float[Array, "batch ..."], t: Float[Array, " batch"]
) -> Float[Array, "batch ..."]:
    """The point z_t on the path (SD3 eq. 2)."""
    t = expand_time(t, data)
    return path.a(t) * data + path.b(t) * noise


def velocity_target(
    path: Path, data: Float[Array, "batch ..."], noise: Float[Array, "batch ..."], t: Float[Array, " batch"]
) -> Float[Array, "batch ..."]:
    """Computes dz_t/dt for fixed data and noise: the target of the conditional flow-matching loss."""
    t = expand_time(t, data)
    return path.da(t) * data + path.db(t) * noise
