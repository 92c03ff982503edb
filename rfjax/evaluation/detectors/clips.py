"""The detector of `motion`: that of `shapes`, frame by frame, with boxes to a part of a pixel.

A box there ends at whole pixels, and slow objects go less than one in a frame. Here a box has the size that the blob's
area gives its shape, about the place that the blob's centroid gives.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from rfjax.data.motion_paths import HALVES
from rfjax.data.shapes import CLASSES, VOCABULARY
from rfjax.evaluation.detectors import shapes
from rfjax.evaluation.detectors.segmentation import collect


def detect_clips(clips: Float[np.ndarray, "n frames h w 3"]) -> list[list[dict]]:
    """For each clip and each of its frames what was found, as `detectors` describes it."""
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
