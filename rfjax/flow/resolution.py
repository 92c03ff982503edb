"""The timestep shift of a latent shape (SD3 section 5.3.2, eq. 23).

A picture with more pixels needs more noise to be destroyed: at equal t a patch's uncertainty falls with the square root
of their number. So a shape of m latent pixels has alpha = timestep_shift sqrt(m / n), where n = image_size^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rfjax.config import Config
from rfjax.errors import ConfigError
from rfjax.flow.formulation import Formulation, parse_formulation


def shift_at(config: Config, latents: Sequence[int]) -> float:
    """alpha for latents of (frames, height, width, ...): `config.timestep_shift`, scaled if `timestep_shift_by_area`.
    The number of frames does not change it."""
    if not config.timestep_shift_by_area:
        return config.timestep_shift
    return config.timestep_shift * math.sqrt(latents[1] * latents[2] / config.data.image_size**2)


def formulation_at(config: Config, latents: Sequence[int] | None = None) -> Formulation:
    """The formulation of a run for latents of (frames, height, width, ...), by default squares of
    `config.data.image_size`.

    Raises `ConfigError` for a shift, or a shift by area, of a formulation that is not rectified flow.
    """
    latents = latents or (config.data.frames, config.data.image_size, config.data.image_size)
    if config.timestep_shift_by_area and not parse_formulation(config.formulation).is_rectified_flow:
        given = "config.timestep_shift_by_area is true, which shifts rectified flow's t"
        raise ConfigError(f"{given}, and formulation {config.formulation!r} has another t; set it to false")
    return parse_formulation(config.formulation, shift_at(config, latents))
