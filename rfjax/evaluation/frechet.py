"""The Frechet distance between two sets of images, each described by a Gaussian of its features.

    d = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)

(Dowson & Landau 1982; the squared 2-Wasserstein distance of the Gaussians.) The square roots of the symmetric matrices
are computed from their eigenvalues. So no number is complex, and a covariance may be singular, as it is if a model
always draws the same picture. No JAX here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from rfjax.data.corpus import Corpus
from rfjax.data.geneval_names import TASKS
from rfjax.errors import ConfigError
from rfjax.evaluation import image_features

REFERENCE_IMAGES = 4096  # the first images of the validation split
RENDERED_AT_ONCE = 1024


class Moments(NamedTuple):
    """The mean and covariance of a Gaussian, or of several along leading axes."""

    mean: Float[np.ndarray, "*sets d"]
    covariance: Float[np.ndarray, "*sets d d"]


def moments(values: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"] | None = None) -> Moments:
    """Computes the mean and the covariance of the rows of `values`, weighted by `weights` if given. The covariance has
    the divisor n - 1. Only the ratios of the weights matter."""
    weights = np.ones(len(values)) if weights is None else weights
    shares = weights / weights.sum()
    mean = shares @ values
    centred = values - mean
    return Moments(mean, (centred.T * shares) @ centred * len(values) / (len(values) - 1))


def frechet_distance(a: Moments, b: Moments) -> Float[np.ndarray, "*sets"] | np.floating:
    """Computes the Fréchet distance between `a` and `b`, in the square of the features' unit. The distance of equal
    Gaussians is 0.

    `b` may hold several Gaussians along leading axes; the result then has these axes, too.
    """
    root = _symmetric_root(a.covariance)
    product = root @ b.covariance @ root
    # Up to rounding, the product is symmetric and has no negative eigenvalue.
    eigenvalues = np.linalg.eigvalsh((product + np.swapaxes(product, -1, -2)) / 2)
    overlap = np.sqrt(np.clip(eigenvalues, 0.0, None)).sum(axis=-1)
    traces = np.trace(a.covariance) + np.trace(b.covariance, axis1=-2, axis2=-1)
    return np.maximum(np.square(a.mean - b.mean).sum(axis=-1) + traces - 2.0 * overlap, 0.0)


def _symmetric_root(matrix):
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


@dataclass(frozen=True, eq=False)
class Reference:
    """The Gaussian (mean and covariance) of the features of a corpus's real images, with which samples are compared."""

    moments: Moments
    split: str
    n: int
    sha1: str  # of the images' pixels and weights

    def to_json(self) -> dict:
        return {"corpus_split": self.split, "n": self.n, "sha1": self.sha1}


_references: dict[tuple, Reference] = {}


def reference_of(corpus: Corpus, tasks: Sequence[str], n: int = REFERENCE_IMAGES) -> Reference:
    """Returns the Gaussian of the features of the first `n` validation images. A process computes it once for each
    corpus, `n` and shares of the tasks.

    `tasks` are the tasks of the samples' prompts, one task for each sample. The tasks' shares in the corpus differ
    from those in the prompts. So the images of a task are weighted by the share of its prompts; otherwise a model would
    be far from the reference just because it follows its prompts. Raises `ConfigError` if a task has prompts but no
    image among the `n`.
    """
    shares = tuple(round(tasks.count(task) / len(tasks), 12) for task in TASKS)
    key = (corpus.fingerprint, shares, n)
    if key not in _references:
        _references[key] = _reference(corpus, np.array(shares), n)
    return _references[key]


def _reference(corpus, shares, n):
    ids = np.arange(n)
    task_of = corpus.scenes(ids, "validation")[0].task
    counts = np.bincount(task_of, minlength=len(TASKS))
    lacking = [task for task, share, count in zip(TASKS, shares, counts, strict=True) if share and not count]
    if lacking:
        raise ConfigError(f"the first {n} validation images of {corpus.name} have no task {lacking[0]}; take more")
    weights = (shares / np.maximum(counts, 1))[task_of]
    digest, found = hashlib.sha1(), []
    for start in range(0, n, RENDERED_AT_ONCE):
        latents = corpus.examples(ids[start : start + RENDERED_AT_ONCE], "validation").latents
        images = as_uint8(corpus.to_images(latents))
        digest.update(images.tobytes())
        found.append(image_features.features(images))
    digest.update(np.ascontiguousarray(weights, "<f8").tobytes())
    return Reference(moments(np.concatenate(found), weights), "validation", n, digest.hexdigest())


def as_uint8(images: np.ndarray) -> UInt8[np.ndarray, "n h w 3"]:
    """Converts pixels in [0, 1] to integers from 0 to 255; returns uint8 pixels as they are."""
    if images.dtype == np.uint8:
        return images
    return np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
