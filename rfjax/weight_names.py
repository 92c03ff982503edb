"""The names of a run's weights in records and tables: "ema", "raw", and power-function averages by their width, such as
"power-0.12". No JAX here."""

from __future__ import annotations

POWER = "power-"


def weights_name(width: float) -> str:
    """The name of the power-function average of a width: "power-0.12"."""
    return f"{POWER}{width:g}"


def width_of(weights: str) -> float | None:
    """The width of the power-function average with this name; None for `ema` and `raw`."""
    return float(weights.removeprefix(POWER)) if weights.startswith(POWER) else None
