"""Descriptors, by which images are compared: their protocol, a perceptual hash, and models in ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped, UInt8

from rfjax.duplicates import phash
from rfjax.duplicates.onnx_model import OnnxModel

PHASH_THRESHOLD = 0.9  # the lowest threshold with a precision of 99 % in analysis/results/near_duplicates
MODEL_THRESHOLD = 0.75  # gives sscd_disc_mixup a precision of 90 % on DISC2021 (its authors); differs between models


@runtime_checkable
class Descriptor(Protocol):
    """Describes each image by one or more rows of numbers (views): the first row for the image itself, any others for
    its mirrored or cropped versions. Only first rows are in the search index; all rows are queries."""

    height: int  # of the images that the descriptor takes, in pixels
    width: int
    facts: dict  # everything that decides the descriptor's numbers, for JSON
    threshold: float  # default: images at least this similar are duplicates

    def describe(self, pixels: UInt8[np.ndarray, "n height width 3"]) -> Shaped[np.ndarray, "n views size"]:
        """Returns packed bits (uint8) or unit vectors (float32). A row of zeros or NaN is not compared."""


@dataclass(frozen=True)
class Phash:
    height: int = phash.SIDE
    width: int = phash.SIDE
    threshold: float = PHASH_THRESHOLD

    @property
    def facts(self) -> dict:
        return {"phash": 1, "crops": list(phash.CROPS), "level": phash.LEVEL, "bits": phash.BITS}

    def describe(self, pixels: UInt8[np.ndarray, "n 128 128 3"]) -> UInt8[np.ndarray, "n views 32"]:
        return np.stack([phash.views(image) for image in pixels])


class Model(OnnxModel):
    threshold = MODEL_THRESHOLD


def incomparable(rows: Shaped[np.ndarray, "n size"]) -> dict[int, str]:
    """Returns {row's index: reason} of the rows that cannot be compared."""
    empty = "too flat to hash" if rows.dtype == np.uint8 else "descriptor is zero"
    reasons = {empty: ~rows.any(axis=1), "descriptor is not finite": ~np.isfinite(rows).all(axis=1)}
    return {int(number): reason for reason, mask in reasons.items() for number in np.flatnonzero(mask)}
