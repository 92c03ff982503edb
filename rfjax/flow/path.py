"""Paths from data to noise, and the conversions between what a network may predict.

Time runs from data (t=0) to noise (t=1): z_t = a(t) x0 + b(t) eps  (SD3 eq. 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float


@runtime_checkable
class Path(Protocol):
    """The coefficients of z_t = a(t) x0 + b(t) eps and their derivatives in t."""

    def a(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...
    def b(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...
    def da(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...
    def db(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]: ...


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path z_t = (1 - t) x0 + t eps  (SD3 eq. 13)."""

    def a(self, t):
        return 1.0 - t

    def b(self, t):
        return t

    def da(self, t):
        return 0.0 * t - 1.0

    def db(self, t):
        return 0.0 * t + 1.0


def expand_time(t: Float[Array, "batch"], like: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """`t` with trailing axes of size one, to multiply arrays of `like`'s rank."""
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


def interpolate(
    path: Path,
    data: Float[Array, "batch ..."],
    noise: Float[Array, "batch ..."],
    t: Float[Array, "batch"],
) -> Float[Array, "batch ..."]:
    """The point z_t on the path (SD3 eq. 2)."""
    t = expand_time(t, data)
    return path.a(t) * data + path.b(t) * noise


def velocity_target(
    path: Path,
    data: Float[Array, "batch ..."],
    noise: Float[Array, "batch ..."],
    t: Float[Array, "batch"],
) -> Float[Array, "batch ..."]:
    """dz_t/dt for fixed data and noise: what the conditional flow-matching loss regresses on."""
    t = expand_time(t, data)
    return path.da(t) * data + path.db(t) * noise


def data_and_noise_from_velocity(
    path: Path,
    z: Float[Array, "batch ..."],
    velocity: Float[Array, "batch ..."],
    t: Float[Array, "batch"],
) -> tuple[Float[Array, "batch ..."], Float[Array, "batch ..."]]:
    """The (x0, eps) that give both z_t and this velocity: the 2x2 system of eq. 2 and its
    derivative, solved; its determinant a b' - a' b must not vanish."""
    t = expand_time(t, z)
    a, b, da, db = path.a(t), path.b(t), path.da(t), path.db(t)
    determinant = a * db - da * b
    return (db * z - b * velocity) / determinant, (a * velocity - da * z) / determinant
