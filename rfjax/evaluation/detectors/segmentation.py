"""Finds coloured blobs on a grey background: the first stage of the detectors of `shapes` and `digits`.

A pixel is background + alpha (colour - background), which is exact for anti-aliased drawings. A blob is a set of
connected pixels of large enough alpha. Its colour is the palette entry that explains its pixels best, and its alpha is
then a picture of the object without colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Int

MIN_PIXELS = 4
_EIGHT_NEIGHBOURS = np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))], bool)  # within an image
# Background pixels are nearly grey and not bright. If their share is below GREY_SHARE, the image is taken to hold no
# object. In the fullest scene their share is a third.
GREY_SPREAD = 0.15
GREY_RANGE = (0.02, 0.5)
GREY_SHARE = 0.2


@dataclass(frozen=True)
class Blobs:
    """The coloured blobs that were found in a batch of images, as arrays with a leading axis `m` of blobs."""

    image: Int[np.ndarray, " m"]  # which image of the batch
    color: Int[np.ndarray, " m"]  # palette index
    box: Float[np.ndarray, "m 4"]  # x1, y1, x2, y2 of the mask, in pixels
    area: Float[np.ndarray, " m"]  # sum of alpha
    centroid: Float[np.ndarray, "m 2"]  # x, y in pixels
    residual: Float[np.ndarray, " m"]  # colour variation that the palette entry does not explain, per unit of area
    window: Float[np.ndarray, "m side side"]  # alpha around the centroid's pixel, 0 outside the blob
    origin: Int[np.ndarray, "m 2"]  # x, y of the window's first pixel


def find_blobs(
    images: Float[np.ndarray, "n h w 3"], palette: Float[np.ndarray, "colors 3"], *, side: int, mask_alpha: float
) -> Blobs:
    """Finds the coloured blobs in images: connected pixels of alpha above `mask_alpha`, at least `MIN_PIXELS` of them.
    Each blob's alpha is cut out in a window of `side` x `side` pixels."""
    images = np.asarray(images, np.float64)
    background, usable = estimate_background(images)
    alpha, residual = unmix(images, palette, background)
    strength = _chosen(alpha, np.argmin(residual, axis=-1))
    mask = (strength > mask_alpha) & usable[:, None, None]
    labels, count = scipy.ndimage.label(mask, _EIGHT_NEIGHBOURS)
    # Adds the unlabelled pixels next to a blob, its anti-aliased rim.
    grown = np.where(labels > 0, labels, scipy.ndimage.maximum_filter(labels, size=(1, 3, 3)))

    def total(values):
        return np.bincount(grown.ravel(), values.ravel(), minlength=count + 1)

    error = np.stack([total(residual[..., k]) for k in range(len(palette))], axis=1)
    color = np.argmin(error, axis=1)
    own = np.where(grown > 0, _chosen(alpha, color[grown]), 0.0)
    area = np.maximum(total(own), 1e-9)
    y, x = np.meshgrid(*(np.arange(size) + 0.5 for size in images.shape[1:3]), indexing="ij")
    centroid = np.stack([total(own * x), total(own * y)], axis=1) / area[:, None]

    pixels = np.bincount(labels.ravel(), minlength=count + 1)
    keep = 1 + np.flatnonzero(pixels[1:] >= MIN_PIXELS)
    slices = scipy.ndimage.find_objects(labels) if count else []
    image = np.array([slices[label - 1][0].start for label in keep], int)
    corners = [(s[2].start, s[1].start, s[2].stop, s[1].stop) for s in (slices[label - 1] for label in keep)]
    origin = np.floor(centroid[keep]).astype(int) - side // 2
    return Blobs(
        image=image,
        color=color[keep],
        box=np.array(corners, float).reshape(-1, 4),
        area=area[keep],
        centroid=centroid[keep],
        residual=error[keep, color[keep]] / area[keep],
        window=_windows(own, grown, image, keep, origin, side),
        origin=origin,
    )


def unmix(
    images: Float[np.ndarray, "n h w 3"], palette: Float[np.ndarray, "colors 3"], background: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "n h w colors"], Float[np.ndarray, "n h w colors"]]:
    """Returns (alpha, residual) of each pixel and colour: the colour's share in the pixel, and the squared difference
    that remains.

    Alpha is the least-squares value within [0, 1]. The residual is in units of the squared distance between colour
    and background.
    """
    difference = images - background[:, None, None, :]
    directions = palette[None] - background[:, None, :]
    lengths = np.sum(directions**2, axis=-1)[:, None, None, :]
    along = np.einsum("nhwc,nkc->nhwk", difference, directions, optimize=True) / lengths
    alpha = np.clip(along, 0.0, 1.0)
    # |difference - alpha direction|^2, expanded so that no [n, h, w, colors, 3] array is made
    residual = np.sum(difference**2, axis=-1)[..., None] / lengths - 2.0 * alpha * along + alpha**2
    return alpha, residual


def _chosen(alpha, color):
    return np.take_along_axis(alpha, color[..., None], axis=-1)[..., 0]


def _windows(own, labels, image, keep, origin, side):
    """Cuts out each blob's alpha in a square window of the blob's image, `side` pixels wide from `origin` on. The
    window may reach beyond the image's edge."""
    margin = ((0, 0), (side, side), (side, side))
    rows = origin[:, 1, None, None] + side + np.arange(side)[None, :, None]
    columns = origin[:, 0, None, None] + side + np.arange(side)[None, None, :]
    index = (image[:, None, None], rows, columns)
    mine = np.pad(labels, margin)[index] == keep[:, None, None]
    return np.where(mine, np.pad(own, margin)[index], 0.0)


def estimate_background(images: Float[np.ndarray, "n h w 3"]):
    """Returns two arrays: [n, 3], the median colour of each image's grey pixels (`GREY_RANGE`), or 0 if their share is
    below `GREY_SHARE`; and [n], whether the share is large enough."""
    pixels = images.reshape(len(images), images.shape[1] * images.shape[2], 3)
    level = pixels.mean(axis=-1)
    grey = (np.ptp(pixels, axis=-1) < GREY_SPREAD) & (GREY_RANGE[0] <= level) & (level <= GREY_RANGE[1])
    count = grey.sum(axis=1)
    ordered = np.sort(np.where(grey[..., None], pixels, np.inf), axis=1)
    middle = ordered[np.arange(len(images)), count // 2 - (count > 0) * (count % 2 == 0)]
    usable = count >= GREY_SHARE * pixels.shape[1]
    return np.where(usable[:, None], middle, 0.0), usable


def collect(
    n: int,
    blobs: Blobs,
    best: Int[np.ndarray, " m"],
    score: Float[np.ndarray, " m"],
    classes,
    colors,
    smallest: float,
    boxes: Float[np.ndarray, "m 4"] | None = None,
) -> list[dict]:
    """Sorts blobs by image. Returns for each image a dict in the form that `detectors` describes, with the blobs that
    score at least `smallest`. `boxes` replace the blobs' own boxes, which end at whole pixels."""
    boxes = blobs.box if boxes is None else boxes
    results = [{"detections": {}, "colors": {}} for _ in range(n)]
    for i in np.flatnonzero(score >= smallest).tolist():
        result, name = results[blobs.image[i]], classes[best[i]]
        result["detections"].setdefault(name, []).append([*boxes[i].tolist(), float(score[i])])
        result["colors"].setdefault(name, []).append(colors[blobs.color[i]])
    return results
