"""What a network predicts, and how any prediction becomes data, noise or another prediction.

Every prediction is p = m x0 + n eps, where m and n are functions of the path's a and b and their derivatives. Together
with z = a x0 + b eps this is a linear system in (x0, eps). All conversions solve this system. An error of p at a given
z gives eps_hat - eps = a (p_hat - p) / det.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float

from rfjax.flow.path import Path, Times


class Mixing(NamedTuple):
    """The coefficients of the point z = a x0 + b eps and of the prediction p = m x0 + n eps."""

    a: Times
    b: Times
    m: Times
    n: Times

    @property
    def determinant(self) -> Times:
        """a n - b m. Where it is zero, the prediction adds nothing to what z says about the data."""
        return self.a * self.n - self.b * self.m


@runtime_checkable
class Prediction(Protocol):
    def mixing(self, path: Path, t: Times) -> Mixing:
        """Returns the coefficients at t: a, b of z = a x0 + b eps, and m, n of the prediction m x0 + n eps."""

    def input_scale(self, a: Times, b: Times) -> Times | float:
        """The factor by which z is multiplied in the network's input."""


@dataclass(frozen=True)
class Velocity:
    """u = a' x0 + b' eps, the velocity in the path's own time (SD3 eq. 8); for rf it is eps - x0."""

    def mixing(self, path, t):
        return Mixing(path.a(t), path.b(t), path.da(t), path.db(t))

    def input_scale(self, a, b):
        return 1.0


@dataclass(frozen=True)
class AngularVelocity:
    """v = a eps - b x0 (Salimans and Ho 2022). If a^2 + b^2 = 1, v is dz/dphi for the angle phi = arctan(b / a). So on
    the cosine path the velocity dz/dt is pi/2 times v."""

    def mixing(self, path, t):
        a, b = path.a(t), path.b(t)
        return Mixing(a, b, -b, a)

    def input_scale(self, a, b):
        return 1.0


@dataclass(frozen=True)
class Noise:
    """The noise eps (Ho 2020). Where a = 0, z and eps say nothing about the data."""

    def mixing(self, path, t):
        a = path.a(t)
        return Mixing(a, path.b(t), 0.0 * a, 0.0 * a + 1.0)

    def input_scale(self, a, b):
        return 1.0


@dataclass(frozen=True)
class Data:
    """The data x0. Where b = 0, z and x0 say nothing about the noise."""

    def mixing(self, path, t):
        a = path.a(t)
        return Mixing(a, path.b(t), 0.0 * a + 1.0, 0.0 * a)

    def input_scale(self, a, b):
        return 1.0


@dataclass(frozen=True)
class EDMPrediction:
    """EDM's F = (x0 - c_skip z) / c_out and its input c_in z (Karras 2022, table 1 and eq. 7).

    Here a need not be 1. With r = sqrt(b^2 + sigma_data^2 a^2), c_in = 1/r and
    F = (b / (sigma_data r)) x0 - (sigma_data a / r) eps, which is finite from sigma = 0 to infinity.
    """

    sigma_data: float = 0.5

    def _r(self, a, b):
        return (b * b + self.sigma_data**2 * a * a) ** 0.5

    def mixing(self, path, t):
        a, b = path.a(t), path.b(t)
        r = self._r(a, b)
        return Mixing(a, b, b / (self.sigma_data * r), -self.sigma_data * a / r)

    def input_scale(self, a, b):
        return 1.0 / self._r(a, b)


def data_and_noise(
    mixing: Mixing, z: Float[Array, "batch ..."], prediction: Float[Array, "batch ..."]
) -> tuple[Float[Array, "batch ..."], Float[Array, "batch ..."]]:
    """Returns the (x0, eps) that give z and the prediction. `mixing` has arrays of z's rank; det must not be zero."""
    a, b, m, n = mixing
    return (n * z - b * prediction) / mixing.determinant, (a * prediction - m * z) / mixing.determinant
