"""Describes a part of a source: writes a file with its images' descriptors, completely or not at all."""

from __future__ import annotations

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from jaxtyping import Shaped, UInt8

from rfjax.data.prepared.records import pack, unpack
from rfjax.duplicates.descriptors import Descriptor
from rfjax.files import write_whole
from rfjax.prepare.judge import judge
from rfjax.prepare.part import LeftOut, Tell, map_in_order
from rfjax.prepare.recipe import Recipe
from rfjax.prepare.shard import AHEAD
from rfjax.prepare.sources import Drop, Record, Source

ANY = "a caption of every image"  # a column that every record gets; used as the caption if images need none
UNLISTABLE = "key with a tab or a line break"  # a file of --drop-keys cannot hold such a key


@dataclass(frozen=True)
class Described:
    """The images of a part, in order."""

    keys: tuple[str, ...]
    digests: UInt8[np.ndarray, "n 16"]  # hashes of the files' bytes
    views: Shaped[np.ndarray, "n views size"]
    left_out: tuple[tuple[str, str], ...]  # (key, reason) of images that are not compared


class _Facts(TypedDict):
    """What a part's file holds besides its arrays."""

    recipe_sha256: str
    keys: list[str]
    left_out: list[list[str]]


@dataclass(frozen=True)
class _Looked:
    """A decoded image to compare."""

    key: str
    pixels: UInt8[np.ndarray, "height width 3"]
    digest: bytes  # hash of the file's bytes
    done: float | int  # how much of the part has been read up to here


def read(path: Path, recipe_hash: str) -> Described | None:
    """Reads a finished part; None if its file is missing or damaged, or was made by a recipe with another hash."""
    try:
        arrays, facts = unpack(path.read_bytes(), _Facts)
        whole = len(facts["keys"]) == len(arrays["digests"]) == len(arrays["views"])
        if facts["recipe_sha256"] != recipe_hash or not whole:
            return None
        left_out = tuple((key, reason) for key, reason in facts["left_out"])
        return Described(tuple(facts["keys"]), arrays["digests"], arrays["views"], left_out)
    except (OSError, ValueError, KeyError):
        return None


def describe_part(
    source: Source,
    part: int,
    path: Path,
    *,
    descriptor: Descriptor,
    recipe: Recipe,
    recipe_hash: str,
    threads: int,
    tell: Tell = lambda done, kept, dropped: None,
) -> Path:
    """Describes the images of one part of a source, writes the descriptors to the file `path`, and returns that path.

    Only images that `rfjax prepare` would keep under `recipe` are described. The recipe has one bucket, of the image
    size that the descriptor takes.
    """
    left_out = LeftOut(path.name)
    keys, digests, views = [], [np.zeros((0, 16), np.uint8)], []
    with ThreadPoolExecutor(threads) as pool:
        window = AHEAD * recipe.batch_size
        looked = map_in_order(pool, lambda record: _look(record, recipe), source.records(part), window)
        kept = left_out.sift(looked, tell)
        while batch := list(itertools.islice(kept, recipe.batch_size)):
            keys += [image.key for image in batch]
            digests += [np.frombuffer(image.digest, np.uint8)[None] for image in batch]
            views.append(descriptor.describe(np.stack([image.pixels for image in batch])))
    if not views:  # no images: an array of no rows with the right size and type
        views = [descriptor.describe(np.zeros((1, descriptor.height, descriptor.width, 3), np.uint8))[:0]]
    arrays = {"views": np.concatenate(views), "digests": np.concatenate(digests)}
    listed = [(row["key"], row["reason"]) for row in left_out.rows]
    write_whole({path: pack(arrays, {"recipe_sha256": recipe_hash, "keys": keys, "left_out": listed})})
    return path


def _look(record: Record | Drop, recipe: Recipe) -> _Looked | Drop:
    """Decodes a record, or returns why it is not compared."""
    if isinstance(record, Drop):
        return record
    (kept,) = judge(replace(record, metadata={**record.metadata, ANY: "-"}), recipe)
    if isinstance(kept, Drop):
        return kept
    if any(end in kept.key for end in "\t\n\r"):
        return Drop(kept.key, UNLISTABLE, "", kept.done)
    digest = hashlib.blake2b(record.image, digest_size=16).digest()
    return _Looked(kept.key, kept.picture.pixels, digest, kept.done)
