"""Estimates, before any work, the disk space of a prepared corpus in each type that can store its features, and
counts its shards."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rfjax.data.prepared.manifest import StoredEncoder
from rfjax.data.prepared.manifest_facts import KINDS, SPLITS
from rfjax.data.prepared.records import pack
from rfjax.data.prepared.text_precision import to_stored
from rfjax.prepare.images import STRIP_FRAMES
from rfjax.prepare.options import TEXT_PRECISIONS
from rfjax.prepare.recipe import Recipe
from rfjax.prepare.sources import Source

FRAME = 140  # bytes that ArrayRecord adds to a record, measured
FILE = 98_304  # bytes that ArrayRecord adds to a file: the places of its records, and unused rests of 64 KiB blocks
A_CAPTION = "a" * 60  # a caption of the median length of CC12M's captions
A_THUMBNAIL = 2_000  # bytes of a preview in JPEG
MILLION = 1_000_000
IN_RECORDS = ("folder", "parquet", "tfds")  # kinds of sources whose sizes are numbers of images


def caption_bytes(encoders: Sequence[StoredEncoder], context: str, pooled: str) -> int:
    """Returns the bytes of a caption's record, with contexts of type `context` and pooled vectors of type `pooled`."""
    arrays = {}
    for encoder in encoders:
        zeros = np.zeros((encoder.tokens, encoder.channels), np.float32)
        arrays |= to_stored(f"{encoder.name}.context", zeros, context)
        if encoder.pooled:
            arrays[f"{encoder.name}.pooled"] = np.zeros(encoder.pooled, pooled)
    return len(pack(arrays, {"caption": A_CAPTION})) + FRAME


def image_bytes(recipe: Recipe, reduction: int, channels: int, time_reduction: int = 1) -> int:
    """Returns the bytes of the record of an image or clip in the first bucket, with its latent and its preview. A
    clip's preview is a strip of some of its frames."""
    height, width = recipe.buckets[0]
    frames, shown = (), 1
    if recipe.clips is not None:
        frames, shown = (1 + (recipe.clips.frames - 1) // time_reduction,), min(recipe.clips.frames, STRIP_FRAMES)
    latent = np.zeros((*frames, height // reduction, width // reduction, channels), recipe.precision)
    facts = {"key": "0" * 24, "width": 1000, "height": 1000, "original": [1000], "synthetic": []}
    return len(pack({"latents": latent, "thumbnail": np.zeros(shown * A_THUMBNAIL, np.uint8)}, facts)) + FRAME


def image_count(source: Source, recipe: Recipe) -> int | None:
    """Returns the number of a source's images, or the most clips that its files can give; None for tars, which are not
    read before the work."""
    most = 1 if recipe.clips is None else recipe.clips.most
    return most * int(sum(source.sizes)) if source.kind in IN_RECORDS else None


def storage_lines(
    source: Source,
    recipe: Recipe,
    encoders: Sequence[StoredEncoder],
    *,
    reduction: int,
    channels: int,
    time_reduction: int = 1,
    out: Path,
) -> list[str]:
    """Returns lines on the space that the corpus takes. They assume that each image or clip has one caption, that no
    caption occurs twice, that no image is dropped, and that each file gives as many clips as the recipe allows."""
    what, most = ("images", "") if recipe.clips is None else ("clips", "at most ")
    chosen = recipe.text_precision or recipe.precision
    features = {each: caption_bytes(encoders, each, recipe.pooled_precision) for each in TEXT_PRECISIONS}
    image = image_bytes(recipe, reduction, channels, time_reduction)
    choices = ", ".join(
        f"{_gigabytes(MILLION * size)} in {each}{' (chosen)' if each == chosen else ''}"
        for each, size in features.items()
    )
    latents = f"latents and previews of a million {what}: {_gigabytes(MILLION * image)}"
    lines = [f"features of a million captions: {choices}; {latents}"]
    count, shards = image_count(source, recipe), f"{len(source.sizes):,} shard{'s' * (len(source.sizes) != 1)}"
    if count is None:
        return [*lines, f"{shards}, one a tar; tars do not say how many {what} they have before they are read"]
    needed = count * (image + features[chosen]) + len(source.sizes) * len(SPLITS) * len(KINDS) * FILE
    free = shutil.disk_usage(next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())).free
    takes = f"{most}{count:,} {what} with a caption each: {_gigabytes(needed)} in {shards}"
    lines.append(f"{takes}; {_gigabytes(free)} are free at {out}")
    if needed > free:
        lines.append(f"the disk of {out} may be too small: give another --out, or --text-precision int8")
    return lines


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3g} GB" if size < 1e12 else f"{size / 1e9:,.0f} GB"
