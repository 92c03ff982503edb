"""Distances of a set of images from real ones, by features: FID on Inception's and on CLIP's, and CMMD.

The Frechet distance is `rfjax.evaluation.frechet`'s, of means and covariances (divisor n - 1) in float64.
No torch here: whoever calls brings the network.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rfjax.errors import ConfigError
from rfjax.evaluation.frechet import frechet_distance
from rfjax.scorers import folder_features
from rfjax.scorers.cmmd import cmmd
from rfjax.scorers.folder_features import Features

# The model that each metric's name stands for, as it is called in a description of features.
MODELS = {"fid-inception": "inception-2015-12-05", "fid-clip": "ViT-L/14", "cmmd": "ViT-L/14@336"}


class Distance(NamedTuple):
    kind: str
    value: float
    images: Features
    reference: Features
    model: str  # what the features are of; "" where no file says

    @property
    def standard(self) -> bool:
        """Whether the features are of the metric's own model, as far as is known."""
        return not self.model or MODELS[self.kind] in self.model.split()

    @property
    def singular(self) -> bool:
        """Whether there are too few images for a covariance of full rank."""
        return self.images.values is not None and self.images.n <= self.images.values.shape[1]


def measure(
    kind: str,
    folder: str | os.PathLike,
    reference: str | os.PathLike,
    out: str | os.PathLike,
    *,
    embed: Callable | None,
    model: str,
    batch_size: int,
) -> Distance:
    """The distance of `folder` from `reference`, each a folder of images or a file of features.

    `embed` gives features of image files, and `model` says what it is; neither is needed of files. Features are
    kept under `out`. Raises `ConfigError` on what cannot be compared.
    """
    sets = []
    for path, place in ((reference, "reference"), (folder, "images")):
        if Path(path).is_dir():
            sets.append(
                folder_features.of_folder(path, Path(out) / place, model, embed, name=kind, batch_size=batch_size)
            )
        else:
            sets.append(folder_features.from_file(path, model or (sets[0].model if sets else "")))
    real, found = sets
    folder_features.check_alike(found, real)
    if found.n is None:
        raise ConfigError(
            f"{folder} does not say of how many images it is, which a distance depends on; give their features"
        )
    made_by = model or found.model or real.model
    if kind == "cmmd":
        if real.values is None:
            raise ConfigError(
                f"CMMD needs features, and {reference} has only their mean and covariance; give the images, or their "
                "features"
            )
        value = cmmd(folder_features.unit(found.values), folder_features.unit(real.values))
    else:
        value = float(frechet_distance(found.as_gaussian(), real.as_gaussian()))
    return Distance(kind, value, found, real, made_by)
