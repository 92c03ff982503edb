"""Counts the tokens that a run has seen, the tokens per parameter, and how often it saw each training image.

Papers count tokens differently: image tokens alone (Abra 2608.17286), or image and text tokens (Liang et al.
2410.08184, where the text is part of the sequence). So there is a column of tokens per parameter for each count. Text
tokens are those of the sequence, padding included. A caption's tokens count once for an image or clip, also with
factorised attention over frames, whose network processes a copy of the caption for each temporal position; the FLOPs
count every copy (`models.flops.sequence_tokens`). A column is empty if run.json and config.json do not determine its
number. All columns are empty for a run that started from the checkpoint of a parent run, because the parent's images
may have had other sizes or come from another corpus.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rfjax.config import ModelConfig
from rfjax.data.batch import latent_shape
from rfjax.data.buckets import CYCLE, Schedule
from rfjax.limits import BACKBONES

COLUMNS = ("image_tokens", "image_tokens_per_param", "tokens_per_param", "times_seen")
SQUARE = ("shapes", "digits", "random", "motion")  # corpora whose latents are squares of config.data.image_size


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A run's sizes in tokens, from run.json and config.json. A value is None if these files do not determine it."""

    image: tuple[int, ...] | None = None  # tokens per image, for each latent shape
    schedule: Schedule | None = None  # which latent shape each step takes; None if there is only one, or if unknown
    text: int | None = None  # text tokens per caption in the sequence
    training_images: int | None = None  # size of the corpus; None also if the corpus draws its images
    params: int | None = None
    batch_sizes: tuple[int, ...] | None = None  # images in a batch, for each latent shape

    def seen(self, step: int, images: int | float | None) -> dict[str, int | float | None]:
        """Returns the values of `COLUMNS` at a checkpoint of a run that started from scratch.

        `images` is the number of training images up to the checkpoint, by its record. If `step` steps take another
        number of images, all values are None.
        """
        taken = (step,) if self.schedule is None else self.schedule.taken(step)
        if self.batch_sizes is None or images != _products(taken, self.batch_sizes):
            return dict.fromkeys(COLUMNS)
        seen = {"times_seen": images / self.training_images if self.training_images else None}
        if self.image is not None:
            tokens = _products(self.image, taken, self.batch_sizes)
            seen["image_tokens"] = tokens
            if self.params:
                text = None if self.text is None else self.text * images
                seen["image_tokens_per_param"] = tokens / self.params
                seen["tokens_per_param"] = None if text is None else (tokens + text) / self.params
        return dict.fromkeys(COLUMNS) | seen


UNKNOWN = Tokens()


def read_tokens(run: Mapping) -> Tokens:
    """Reads a run's sizes in tokens. `run` is the content of run.json; its key `config` holds the content of
    config.json, if the run has that file."""
    if run.get("parent") is not None:
        return UNKNOWN
    config, buckets = run.get("config") or {}, run.get("buckets")
    network = BACKBONES.get((config.get("model") or {}).get("backbone"))
    image = run.get("image_tokens")
    image = tuple(image) if image else _tokens_by_config(config, buckets)
    schedule = _schedule(buckets, run.get("seed"))
    shapes = 1 if schedule is None else len(schedule.counts)
    if image is not None and (len(image) != shapes or min(image) < 1 or (buckets and schedule is None)):
        image = None
    text = (config.get("data") or {}).get("context_tokens") if network and network.text_in_sequence else None
    facts = {name: run.get(name) for name in ("training_images", "params")}
    return Tokens(image=image, schedule=schedule, text=text, batch_sizes=_batch_sizes(run, schedule), **facts)


def _batch_sizes(run, schedule):
    """Returns the number of images in a batch of each latent shape; None if one of them is unknown."""
    all_have = run.get("batch_size")
    sizes = (all_have,) if schedule is None else tuple(each.get("batch_size", all_have) for each in run["buckets"])
    return None if None in sizes else sizes


def _products(*columns):
    """Multiplies the columns element by element, and returns the sum of the products."""
    return sum(map(math.prod, zip(*columns, strict=True)))


def _schedule(buckets, seed):
    """Returns the `Schedule`, which gives the bucket of each step of a run; None if the run has no aspect buckets, or
    their shares are unknown."""
    quotas = tuple(bucket.get("steps_of_cycle", -1) for bucket in buckets or ())
    told = quotas and min(quotas) >= 0 and sum(quotas) == CYCLE and seed is not None
    return Schedule(quotas, seed) if told else None  # steps of a cycle serve as the buckets' shares


def _tokens_by_config(config, buckets):
    """Computes the tokens per image of each latent shape from the config, for a run.json that lacks them. Returns None
    if a shape is unknown."""
    model, data = config.get("model") or {}, config.get("data") or {}
    patch, side = (model.get("temporal_patch_size", 1), model.get("patch_size", 0)), data.get("image_size", 0)
    if min(patch) < 1:
        return None
    if buckets:
        sizes = [bucket.get("latent_size") for bucket in buckets]
    elif data.get("corpus") in SQUARE:
        sizes = [[data.get("frames", 1), side, side]]
    else:
        return None
    if None in sizes or not {len(size) for size in sizes} <= {2, 3}:
        return None
    network = ModelConfig(temporal_patch_size=patch[0], patch_size=patch[1])
    return tuple(math.prod(network.token_grid(latent_shape([*size, 1]))) for size in sizes)
