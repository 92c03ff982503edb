"""A formulation by name: what is learnt, and where along t the effort is spent.

Names are the paper's: `rf` (uniform t), `rf/lognorm(m,s)`, `rf/mode(s)`, `rf/cosmap`.
A formulation is a path and a density of t; the network predicts the velocity.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

from rfjax.errors import ConfigError
from rfjax.flow.density import CosMap, LogitNormal, Mode, Shifted, TimeDensity, Uniform
from rfjax.flow.path import Path, RectifiedFlow


@dataclass(frozen=True, kw_only=True)
class Formulation:
    name: str
    path: Path
    density: TimeDensity


# name before the parentheses -> (number of arguments, density)
_RECTIFIED_FLOW: dict[str, tuple[int, Callable[..., TimeDensity]]] = {
    "rf": (0, Uniform),
    "rf/lognorm": (2, LogitNormal),
    "rf/mode": (1, Mode),
    "rf/cosmap": (0, CosMap),
}

_EXAMPLES = ("rf", "rf/lognorm(0.00,1.00)", "rf/mode(1.29)", "rf/cosmap")


def parse_formulation(name: str, timestep_shift: float = 1.0) -> Formulation:
    """The formulation of a name such as `rf/lognorm(0.00,1.00)`, its density shifted by alpha.

    Raises `ConfigError` with the nearest name for one that is unknown.
    """
    match = re.fullmatch(r"([a-z/]+)(?:\(([^()]*)\))?", name.replace(" ", ""))
    family, arguments = (match[1], match[2].split(",") if match[2] else []) if match else (None, [])
    if family not in _RECTIFIED_FLOW:
        near = difflib.get_close_matches(name, _EXAMPLES, 1, 0.3) or _EXAMPLES[1:2]
        raise ConfigError(f"unknown formulation {name!r}; did you mean {near[0]}? There are {', '.join(_EXAMPLES)}")
    count, make = _RECTIFIED_FLOW[family]
    if len(arguments) != count:
        example = next(e for e in _EXAMPLES if e.split("(")[0] == family)
        raise ConfigError(f"formulation {name!r} has {len(arguments)} numbers, {family} takes {count}, as in {example}")
    try:
        density = make(*map(float, arguments))
    except ValueError:
        raise ConfigError(f"formulation {name!r} has an argument that is no number") from None
    if timestep_shift != 1.0:
        density = Shifted(density, timestep_shift)
    return Formulation(name=name, path=RectifiedFlow(), density=density)
