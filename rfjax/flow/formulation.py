"""A formulation by name: path x prediction x density of t x weight.

The table `FAMILIES` has the 61 formulations that SD3 compares (section 5.1), under SD3's names. It also has the paths
of Lipman 2023 (`fm/...`), and data prediction (`x/...`). `PAPER` lists the 61. docs/formulations.md has the equations,
and the choices that were made where the paper is ambiguous.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rfjax.errors import ConfigError
from rfjax.flow.density import CosMap, Discrete, LogitNormal, Mode, Shifted, TimeDensity, Uniform, UniformAbove
from rfjax.flow.path import (
    Cosine,
    LatentDiffusionLinear,
    OptimalTransport,
    Path,
    RectifiedFlow,
    VarianceExploding,
    VarianceExplodingEDM,
    VariancePreserving,
    rectified_time,
)
from rfjax.flow.prediction import AngularVelocity, Data, EDMPrediction, Noise, Prediction, Velocity
from rfjax.flow.weight import Unit, Weight


@dataclass(frozen=True, kw_only=True)
class Formulation:
    """What a network learns (path, prediction, weight), and how often each t is drawn (density)."""

    name: str
    path: Path
    density: TimeDensity
    prediction: Prediction = Velocity()
    weight: Weight = Unit()
    span: tuple[float, float] | None = None  # the network is evaluated only at these t; by default the path's span
    timestep_shift: float = 1.0  # alpha, for the sampler; `density` is shifted by it already

    @property
    def is_rectified_flow(self) -> bool:
        """Whether the network predicts a rectified flow's velocity, whatever the density of t."""
        return isinstance(self.path, RectifiedFlow) and isinstance(self.prediction, Velocity)

    @property
    def rectified_span(self) -> tuple[float, float]:
        """The formulation's span (by default its path's), as times of rectified flow."""
        first, last = rectified_time(self.path, np.array(self.span or self.path.span))
        return float(first), float(last)


class Family(NamedTuple):
    example: str
    numbers: tuple[str, ...]  # names of the numbers in parentheses
    make: Callable[..., dict]  # takes these numbers, returns the fields of a Formulation


def _rf(density) -> Callable[..., dict]:
    return lambda *numbers: {"path": RectifiedFlow(), "density": density(*numbers)}


def _edm(density) -> Callable[..., dict]:
    pieces = {"path": VarianceExplodingEDM(), "prediction": EDMPrediction()}
    return lambda *numbers: pieces | {"density": density(*numbers)}


def _fixed(**pieces) -> Callable[..., dict]:
    return lambda: pieces


_LINEAR, _DISCRETE = LatentDiffusionLinear(), Discrete(LatentDiffusionLinear().steps)
_EARLY = 0.999  # the t at which sampling of eps/cos starts: at t = 1 the predicted noise says nothing about the data
_VP = VariancePreserving()

FAMILIES: dict[str, Family] = {
    "rf": Family("rf", (), _rf(Uniform)),
    "rf/lognorm": Family("rf/lognorm(0.00,1.00)", ("m", "s"), _rf(LogitNormal)),
    "rf/mode": Family("rf/mode(1.29)", ("s",), _rf(Mode)),
    "rf/cosmap": Family("rf/cosmap", (), _rf(CosMap)),
    "eps/linear": Family("eps/linear", (), _fixed(path=_LINEAR, prediction=Noise(), density=_DISCRETE)),
    "v/linear": Family("v/linear", (), _fixed(path=_LINEAR, prediction=AngularVelocity(), density=_DISCRETE)),
    "x/linear": Family("x/linear", (), _fixed(path=_LINEAR, prediction=Data(), density=_DISCRETE)),
    "eps/cos": Family("eps/cos", (), _fixed(path=Cosine(), prediction=Noise(), density=Uniform(), span=(0.0, _EARLY))),
    "v/cos": Family("v/cos", (), _fixed(path=Cosine(), prediction=AngularVelocity(), density=Uniform())),
    "x/cos": Family("x/cos", (), _fixed(path=Cosine(), prediction=Data(), density=Uniform(), span=(1.0 - _EARLY, 1.0))),
    # ln(sigma) ~ N(P_m, P_s^2): t = sigma / (1 + sigma) is logit-normal(P_m, P_s)
    "edm": Family("edm(-1.20,1.20)", ("P_m", "P_s"), _edm(LogitNormal)),
    # log-SNRs distributed as those of rf, and of the cosine path, at uniform t
    "edm/rf": Family("edm/rf", (), _edm(Uniform)),
    "edm/cos": Family("edm/cos", (), _edm(CosMap)),
    "fm/ot": Family("fm/ot(0.00001)", ("sigma_min",), lambda s: {"path": OptimalTransport(s), "density": Uniform()}),
    "fm/vp": Family("fm/vp", (), _fixed(path=_VP, density=UniformAbove(_VP.span[0]))),
    "fm/ve": Family("fm/ve", (), _fixed(path=VarianceExploding(), density=Uniform())),
}

_MODE_SCALES = (-1.0, -0.54, -0.08, 0.38, 0.83, 1.0, 1.29, 1.75)  # linspace(-1, 1.75, 7) as printed, and 1
_LOGNORM_MEANS, _LOGNORM_SCALES = (-1.0, -0.5, 0.0, 0.5, 1.0), (0.2, 0.6, 1.0, 1.4, 1.8, 2.2)
_EDM_MEANS, _EDM_SCALES = (-1.2, -0.6, 0.0, 0.6, 1.2), (0.6, 1.2, 1.8)

# SD3 section 5.1, in its order of families.
PAPER: tuple[str, ...] = (
    "eps/linear",
    "v/linear",
    "eps/cos",
    "v/cos",
    "rf",
    *(f"rf/mode({s:.2f})" for s in _MODE_SCALES),
    *(f"rf/lognorm({m:.2f},{s:.2f})" for m in _LOGNORM_MEANS for s in _LOGNORM_SCALES),
    "rf/cosmap",
    *(f"edm({m:.2f},{s:.2f})" for m in _EDM_MEANS for s in _EDM_SCALES),
    "edm/rf",
    "edm/cos",
)


def _unknown(name: str) -> ConfigError:
    known = (*PAPER, *(family.example for family in FAMILIES.values()))
    text = name.lower().replace(" ", "")
    # The family is matched first, so that an extra number does not lead to another family.
    near = difflib.get_close_matches(text.split("(")[0], FAMILIES, 1, 0.5)
    within = [other for other in known if near and other.split("(")[0] == near[0]] or known
    best = difflib.get_close_matches(text, within, 1, 0.0)[0]
    examples = ", ".join(family.example for family in FAMILIES.values())
    return ConfigError(f"unknown formulation {name!r}; did you mean {best}? There are {examples}")


def parse_formulation(name: str, timestep_shift: float = 1.0) -> Formulation:
    """Returns the formulation of a name such as `rf/lognorm(0.00,1.00)`, its density of t shifted by `timestep_shift`.

    Raises `ConfigError` with the nearest name for an unknown name, and for a shift of a formulation that is not
    rectified flow: SD3's eq. 23 is about rectified flow's t.
    """
    match = re.fullmatch(r"([^()]+)(?:\(([^()]*)\))?", name.replace(" ", ""))
    family_name, arguments = (match[1], match[2].split(",") if match[2] else []) if match else (None, [])
    if family_name not in FAMILIES:
        raise _unknown(name)
    family = FAMILIES[family_name]
    if len(arguments) != len(family.numbers):
        wanted = f"{family_name} takes {len(family.numbers)}, as in {family.example}"
        raise ConfigError(f"formulation {name!r} has {len(arguments)} numbers, {wanted}")
    try:
        numbers = [float(argument) for argument in arguments]
    except ValueError:
        raise ConfigError(
            f"formulation {name!r} has an argument that is no number; write it as {family.example}"
        ) from None
    try:
        formulation = Formulation(name=name, **family.make(*numbers))
    except ConfigError as error:
        raise ConfigError(f"formulation {name!r}: {error}") from None
    if timestep_shift == 1.0:
        return formulation
    if not formulation.is_rectified_flow:
        given = f"config.timestep_shift is {timestep_shift:g}, which shifts rectified flow's t"
        raise ConfigError(f"{given}, and the t of formulation {name!r} is not rectified flow's; set it to 1")
    return replace(formulation, density=Shifted(formulation.density, timestep_shift), timestep_shift=timestep_shift)


RECTIFIED_FLOW = parse_formulation("rf")
