"""What images are compared by: a table of descriptors, and what all of them give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped, UInt8

from rfjax.duplicates import phash
from rfjax.duplicates.onnx_model import OnnxModel

PHASH_THRESHOLD = 0.9  # analysis/results/near_duplicates: the lowest there with a precision of 99 %
MODEL_THRESHOLD = (
    0.75  # where SSCD's authors find 90 % precision on DISC2021 (sscd_disc_mixup); another model has another
)


@runtime_checkable
class Descriptor(Protocol):
    """Images to rows of `views`: the first is the image's, which others look for; the rest only look for others."""

    side: int  # pixels of the squares that it sees
    facts: dict  # what decides the numbers, for JSON
    threshold: float  # default similarity from which on two images are duplicates

    def describe(self, pixels: UInt8[np.ndarray, "n side side 3"]) -> Shaped[np.ndarray, "n views size"]:
        """Packed bits (uint8) or vectors of unit length (float32). A row of zeros or NaN is not compared."""


@dataclass(frozen=True)
class Phash:
    side: int = phash.SIDE
    threshold: float = PHASH_THRESHOLD

    @property
    def facts(self) -> dict:
        return {"phash": 1, "crops": list(phash.CROPS), "level": phash.LEVEL, "bits": phash.BITS}

    def describe(self, pixels: UInt8[np.ndarray, "n 128 128 3"]) -> UInt8[np.ndarray, "n views 32"]:
        return np.stack([phash.views(one) for one in pixels])


class Model(OnnxModel):
    threshold = MODEL_THRESHOLD


def useless(rows: Shaped[np.ndarray, "n size"]) -> dict[int, str]:
    """Why a row cannot be compared, by its number."""
    if rows.dtype == np.uint8:
        return {int(i): "too flat to hash" for i in np.flatnonzero(~rows.any(axis=1))}
    found = {int(i): "descriptor is zero" for i in np.flatnonzero(~rows.any(axis=1))}
    return found | {int(i): "descriptor is not finite" for i in np.flatnonzero(~np.isfinite(rows).all(axis=1))}
