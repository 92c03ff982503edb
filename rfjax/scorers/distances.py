"""Computes distances between two sets of images or clips, from their features. The distances of images are FID, on
Inception's or CLIP's features, and CMMD. Those of clips are FVD, and JEDi's distance on V-JEPA 2's features.

`rfjax.evaluation.frechet` computes the Frechet distance from means and covariances (divisor n - 1) in float64.
No torch here: the caller provides the network.
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
from rfjax.scorers.folder_features import Features, Listed, list_images
from rfjax.scorers.polynomial_mmd import polynomial_mmd

# metric -> the model with which the metric is defined, under the name that files of features give it
MODELS = {
    "fid-inception": "inception-2015-12-05",
    "fid-clip": "ViT-L/14",
    "cmmd": "ViT-L/14@336",
    "fvd": "i3d-kinetics-400",
    "mmd-vjepa2": "vjepa2-vitl-fpc16-256-ssv2",
}
# metric -> function that computes its distance from two arrays of features, [n, d] and [m, d]. The other metrics are
# Frechet distances, computed from means and covariances.
OF_FEATURES: dict[str, Callable] = {
    "cmmd": lambda a, b: cmmd(folder_features.unit(a), folder_features.unit(b)),
    "mmd-vjepa2": polynomial_mmd,
}
OF_CLIPS = ("fvd", "mmd-vjepa2")


class Distance(NamedTuple):
    """A distance between two sets of images or clips, with the features of both sets."""

    kind: str
    value: float
    images: Features
    reference: Features
    model: str  # the model that made the features; "" if no file names it

    @property
    def standard(self) -> bool:
        """Whether the metric's own model made the features, from images resized as the metric wants; also true if no
        file names a model. `rfjax score` names the metric first, then the model."""
        words = self.model.split()
        return not words or (MODELS[self.kind] in words and words[0] not in MODELS.keys() - {self.kind})

    @property
    def singular(self) -> bool:
        """Whether the images are too few for a covariance of full rank."""
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
    list_items: Callable[[Path], Listed] = list_images,
) -> Distance:
    """Computes the distance between `folder` and `reference`, each a folder of images or clips, or a file of features.

    `embed` computes the features of a folder's images or clips, and `model` names its network. Neither is needed if
    both sets are files of features. Features of folders are stored under `out`. Raises `ConfigError` for sets that
    cannot be compared.
    """

    def features(path, place, model):
        if not Path(path).is_dir():
            return folder_features.from_file(path, model)
        how = {"name": kind, "batch_size": batch_size, "list_items": list_items}
        return folder_features.of_folder(path, Path(out) / place, model, embed, **how)

    real = features(reference, "reference", model)
    found = features(folder, "clips" if kind in OF_CLIPS else "images", model or real.model)
    folder_features.check_alike(found, real)
    if found.n is None:
        raise ConfigError(
            f"{folder} does not say of how many images it is, and the distance depends on the number; give the "
            "features of the images"
        )
    made_by = model or found.model or real.model
    if kind in OF_FEATURES:
        if real.values is None:
            raise ConfigError(
                f"{reference} has only the mean and covariance of the features; give {kind} the features themselves, "
                "or their folder"
            )
        value = OF_FEATURES[kind](found.values, real.values)
    else:
        value = float(frechet_distance(found.as_gaussian(), real.as_gaussian()))
    return Distance(kind, value, found, real, made_by)
