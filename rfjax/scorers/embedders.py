"""Makes the functions that compute features of image files. Each transforms Pillow images, then applies a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from rfjax.scorers import images
from rfjax.scorers.clip import Clip
from rfjax.scorers.inception import Loaded

Embedder = Callable[[Sequence[Path]], Float32[np.ndarray, "n d"]]

# The embeddings are not normalised; `distances` makes CMMD's unit vectors.
CLIP_TRANSFORMS = {"fid-clip": images.clip_transform, "cmmd": images.cmmd_transform}


def clip(model: Clip, kind: str) -> Embedder:
    """Returns the function that computes CLIP's projected embeddings.

    `kind`, "fid-clip" or "cmmd", decides how images are resized.
    """
    transform = CLIP_TRANSFORMS[kind]
    return _embedder(lambda image: transform(image, model.size), model.embed_images)


def inception(model: Loaded) -> Embedder:
    """Returns the function that computes the features of FID's Inception."""
    return _embedder(images.inception_transform, model.embed_images)


def _embedder(transform, network):
    def embed(paths):
        inputs = torch.stack([transform(images.read(path)) for path in paths])
        return network(inputs).cpu().numpy().astype(np.float32)

    return embed
