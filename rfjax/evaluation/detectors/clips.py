"""The detector of `motion`: the detector of `shapes` on each frame, with boxes finer than a pixel.

The boxes of `shapes` end at whole pixels, but a slow object moves less than a pixel in a frame. So here a box is
centred on the blob's centroid, and its size follows from the blob's area and shape.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from rfjax.data.motion_paths import HALVES
from rfjax.data.shapes import CLASSES, VOCABULARY
from rfjax.evaluation.detectors import shapes
from rfjax.evaluation.detectors.segmentation import collect


def detect_stills(images: Float[np.ndarray, "n h w 3"]) -> list[dict]:
    """Returns the objects found in each still, in the form that `detectors` describes."""
    return [frames[0] for frames in detect_clips(np.asarray(images)[:, None])]


def detect_clips(clips: Float[np.ndarray, "n frames h w 3"]) -> list[list[dict]]:
    """Returns the objects found in each frame of each clip, in the form that `detectors` describes."""
    clips = np.asarray(clips)
    images = clips.reshape(-1, *clips.shape[2:])
    blobs, best, score = shapes.find(images)
    area, fall = np.array(shapes.moments(images.shape[1] // 2))[best].T
    radius = np.sqrt(blobs.area / area)
    centre = blobs.centroid - np.stack([np.zeros_like(fall), fall * radius], axis=1)
    half = HALVES[best] * radius[:, None]
    fine = np.concatenate([centre - half, centre + half], axis=1)
    found = collect(len(images), blobs, best, score, CLASSES, VOCABULARY.colors, shapes.SMALLEST_SCORE, boxes=fine)
    frames = clips.shape[1]
    return [found[i : i + frames] for i in range(0, len(found), frames)]
