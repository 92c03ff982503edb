"""Measures that rise before a clip is right: a small model moves a colour long before it draws a shape in every frame.

A strict task asks for class, colour and place in all frames at once. Beside it stand, from the pixels of the embedded
corpora alone: whether a colour's centroid goes the asked way, and how far; and from a detector, the share of frames
that show class and colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from rfjax.data.motion_worlds import DIRECTIONS, STEPS
from rfjax.data.shapes import VOCABULARY
from rfjax.evaluation.detectors.segmentation import estimate_background, unmix
from rfjax.evaluation.geneval.rules import Detections, judge

INK = 0.3  # alpha from which a pixel counts, so that a background's noise has no centroid
LEAST = 4.0  # pixels of ink in a frame, below which a colour is not there


def centroids(clip: Float[np.ndarray, "frames h w 3"], color: str) -> Float[np.ndarray, "frames 2"]:
    """(x, y) in pixels of a colour's ink in each frame; nan in a frame with less than `LEAST` of it."""
    alpha, residual = unmix(clip, np.array(VOCABULARY.palette), estimate_background(clip)[0])
    mine = VOCABULARY.colors.index(color)
    ink = np.where((np.argmin(residual, axis=-1) == mine) & (alpha[..., mine] > INK), alpha[..., mine], 0.0)
    total = ink.sum(axis=(1, 2))
    y, x = np.meshgrid(*(np.arange(side) + 0.5 for side in clip.shape[1:3]), indexing="ij")
    sums = np.stack([(ink * x).sum(axis=(1, 2)), (ink * y).sum(axis=(1, 2))], axis=1)
    return np.where(total[:, None] >= LEAST, sums / np.maximum(total, 1e-9)[:, None], np.nan)


def soft_measures(
    clip: Float[np.ndarray, "frames h w 3"], frames: Sequence[Detections], row: Mapping[str, object]
) -> dict[str, float]:
    """The soft measures of one clip of a prompt's row; those of motion for prompts that have some.

    "frames_right": share of frames in which GenEval finds the classes and colours; where a screen hides them between,
    of the first and the last.
    "direction_right": share of the moving objects whose colour's centroid goes, from its first frame to its last (for a
    bounce: to its furthest), most in the asked direction.
    "pixels_a_frame": how far it goes so in a frame, negative for the other way.
    A colour that is in fewer than two frames has not gone.
    """
    hides = any("behind" in item for item in row["include"])
    told = [frames[0], frames[-1]] if hides else frames
    measures = {"frames_right": float(np.mean([_is_right(found, row) for found in told]))}
    right, pixels = [], []
    for item in row["include"]:
        if item["motion"] not in DIRECTIONS:
            continue
        places = centroids(clip, item["color"])
        times = np.flatnonzero(~np.isnan(places[:, 0]))
        if len(times) < 2:
            right.append(0.0)
            pixels.append(0.0)
            continue
        step = STEPS[DIRECTIONS.index(item["motion"])]
        gone = places[times] - places[times[0]]
        end = int(np.argmax(gone @ step)) if item.get("then") == "bounces" else len(times) - 1
        right.append(float(np.argmax(STEPS @ gone[end]) == DIRECTIONS.index(item["motion"]) and gone[end] @ step > 0))
        pixels.append(float(gone[end] @ step) / max(1, times[end] - times[0]))
    if right:
        measures |= {"direction_right": float(np.mean(right)), "pixels_a_frame": float(np.mean(pixels))}
    return measures


def _is_right(found, row):
    """Whether a frame has the objects of a row in their colours, wherever they are; what changes may have either."""
    first = [{key: item[key] for key in ("class", "count", "color") if key in item} for item in row["include"]]
    colors = [[item["color"], *([item["becomes"]] if "becomes" in item else [])] for item in row["include"]]
    choices = [[{**item, "color": hue} for hue in hues] for item, hues in zip(first, colors, strict=True)]
    if len(choices) == 1:
        return any(judge(found, {"tag": "colors", "include": [item]}).correct for item in choices[0])
    return judge(found, {"tag": "colors", "include": first}).correct
