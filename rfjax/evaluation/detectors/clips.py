"""The detector of `motion`: the detector of `shapes` or `digits` on each frame, with boxes finer than a pixel.

The boxes of these detectors end at whole pixels, but a slow object moves less than a pixel in a frame. So here the
centre of a box is computed from the blob's centroid. The size of a shape's box is computed from the blob's area and
class; the boxes of all scans have the same size.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from rfjax.data.digits import drawn_side
from rfjax.data.motion_paths import HALVES
from rfjax.evaluation.detectors import digits, shapes
from rfjax.evaluation.detectors.segmentation import collect


def detect_stills(images: Float[np.ndarray, "n h w 3"], *, scans: bool = False) -> list[dict]:
    """Returns the objects found in each still, in the form that `detectors` describes. The objects are shapes, or
    handwritten digits if `scans` is true."""
    return [frames[0] for frames in detect_clips(np.asarray(images)[:, None], scans=scans)]


def detect_clips(clips: Float[np.ndarray, "n frames h w 3"], *, scans: bool = False) -> list[list[dict]]:
    """Returns the objects found in each frame of each clip, in the form that `detectors` describes. The objects are
    shapes, or handwritten digits if `scans` is true."""
    clips, detector = np.asarray(clips), digits if scans else shapes
    images = clips.reshape(-1, *clips.shape[2:])
    blobs, best, score = detector.find(images)
    fine = _boxes_of_scans(blobs, images) if scans else _boxes_of_shapes(blobs, best, images)
    known = detector.CLASSES, detector.VOCABULARY.colors
    found = collect(len(images), blobs, best, score, *known, detector.SMALLEST_SCORE, boxes=fine)
    frames = clips.shape[1]
    return [found[i : i + frames] for i in range(0, len(found), frames)]


def _boxes_of_shapes(blobs, best, images):
    area, fall = np.array(shapes.moments(images.shape[1] // 2))[best].T
    radius = np.sqrt(blobs.area / area)
    centre = blobs.centroid - np.stack([np.zeros_like(fall), fall * radius], axis=1)
    half = HALVES[best] * radius[:, None]
    return np.concatenate([centre - half, centre + half], axis=1)


def _boxes_of_scans(blobs, images):
    half = drawn_side(images.shape[1] // 2) / 2
    return np.concatenate([blobs.centroid - half, blobs.centroid + half], axis=1)
