"""One part of a source made one file of descriptors, whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8

from rfjax.data.prepared.records import pack, unpack
from rfjax.duplicates.descriptors import Descriptor
from rfjax.files import write_whole
from rfjax.prepare.recipe import Recipe
from rfjax.prepare.shard import AHEAD, in_order, judge
from rfjax.prepare.sources import Drop, Source

ANY = "a caption of every image"  # the column that is asked for where images need none
UNLISTABLE = "key with a tab or a line break"  # which --drop-keys, a key a line, cannot name


@dataclass(frozen=True)
class Described:
    """A part's images in their order. `left_out` are those that `rfjax prepare` would drop anyway."""

    keys: tuple[str, ...]
    digests: UInt8[np.ndarray, "n 16"]  # of the files' bytes
    views: Shaped[np.ndarray, "n views size"]
    left_out: tuple[tuple[str, str], ...]  # (key, reason)


def file_name(part: int, parts: int) -> str:
    return f"descriptors-{part:05}-of-{parts:05}"


def read(path: Path, recipe_hash: str) -> Described | None:
    """A finished part; None where it is not there whole, or of another recipe."""
    try:
        arrays, facts = unpack(path.read_bytes())
        if facts["recipe_sha256"] != recipe_hash:
            return None
        return Described(tuple(facts["keys"]), arrays["digests"], arrays["views"], tuple(map(tuple, facts["left_out"])))
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
    tell: Callable[[float | int, int, int], None] = lambda done, kept, dropped: None,
) -> None:
    """Writes a part's file. `recipe` says which images `rfjax prepare` would keep, and how large they are looked at."""
    keys, digests, left_out, views, batch = [], [], [], [], []

    def look(record):
        if not isinstance(record, Drop):
            record = replace(record, metadata={**record.metadata, ANY: "-"})
        return judge(record, recipe), b"" if isinstance(record, Drop) else hashlib.blake2b(
            record.image, digest_size=16
        ).digest()

    def flush():
        if batch:
            views.append(descriptor.describe(np.stack(batch)))
            batch.clear()

    with ThreadPoolExecutor(threads) as pool:
        for one, digest in in_order(pool, look, source.records(part), AHEAD * recipe.batch_size):
            if not isinstance(one, Drop) and any(end in one.key for end in "\t\n\r"):
                one = Drop(one.key, UNLISTABLE, "", one.done)
            if isinstance(one, Drop):
                left_out.append((one.key, one.reason))
            else:
                keys.append(one.key)
                digests.append(np.frombuffer(digest, np.uint8))
                batch.append(one.picture.pixels)
                if len(batch) == recipe.batch_size:
                    flush()
            tell(one.done, len(keys), len(left_out))
    flush()
    found = (
        np.concatenate(views)
        if views
        else descriptor.describe(np.zeros((1, descriptor.side, descriptor.side, 3), np.uint8))[:0]
    )
    arrays = {"views": found, "digests": np.stack(digests) if digests else np.zeros((0, 16), np.uint8)}
    write_whole({path: pack(arrays, {"recipe_sha256": recipe_hash, "keys": keys, "left_out": left_out})})
