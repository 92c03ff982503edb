"""Where images and captions come from: a table of sources, and what all of them give."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from rfjax.errors import ConfigError


@dataclass(frozen=True)
class Record:
    """One image with what is known of it, not decoded yet."""

    key: str  # the same whenever the source is read
    image: bytes
    metadata: Mapping[str, object] = field(default_factory=dict)  # columns; the caption's is among them
    done: float | int = 0  # of the part's size, up to and with this record


@dataclass(frozen=True)
class Drop:
    """A record that is not kept, and why. `reason` is what is counted, `detail` what is listed."""

    key: str
    reason: str
    detail: str = ""
    done: float | int = 0


@runtime_checkable
class Source(Protocol):
    """Parts that can be read apart, each always in the same order: part i becomes shard i."""

    kind: str
    location: str
    listing: str  # a hash of what there is to read, so that a changed source is noticed
    sizes: Sequence[float | int]  # of each part, in units of its own (records, bytes), for the time left
    label: str | None  # the column that holds a class, where captions are to be made of it
    class_names: Sequence[str] | None  # by number, where the source knows them

    def records(self, part: int) -> Iterator[Record | Drop]:
        """A part's images. Raises `RfjaxError` naming a file that cannot be read at all."""


# name -> module whose `open_source(location, shard_size, caption_column)` reads it
SOURCES = {
    "folder": "rfjax.prepare.sources.folder",
    "webdataset": "rfjax.prepare.sources.webdataset",
    "parquet": "rfjax.prepare.sources.parquet",
    "tfds": "rfjax.prepare.sources.tfds",
}


def open_source(text: str, *, shard_size: int, caption_column: str | None) -> Source:
    """The source that a command line names: `KIND:WHERE`, or a path whose kind can be seen.

    Raises `ConfigError` for one that is not there, holds no images or is of no known kind.
    """
    kind, _, where = text.partition(":")
    if kind not in SOURCES or not where:
        kind, where = _kind_of(text), text
    return importlib.import_module(SOURCES[kind]).open_source(where, shard_size, caption_column)


def _kind_of(text):
    path = Path(text)
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return "webdataset"
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return "parquet"
    if path.is_dir():
        return "folder"
    raise ConfigError(
        f"no source at {text}: give a folder of images, .tar files, .parquet files or tfds:NAME, or name its kind as "
        f"{', '.join(f'{kind}:WHERE' for kind in SOURCES)}"
    )


def files_of(where: str, suffix: str) -> list[Path]:
    """The files a location names, sorted: a file, a folder of them, or a pattern such as `data/*.tar`."""
    path = Path(where)
    if path.is_dir():
        found = sorted(path.glob(f"*{suffix}"))
    elif any(character in path.name for character in "*?["):
        found = sorted(path.parent.glob(path.name))
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise ConfigError(f"no *{suffix} at {where}; give a file, a folder that holds some, or a pattern in quotes")
    return found


def listing_hash(rows: Iterable[Sequence]) -> str:
    """A hash of names and sizes."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(list(row)).encode() + b"\n")
    return digest.hexdigest()
