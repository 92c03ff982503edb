"""Published sizes of networks, as tables. No JAX here: a config file may read them."""

from __future__ import annotations

from typing import NamedTuple

from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes


class DiTSize(NamedTuple):
    depth: int
    hidden: int
    heads: int


# Peebles and Xie 2023, table 1. Each size comes with patches of 2, 4 and 8: "DiT-XL/2".
DIT_SIZES: dict[str, DiTSize] = {
    "S": DiTSize(12, 384, 6),
    "B": DiTSize(12, 768, 12),
    "L": DiTSize(24, 1024, 16),
    "XL": DiTSize(28, 1152, 16),
}
DIT_PATCHES = (2, 4, 8)

# The shapes of DiT's training data: latents of 256x256 images, ImageNet's 1,000 classes as `pooled`, and no text.
IMAGENET = BatchShapes(latents=(32, 32, 4), context=(1, 1), pooled=1000, encoders=())


def dit_class(name: str) -> ModelConfig:
    """Returns the config of the original DiT with a published name, such as `XL/2`, for latents of 32x32.

    Raises `KeyError` for an unknown size or patch.
    """
    size, patch = name.split("/")
    depth, hidden, heads = DIT_SIZES[size]
    if int(patch) not in DIT_PATCHES:
        raise KeyError(name)
    tokens = IMAGENET.latents[1] // int(patch)
    return ModelConfig(
        backbone="dit_class",
        depth=depth,
        hidden=hidden,
        head_size=hidden // heads,
        patch_size=int(patch),
        position_grid=tokens,
        position_tokens=tokens,
        position_span=float(tokens),
    )
