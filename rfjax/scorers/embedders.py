"""What gives the features of image files: a transform of Pillow images and a network."""

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

# CLIP's projected embeddings, not normalised (CMMD's are made unit vectors where they are compared).
CLIP_TRANSFORMS = {"fid-clip": images.clip_transform, "cmmd": images.cmmd_transform}


def clip(model: Clip, kind: str) -> Embedder:
    """`kind` is "fid-clip" or "cmmd", which differ in how an image is brought to the network's size."""
    transform = CLIP_TRANSFORMS[kind]
    return _embedder(lambda image: transform(image, model.size), model.embed_images)


def inception(model: Loaded) -> Embedder:
    return _embedder(images.inception_transform, model.embed_images)


def _embedder(transform, network):
    def embed(paths):
        inputs = torch.stack([transform(images.read(path)) for path in paths])
        return network(inputs).cpu().numpy().astype(np.float32)

    return embed
