"""Sources of images and captions: a table of them, and the protocol that all follow."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from rfjax.errors import ConfigError
from rfjax.inputs.paths import local_text


@dataclass(frozen=True)
class Record:
    """One encoded image, with all that is known of it."""

    key: str  # the same at every reading of the source
    image: bytes
    metadata: Mapping[str, object] = field(default_factory=dict)  # columns, the caption's among them
    done: float | int = 0  # how much of the part's size is read, this record included


@dataclass(frozen=True)
class Drop:
    """A record that is not kept, and why: drops are counted by `reason`, and listed with `detail`."""

    key: str
    reason: str
    detail: str = ""
    done: float | int = 0


@runtime_checkable
class Source(Protocol):
    """A source has parts that are read apart, each always in the same order: part i becomes shard i."""

    kind: str
    location: str
    listing: str  # hash of the names and sizes of its files: a changed source is noticed
    sizes: Sequence[float | int]  # of the parts, in records or bytes: tells the time left
    label: str | None  # the column that holds a class, if captions are made of it
    class_names: Sequence[str] | None  # names by class number, if the source knows them

    def records(self, part: int) -> Iterator[Record | Drop]:
        """The images of a part. Raises `RfjaxError` for a file that cannot be read at all."""


# name -> module whose `open_source(location, shard_size, caption_column)` reads it
SOURCES = {
    "folder": "rfjax.prepare.sources.folder",
    "webdataset": "rfjax.prepare.sources.webdataset",
    "parquet": "rfjax.prepare.sources.parquet",
    "tfds": "rfjax.prepare.sources.tfds",
}


def open_source(text: str, *, shard_size: int, caption_column: str | None) -> Source:
    """Opens the source that a command line names: `KIND:WHERE`, or a path that shows its kind.

    Raises `ConfigError` if it is not there, holds no images or has no known kind.
    """
    kind, _, where = text.partition(":")
    if kind in SOURCES and where:
        where = local_text(where, "SOURCE")
    else:
        where = local_text(text, "SOURCE")
        kind = _kind_of(where)
    return importlib.import_module(SOURCES[kind]).open_source(where, shard_size, caption_column)


def _kind_of(text):
    path = Path(text)
    for kind, suffix in (("webdataset", ".tar"), ("parquet", ".parquet")):
        if path.suffix == suffix or (path.is_dir() and any(path.glob(f"*{suffix}"))):
            return kind
    if path.is_dir():
        return "folder"
    kinds = ", ".join(f"{kind}:WHERE" for kind in SOURCES)
    raise ConfigError(f"no source at {text}: give a folder of images, .tar or .parquet files, or {kinds}")


def files_of(where: str, suffix: str) -> list[Path]:
    """The files that a location names, sorted. It is a file, a folder of files, or a pattern such as `data/*.tar`."""
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
    """SHA-256 of rows such as (name, size)."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(list(row)).encode() + b"\n")
    return digest.hexdigest()
