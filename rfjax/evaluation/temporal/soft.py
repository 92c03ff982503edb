"""Soft measures of clips, which rise earlier in training than strict scores.

A strict task asks for the right class, colour and position in all frames at once, but a small model moves a colour long
before it draws a shape in every frame. There are two kinds of soft measures. The first is computed from pixels, for
embedded corpora only: whether a colour's centroid moves in the asked direction, and how far. The second is computed
from a detector's boxes: the share of frames that show the right class and colour.
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


def all_centroids(images: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n colors 2"]:
    """Returns the centroid (x, y), in pixels, of each colour's area in each image; nan if that area is below `LEAST`.
    Colours are in the vocabulary's order."""
    alpha, residual = unmix(images, np.array(VOCABULARY.palette), estimate_background(images)[0])
    mine = np.argmin(residual, axis=-1)[..., None] == np.arange(len(VOCABULARY.colors))
    ink = np.where(mine & (alpha > INK), alpha, 0.0)
    total = ink.sum(axis=(1, 2))
    y, x = (np.arange(side) + 0.5 for side in images.shape[1:3])
    sums = np.stack([np.einsum("nhwk,w->nk", ink, x), np.einsum("nhwk,h->nk", ink, y)], axis=-1)
    return np.where(total[..., None] >= LEAST, sums / np.maximum(total, 1e-9)[..., None], np.nan)


def centroids(clip: Float[np.ndarray, "frames h w 3"], color: str) -> Float[np.ndarray, "frames 2"]:
    """Returns the centroid (x, y), in pixels, of one colour's area in each frame; nan if that area is below `LEAST`."""
    return all_centroids(clip)[:, VOCABULARY.colors.index(color)]


def soft_measures(
    clip: Float[np.ndarray, "frames h w 3"], frames: Sequence[Detections], row: Mapping[str, object]
) -> dict[str, float]:
    """Computes the soft measures of one clip: "frames_right" and, if the prompt asks for motion in a direction, the
    measures of `motion_measures`. `row` says what the prompt asks for."""
    return {"frames_right": frames_right(frames, row), **motion_measures(all_centroids(clip), row)}


def frames_right(frames: Sequence[Detections], row: Mapping[str, object]) -> float:
    """The share of frames in which GenEval finds the row's classes and colours. If a screen hides objects, only the
    first and the last frame count."""
    hides = any("behind" in item for item in row["include"])
    told = [frames[0], frames[-1]] if hides else frames
    return float(np.mean([_is_right(found, row) for found in told]))


def motion_measures(places: Float[np.ndarray, "frames colors 2"], row: Mapping[str, object]) -> dict[str, float]:
    """Computes the soft measures of a clip's motion from the centroids of colours (`all_centroids`); returns an empty
    dict if the prompt asks for no motion.

    "direction_right": share of the moving objects whose colour's centroid moves mostly in the asked direction, from its
    first place to its last (for a bounce: to its furthest). "pixels_a_frame": the mean over these objects of how far
    the centroid moves in that direction per frame; a move in the opposite direction is negative. A colour that is in
    fewer than two frames counts as not moved.
    """
    right, pixels = [], []
    for item in row["include"]:
        if item["motion"] not in DIRECTIONS:
            continue
        mine = places[:, VOCABULARY.colors.index(item["color"])]
        times = np.flatnonzero(~np.isnan(mine[:, 0]))
        if len(times) < 2:
            right.append(0.0)
            pixels.append(0.0)
            continue
        step = STEPS[DIRECTIONS.index(item["motion"])]
        gone = mine[times] - mine[times[0]]
        end = int(np.argmax(gone @ step)) if item.get("then") == "bounces" else len(times) - 1
        right.append(float(np.argmax(STEPS @ gone[end]) == DIRECTIONS.index(item["motion"]) and gone[end] @ step > 0))
        pixels.append(float(gone[end] @ step) / max(1, times[end] - times[0]))
    return {"direction_right": float(np.mean(right)), "pixels_a_frame": float(np.mean(pixels))} if right else {}


def _is_right(found, row):
    """Whether a frame has the objects of a row in their colours, at any position. If the row has a single object and it
    changes colour, either colour counts."""
    first = [{key: item[key] for key in ("class", "count", "color") if key in item} for item in row["include"]]
    colors = [[item["color"], *([item["becomes"]] if "becomes" in item else [])] for item in row["include"]]
    choices = [[{**item, "color": hue} for hue in hues] for item, hues in zip(first, colors, strict=True)]
    if len(choices) == 1:
        return any(judge(found, {"tag": "colors", "include": [item]}).correct for item in choices[0])
    return judge(found, {"tag": "colors", "include": first}).correct
