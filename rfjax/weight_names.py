"""The names of a run's weights in records and tables: "ema", "raw", and power-function averages by their width, such as
"power-0.12". No JAX here."""

from __future__ import annotations

from collections.abc import Sequence

from rfjax.errors import ConfigError
from rfjax.limits import LEAST_WIDTH, MOST_WIDTH

POWER = "power-"
WIDTHS = f"(sigma_rel) between {LEAST_WIDTH} and {MOST_WIDTH}"  # for messages


def weights_name(width: float) -> str:
    """The name of the power-function average of a width: "power-0.12"."""
    return f"{POWER}{width:g}"


def width_of(weights: str) -> float | None:
    """The width of the power-function average with this name; None for `ema`, `raw` and any other name."""
    try:
        return float(weights.removeprefix(POWER)) if weights.startswith(POWER) else None
    except ValueError:
        return None


def is_width(width: float) -> bool:
    """Whether a power-function average may have this width (sigma_rel)."""
    return LEAST_WIDTH <= width < MOST_WIDTH


def are_widths(widths: Sequence[float]) -> bool:
    """Whether each width is valid (`is_width`), and no two widths give the same name (`weights_name`)."""
    return all(map(is_width, widths)) and len(set(map(weights_name, widths))) == len(widths)


def is_trained(weights: str) -> bool:
    """Whether weights with this name come from training (`ema`, `raw`). Laws, rankings and learning rates
    from sweeps are made from such weights only. A power-function average is made after training, often at the width of
    the lowest loss, so its loss would be compared with losses of weights that were not chosen in this way."""
    return not weights.startswith(POWER)


def parse_weights(text: str) -> str:
    """Checks a name of weights on a command line, and returns it as tables have it. Raises `ConfigError`.

    An empty text is returned as it is: the command line refuses empty values of all options in one place.
    """
    width = width_of(text)
    if text.strip() and text not in ("ema", "raw") and not (width is not None and is_width(width)):
        raise ConfigError(
            f"--weights is {text!r}; it must be ema, raw, or the power-function average of a width {WIDTHS}, such as "
            "power-0.12"
        )
    return text if width is None else weights_name(width)


def parse_widths(text: str) -> tuple[str, ...]:
    """Parses the widths of `--average`, such as "0.08,0.12". Returns the names of these averages. Raises `ConfigError`
    for anything else."""
    try:
        widths = tuple(float(f"{float(word):g}") for word in text.split(","))  # as in the averages' names
    except ValueError:
        widths = ()
    if not widths or not are_widths(widths):
        raise ConfigError(f"--average is {text!r}; it must be widths {WIDTHS}, such as 0.12 or 0.05,0.1,0.15")
    return tuple(map(weights_name, widths))
