"""From images to coloured blobs on a grey background: what both detectors start with.

A pixel is taken to be background + alpha (colour - background), which anti-aliased drawing makes
exact. Blobs are connected pixels of large enough alpha; each has one colour, the palette entry
that explains its pixels best, and its alpha is then a picture of the object free of colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Int

MIN_PIXELS = 4
# What may be background: nearly grey, and not bright. An image with a smaller share of such
# pixels holds nothing; the fullest scene leaves a third.
GREY_SPREAD = 0.15
GREY_RANGE = (0.02, 0.5)
GREY_SHARE = 0.2


@dataclass(frozen=True)
class Blobs:
    """Blobs of a batch of images, with a leading blob axis `m`."""

    image: Int[np.ndarray, "m"]  # which image of the batch
    color: Int[np.ndarray, "m"]  # palette index
    box: Float[np.ndarray, "m 4"]  # x1, y1, x2, y2 of the mask, in pixels
    area: Float[np.ndarray, "m"]  # sum of alpha
    centroid: Float[np.ndarray, "m 2"]  # x, y in pixels
    residual: Float[np.ndarray, "m"]  # colour variation the palette entry leaves, per unit of area
    window: Float[np.ndarray, "m side side"]  # alpha around the centroid's pixel, 0 off the blob
    origin: Int[np.ndarray, "m 2"]  # x, y of the window's first pixel


def find_blobs(
    images: Float[np.ndarray, "n h w 3"], palette: Float[np.ndarray, "colors 3"], *, side: int, mask_alpha: float
) -> Blobs:
    """All blobs of at least `MIN_PIXELS` pixels of alpha above `mask_alpha`; windows are `side` pixels wide."""
    n, height, width, _ = images.shape
    images = np.asarray(images, np.float64)
    background, usable = estimate_background(images)
    difference = (images - background[:, None, None, :]).reshape(n, height * width, 3)
    directions = palette[None] - background[:, None, :]
    lengths = np.sum(directions**2, axis=-1)
    alpha = np.clip(difference @ directions.transpose(0, 2, 1) / lengths[:, None, :], 0.0, 1.0)
    # |difference - alpha direction|^2, expanded so that no [n, pixels, colors, 3] array is made
    residual = np.sum(difference**2, axis=-1)[..., None] - 2.0 * alpha * (difference @ directions.transpose(0, 2, 1))
    residual = (residual + alpha**2 * lengths[:, None, :]) / lengths[:, None, :]

    nearest = np.argmin(residual, axis=-1)
    strength = np.take_along_axis(alpha, nearest[..., None], axis=-1)[..., 0].reshape(n, height, width)
    mask = (strength > mask_alpha) & usable[:, None, None]
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = True
    labels, count = scipy.ndimage.label(mask, in_plane)
    if count == 0:
        return _none(side)
    # A blob's anti-aliased rim: the unlabelled pixels next to it.
    grown = np.where(labels > 0, labels, scipy.ndimage.maximum_filter(labels, size=(1, 3, 3)))
    flat = grown.reshape(-1)

    def per_blob(values):
        return np.bincount(flat, values.reshape(-1), minlength=count + 1)[1:]

    error = np.stack([per_blob(residual[..., k]) for k in range(len(palette))], axis=1)
    color = np.argmin(error, axis=1)
    blob_color = np.concatenate([[0], color])[grown]
    own = np.take_along_axis(alpha, blob_color.reshape(n, height * width, 1), axis=-1)[..., 0].reshape(n, height, width)
    own = np.where(grown > 0, own, 0.0)
    area = per_blob(own)
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    centroid = np.stack([per_blob(own * x), per_blob(own * y)], axis=1) / np.maximum(area, 1e-9)[:, None]

    pixels = np.bincount(labels.reshape(-1), minlength=count + 1)[1:]
    keep = np.flatnonzero(pixels >= MIN_PIXELS)
    slices = scipy.ndimage.find_objects(labels)
    found = [slices[i] for i in keep]
    box = np.array([[s[2].start, s[1].start, s[2].stop, s[1].stop] for s in found], float).reshape(-1, 4)
    image = np.array([s[0].start for s in found], int)

    origin = np.floor(centroid[keep]).astype(int) - side // 2
    padded = np.pad(own, ((0, 0), (side, side), (side, side)))
    padded_labels = np.pad(grown, ((0, 0), (side, side), (side, side)))
    rows = origin[:, 1, None, None] + side + np.arange(side)[None, :, None]
    columns = origin[:, 0, None, None] + side + np.arange(side)[None, None, :]
    index = (image[:, None, None], rows, columns)
    window = np.where(padded_labels[index] == keep[:, None, None] + 1, padded[index], 0.0)
    return Blobs(
        image=image,
        color=color[keep],
        box=box,
        area=area[keep],
        centroid=centroid[keep],
        residual=error[keep, color[keep]] / np.maximum(area[keep], 1e-9),
        window=window,
        origin=origin,
    )


def estimate_background(images: Float[np.ndarray, "n h w 3"]):
    """The median colour of the dark grey pixels [n, 3], and whether there are enough of them [n]."""
    pixels = images.reshape(len(images), images.shape[1] * images.shape[2], 3)
    level = pixels.mean(axis=-1)
    grey = (np.ptp(pixels, axis=-1) < GREY_SPREAD) & (GREY_RANGE[0] <= level) & (level <= GREY_RANGE[1])
    count = grey.sum(axis=1)
    ordered = np.sort(np.where(grey[..., None], pixels, np.inf), axis=1)
    middle = ordered[np.arange(len(images)), count // 2 - (count > 0) * (count % 2 == 0)]
    usable = count >= GREY_SHARE * pixels.shape[1]
    return np.where(usable[:, None], middle, 0.0), usable


def _none(side):
    return Blobs(
        image=np.zeros(0, int),
        color=np.zeros(0, int),
        box=np.zeros((0, 4)),
        area=np.zeros(0),
        centroid=np.zeros((0, 2)),
        residual=np.zeros(0),
        window=np.zeros((0, side, side)),
        origin=np.zeros((0, 2), int),
    )


def collect(
    n: int, blobs: Blobs, best: Int[np.ndarray, "m"], score: Float[np.ndarray, "m"], classes, colors, smallest: float
) -> list[dict]:
    """One dict per image of the detections that score at least `smallest`."""
    results = [{"detections": {}, "colors": {}} for _ in range(n)]
    for i in np.flatnonzero(score >= smallest).tolist():
        result, name = results[blobs.image[i]], classes[best[i]]
        result["detections"].setdefault(name, []).append([*blobs.box[i].tolist(), float(score[i])])
        result["colors"].setdefault(name, []).append(colors[blobs.color[i]])
    return results
