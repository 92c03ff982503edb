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
from rfjax.prepare.judge import Kept, judge
from rfjax.prepare.part import LeftOut, Tell, map_in_order
from rfjax.prepare.recipe import Recipe
from rfjax.prepare.shard import AHEAD
from rfjax.prepare.sources import Drop, Record, Source

ANY = "a caption of every image"  # a column that every record gets; used as the caption if images need none
COMPARED = (0.25, 0.5, 0.75)  # which frames of a clip are compared, as shares of its length
UNLISTABLE = "key with a tab or a line break"  # a file of --drop-keys cannot hold such a key


@dataclass(frozen=True)
class Described:
    """The images of a part, in order."""

    keys: tuple[str, ...]
    digests: UInt8[np.ndarray, "n 16"]  # hashes of the files' bytes; of clips, of their pixels
    views: Shaped[np.ndarray, "n views size"]  # the rows of numbers that `Descriptor.describe` gives for each image
    left_out: tuple[tuple[str, str], ...]  # (key, reason) of images that are not compared


class _Facts(TypedDict):
    """What a part's file holds besides its arrays."""

    recipe_sha256: str
    keys: list[str]
    left_out: list[list[str]]


@dataclass(frozen=True)
class _Looked:
    """A decoded image to compare, or the frames that stand for a clip."""

    key: str
    pixels: UInt8[np.ndarray, "*frames height width 3"]
    digest: bytes  # hash of the file's bytes; of a clip, of its pixels
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
        window = AHEAD * recipe.batch_size if recipe.clips is None else 2 * threads  # a record may give many clips
        looked = map_in_order(pool, lambda record: _look(record, recipe), source.records(part), window)
        kept = left_out.sift(itertools.chain.from_iterable(looked), tell)
        while batch := list(itertools.islice(kept, recipe.batch_size)):
            keys += [image.key for image in batch]
            digests += [np.frombuffer(image.digest, np.uint8)[None] for image in batch]
            views.append(describe(descriptor, np.stack([image.pixels for image in batch])))
            if recipe.clips is not None:  # clips with a flat frame look alike: their equal pixels say nothing
                flat = ~views[-1][:, 0].any(axis=1)
                digests[-len(batch) :] = _without_flat(digests[-len(batch) :], flat, batch)
    if not views:  # no images: an array of no rows with the right size and type
        frames = () if recipe.clips is None else (len(COMPARED),)
        views = [describe(descriptor, np.zeros((1, *frames, descriptor.height, descriptor.width, 3), np.uint8))[:0]]
    arrays = {"views": np.concatenate(views), "digests": np.concatenate(digests)}
    listed = [(row["key"], row["reason"]) for row in left_out.rows]
    write_whole({path: pack(arrays, {"recipe_sha256": recipe_hash, "keys": keys, "left_out": listed})})
    return path


def describe(
    descriptor: Descriptor, pixels: UInt8[np.ndarray, "n *frames height width 3"]
) -> Shaped[np.ndarray, "n views size"]:
    """Describes images, or clips, of which `pixels` has the frames to compare.

    A clip's row joins the rows of its frames, so the similarity of two clips is the mean over their frames. The row is
    all zeros, and so is not compared, if the row of one of its frames is all zeros.
    """
    if pixels.ndim == 4:
        return descriptor.describe(pixels)
    frames = [descriptor.describe(pixels[:, number]) for number in range(pixels.shape[1])]
    joined = np.concatenate(frames, axis=2) * np.all([frame.any(axis=2) for frame in frames], axis=0)[..., None]
    return joined if joined.dtype == np.uint8 else (joined / np.sqrt(len(frames))).astype(joined.dtype)


def _without_flat(digests, flat, batch):
    """Returns `digests` with changes for the clips that have a flat frame (`flat`): the digest of such a clip becomes a
    hash of the clip's key, which no other clip has."""
    own = (hashlib.blake2b(image.key.encode(), digest_size=16).digest() for image in batch)
    rows = zip(digests, flat, own, strict=True)
    return [np.frombuffer(key, np.uint8)[None] if is_flat else digest for digest, is_flat, key in rows]


def _look(record: Record | Drop, recipe: Recipe) -> list[_Looked | Drop]:
    """Decodes a record. Returns its image, or some frames of each of its clips, or a `Drop` with the reason."""
    if isinstance(record, Drop):
        return [record]
    found = judge(replace(record, metadata={**record.metadata, ANY: "-"}), recipe)
    return [item if isinstance(item, Drop) else _looked(item, record, recipe) for item in found]


def _looked(kept: Kept, record: Record, recipe: Recipe) -> _Looked | Drop:
    if any(end in kept.key for end in "\t\n\r"):
        return Drop(kept.key, UNLISTABLE, "", kept.done)
    pixels, data = kept.picture.pixels, record.image
    if recipe.clips is not None:
        pixels, data = pixels[[int(share * len(pixels)) for share in COMPARED]], pixels.tobytes()
    return _Looked(kept.key, pixels, hashlib.blake2b(data, digest_size=16).digest(), kept.done)
