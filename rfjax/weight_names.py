"""The names of a run's weights in records and tables: "ema", "raw", and power-function averages by their width, such as
"power-0.12". No JAX here."""

from __future__ import annotations

from rfjax.errors import ConfigError
from rfjax.limits import LEAST_WIDTH, MOST_WIDTH

POWER = "power-"


def weights_name(width: float) -> str:
    """The name of the power-function average of a width: "power-0.12"."""
    return f"{POWER}{width:g}"


def width_of(weights: str) -> float | None:
    """The width of the power-function average with this name; None for `ema`, `raw` and any other name."""
    try:
        return float(weights.removeprefix(POWER)) if weights.startswith(POWER) else None
    except ValueError:
        return None


def is_trained(weights: str) -> bool:
    """Whether weights with this name come from training (`ema`, `raw`). Laws, rankings and settled rates take no
    others: an average that was made afterwards, at a width chosen by its loss, would be compared with those that were
    not chosen."""
    return not weights.startswith(POWER)


def parse_weights(text: str) -> str:
    """Checks a name of weights on a command line, and returns it as tables have it. Raises `ConfigError`."""
    if not text.strip():
        raise ConfigError("--weights is empty; give ema, raw or power-W, or leave it out (is a shell variable unset?)")
    width = width_of(text)
    if text not in ("ema", "raw") and not (width is not None and LEAST_WIDTH <= width < MOST_WIDTH):
        raise ConfigError(
            f"--weights is {text!r}; it must be ema, raw, or the power-function average of a width (sigma_rel) between "
            f"{LEAST_WIDTH} and {MOST_WIDTH}, such as power-0.12"
        )
    return text if width is None else weights_name(width)
