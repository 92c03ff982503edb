"""Frozen models without PyTorch: features hashed from captions, latents that are means of pixels, captions that
name pixels."""

import hashlib

import numpy as np

from rfjax.data import hashing
from rfjax.data.prepared.manifest import StoredEncoder

ENCODERS = (
    StoredEncoder("clip_l", "clip", 5, 6, 4),
    StoredEncoder("clip_g", "clip", 5, 8, 3),
    StoredEncoder("t5", "t5", 7, 20, 0),
)


class StandIns:
    """What `rfjax.data.prepared.frozen.load` gives, with numbers that a test can compute itself."""

    encoders, latent_channels, reduction, shift, scale, time_reduction = ENCODERS, 3, 8, 0.25, 2.0, 1

    def __init__(self, before=lambda: None):
        self._before = before  # called before each batch of images
        self.facts = {
            name: {"class": "stand-in", "sha256": name * 8, "files": {}} for name in ("vae", "clip_l", "clip_g", "t5")
        }

    def latents(self, images):
        self._before()
        *n, height, width = images.shape[:-1]
        return images.reshape(*n, height // 8, 8, width // 8, 8, 3).mean((-4, -2), dtype=np.float32) / 255

    def text(self, captions):
        return features(captions)

    def token_counts(self, captions):
        return {encoder.name: [2 + len(caption.split()) for caption in captions] for encoder in self.encoders}


def features(captions):
    found = {}
    for encoder in ENCODERS:
        keys = np.array([hashing.key(encoder.name, caption) for caption in captions], np.uint64)
        shape = encoder.tokens, encoder.channels
        found[f"{encoder.name}.context"] = (
            hashing.normals(1, keys, shape[0] * shape[1]).reshape(-1, *shape).astype(np.float32)
        )
        if encoder.pooled:
            found[f"{encoder.name}.pooled"] = hashing.normals(2, keys, encoder.pooled).astype(np.float32)
    return found


def prepare(monkeypatch, *words, models=None):
    """`rfjax prepare` with the stand-ins; the exit status."""
    from rfjax.cli import main
    from rfjax.data.prepared import frozen

    monkeypatch.setattr(frozen, "load", lambda *_, **__: models or StandIns())
    given = {str(word).split("=")[0] for word in words}
    common = {"--models": "none", "--size": 32, "--batch-size": 4}
    if "--buckets" in given:
        del common["--size"]
    return main(
        ["prepare", *map(str, words), *(f"{name}={value}" for name, value in common.items() if name not in given)]
    )


def data_config(folder, **prepared):
    from rfjax.config import DataConfig, PreparedConfig

    return DataConfig(
        corpus="prepared",
        image_size=4,
        channels=3,
        context_tokens=12,
        context_size=20,
        pooled_size=7,
        prepared=PreparedConfig(path=str(folder), **prepared),
    )


def said_of(image):
    """What the stand-in says of an image: a function of its pixels alone."""
    return f"a picture of {hashlib.sha256(image.tobytes()).hexdigest()[:8]}, {image.width} wide"


class Writer:
    """What `captioner.load` gives; `before` is called before each batch."""

    facts = {"class": "stand-in", "sha256": "abc", "files": {"model.safetensors": "abc"}}

    def __init__(self, before=lambda: None, say=lambda image: (said_of(image),)):
        self._before, self._say = before, say

    def captions(self, images, seed):
        self._before()
        return [self._say(*item) for item in images]


def recaption(patch, *words, model=None):
    """`rfjax recaption` with the stand-in; the exit status."""
    from rfjax.cli import main
    from rfjax.prepare import captioner

    patch.setattr(captioner, "load", lambda *_, **__: model or Writer())
    return main(["recaption", "--batch-size=4", "--model=none", *map(str, words)])
