"""The names of a run's weights in records and tables: "ema", "raw", and power-function averages by their width, such as
"power-0.12". No JAX here."""

from __future__ import annotations

from rfjax.errors import ConfigError
from rfjax.limits import MOST_WIDTH

POWER = "power-"


def weights_name(width: float) -> str:
    """The name of the power-function average of a width: "power-0.12"."""
    return f"{POWER}{width:g}"


def width_of(weights: str) -> float | None:
    """The width of the power-function average with this name; None for `ema` and `raw`."""
    return float(weights.removeprefix(POWER)) if weights.startswith(POWER) else None


def parse_weights(text: str) -> str:
    """Checks a name of weights on a command line, and returns it as tables have it. Raises `ConfigError`."""
    if not text.strip():
        raise ConfigError("--weights is empty; give ema, raw or power-W, or leave it out (is a shell variable unset?)")
    try:
        width = width_of(text)
    except ValueError:
        width = 0.0
    if text not in ("ema", "raw") and not (width is not None and 0 < width < MOST_WIDTH):
        raise ConfigError(
            f"--weights is {text!r}; it must be ema, raw, or the power-function average of a width (sigma_rel) between "
            f"0 and {MOST_WIDTH}, such as power-0.12"
        )
    return text if width is None else weights_name(width)
