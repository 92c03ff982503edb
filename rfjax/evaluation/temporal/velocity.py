"""The velocity error of clips: how far the objects' velocity is from the velocity that the prompt asks for.

PhyWorld (Kang et al. 2024, arXiv:2411.02385) averages |v - v'| over frames, where v is the simulator's velocity and v'
the velocity that a parser finds in the generated frames. For comparison it gives the parser's own error, on frames of
the simulator. Here a prompt determines a direction, and a world determines the speeds that an object may have
(`World.speeds`). A world gives intervals of speed, so an object at any speed of an interval has the error 0. If the
prompt names no speed, all intervals of its task are allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rfjax.data.motion_worlds import DIRECTIONS, SIDE, STEPS, World
from rfjax.evaluation.geneval.rules import Detections
from rfjax.evaluation.temporal.rules import DEFAULT, TemporalOptions, Track, tracks_of

ERROR, FOUND = "velocity_error", "velocity_found"


def velocity_measures(
    frames: Sequence[Detections],
    side: float | int,
    row: Mapping[str, object],
    world: World,
    options: TemporalOptions = DEFAULT,
) -> dict[str, float]:
    """Measures whether a clip's moving objects are found, and how far their velocity is from the velocity that the
    prompt asks for, in pixels a frame. Returns {} if the prompt determines no velocity.

    "velocity_found" is 1 if every moving object is found, with its colour, in two frames or more, and else 0.
    "velocity_error" is the mean of the function `velocity_error` over these objects; it is missing if "velocity_found"
    is 0. `side` is the height and width of a frame in pixels, as the boxes have them.
    """
    errors = []
    for track in tracks_of(frames, side, row, options):
        speeds = world.speeds(str(row["tag"]), track.item.get("speed"))
        if track.item["motion"] in DIRECTIONS and speeds:
            scale = side / SIDE / (len(frames) - 1)
            errors.append(velocity_error(track, [(scale * low, scale * high) for low, high in speeds]))
    if not errors:
        return {}
    if any(map(math.isnan, errors)):
        return {FOUND: 0.0}
    return {ERROR: float(np.mean(errors)), FOUND: 1.0}


def velocity_error(track: Track, speeds: Sequence[tuple[float, float]]) -> float:
    """Computes the mean over time of |v - v'| for one object, in pixels a frame. Returns nan if the object is found, in
    its colour, in fewer than two frames.

    v' is the velocity from each frame in which the object is found to the next such frame. v is the same in all frames
    and has the asked direction. The speed of v is the speed in the intervals `speeds` (pixels a frame) that is nearest
    to the object's mean speed in this direction, from its first position to its last.
    """
    times = np.flatnonzero(track.found & [track.item.get("color", color) == color for color in track.colors])
    if len(times) < 2:
        return math.nan
    centres = (track.boxes[times, :2] + track.boxes[times, 2:]) / 2
    step, lasting = STEPS[DIRECTIONS.index(track.item["motion"])], np.diff(times)
    own = (centres[-1] - centres[0]) @ step / (times[-1] - times[0])
    speed = min((float(np.clip(own, low, high)) for low, high in speeds), key=lambda allowed: abs(allowed - own))
    moved = np.diff(centres, axis=0) / lasting[:, None]
    return float(np.average(np.linalg.norm(moved - speed * step, axis=1), weights=lasting))
