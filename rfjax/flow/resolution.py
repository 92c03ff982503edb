"""The timestep shift of a latent shape (SD3 section 5.3.2, eq. 23).

A picture with more pixels needs more noise to be destroyed: at equal t, its uncertainty is proportional to one over the
square root of the number of pixels. So, with `timestep_shift_by_area`, a shape of m latent pixels has
alpha = timestep_shift sqrt(m / n), where n = image_size^2.

A clip of f latent frames has f^e times the alpha of one frame, where e is `config.timestep_shift_frames`. If nothing
moves, further frames are like further pixels, and e would be 1/2. Frames that move repeat each other less, so e is a
field of the config (0 by default).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rfjax.config import Config
from rfjax.errors import ConfigError
from rfjax.flow.formulation import Formulation, parse_formulation


def shift_at(config: Config, latents: Sequence[int]) -> float:
    """Returns alpha for latents of (frames, height, width, ...): `timestep_shift` times frames^`timestep_shift_frames`
    and, if `timestep_shift_by_area`, times sqrt(height width) / `data.image_size`. These names are fields of `config`.
    """
    shift = config.timestep_shift * latents[0] ** config.timestep_shift_frames
    if not config.timestep_shift_by_area:
        return shift
    return shift * math.sqrt(latents[1] * latents[2] / config.data.image_size**2)


def formulation_at(config: Config, latents: Sequence[int] | None = None) -> Formulation:
    """Returns the formulation of a run for latents of (frames, height, width, ...). By default the latents have
    `config.data.frames` frames, and `config.data.image_size` as height and width.

    Raises `ConfigError` if the formulation is not rectified flow and the config sets any timestep shift:
    `timestep_shift`, or a shift by area or by frames.
    """
    latents = latents or (config.data.frames, config.data.image_size, config.data.image_size)
    shifts = (
        ("config.timestep_shift_by_area is true", config.timestep_shift_by_area, "false"),
        (f"config.timestep_shift_frames is {config.timestep_shift_frames:g}", config.timestep_shift_frames, "0"),
    )
    for given, is_set, off in shifts:
        if is_set and not parse_formulation(config.formulation).is_rectified_flow:
            other = f"the t of formulation {config.formulation!r} is not rectified flow's; set it to {off}"
            raise ConfigError(f"{given}, which shifts rectified flow's t, and {other}")
    return parse_formulation(config.formulation, shift_at(config, latents))
