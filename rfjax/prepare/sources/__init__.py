"""Sources of images and captions: the table of their kinds, and the protocol that all follow."""

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
from rfjax.inputs.walk import walk_files


@dataclass(frozen=True)
class Record:
    """One encoded image or file of clips, with all that is known about it."""

    key: str  # the same each time the source is read
    image: bytes | Path  # the file's bytes; its path if a folder is read for clips, which may be large
    metadata: Mapping[str, object] = field(default_factory=dict)  # columns, including the caption's
    done: float | int = 0  # how much of the part's size is read, this record included


@dataclass(frozen=True)
class Drop:
    """A record that is not kept, and why. Drops are counted by `reason`, and listed with `detail`."""

    key: str
    reason: str
    detail: str = ""
    done: float | int = 0


@runtime_checkable
class Source(Protocol):
    """A source of images, in parts that are read separately, each always in the same order. Part i becomes shard i."""

    kind: str
    location: str
    listing: str  # hash of the names and sizes of its files, by which a changed source is noticed
    sizes: Sequence[float | int]  # of the parts, in records or bytes; used to estimate the time left
    label: str | None  # the column of the class, if captions are made from the class
    class_names: Sequence[str] | None  # names by class number, if the source knows them
    passed_over: Mapping[str, Sequence[str]]  # reason -> names of what is not read, such as hidden folders
    noticed: Mapping[str, Sequence[str]]  # reason -> names of what is read but may be a mistake
    # A source that knows its images' keys before it is read also has the attribute `keys`.

    def records(self, part: int) -> Iterator[Record | Drop]:
        """Yields the images of a part, and a `Drop` for each image that is left out. May raise `RfjaxError` for a
        file of the source that cannot be read; some sources yield a `Drop` instead."""


IMAGES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm")
CLIPS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".webp")
# Names of columns that hold captions. If a source has several, the first in this order is used.
CAPTION_COLUMNS = ("caption", "captions", "text", "prompt")
# Suffixes of tables. In a folder of images only metadata.csv and metadata.jsonl are read.
TABLE_SUFFIXES = frozenset({".csv", ".jsonl", ".parquet", ".tsv", ".xlsx"})
# suffix of files that may hold images but cannot be read -> how to turn them into a source
OTHER_KINDS = {
    ".zip": "unpack it",
    ".7z": "unpack it",
    ".rar": "unpack it",
    ".tgz": "unpack it, or pack it anew as .tar",
    ".gz": "unpack it, or pack it anew as .tar",
    ".bz2": "unpack it, or pack it anew as .tar",
    ".xz": "unpack it, or pack it anew as .tar",
    ".zst": "unpack it, or pack it anew as .tar",
    ".arrow": "a dataset of datasets.save_to_disk is written as Parquet by its to_parquet",
    ".mdb": "write an LMDB as tars (WebDataset)",
    ".tfrecord": "give tfds:NAME, or write tars (WebDataset)",
    ".npz": "write its arrays as PNG",
    ".npy": "write its arrays as PNG",
    ".h5": "write its arrays as PNG",
}
# name -> module whose `open_source(location, shard_size, caption_column, suffixes)` reads it
SOURCES = {
    "folder": "rfjax.prepare.sources.folder",
    "webdataset": "rfjax.prepare.sources.webdataset",
    "parquet": "rfjax.prepare.sources.parquet",
    "tfds": "rfjax.prepare.sources.tfds",
}


def open_source(text: str, *, shard_size: int, caption_column: str | None, suffixes: Sequence[str] = IMAGES) -> Source:
    """Opens the source that a command line names: `KIND:WHERE`, or a path whose files tell the kind.

    Reads files with one of the `suffixes`, which are `IMAGES` or `CLIPS`.

    Raises `ConfigError` if the source does not exist, holds no such files or is of no known kind.
    """
    kind, _, where = text.partition(":")
    if kind in SOURCES and where:
        where = local_text(where, "SOURCE")
    else:
        where = local_text(text, "SOURCE")
        kind = _kind_of(where, suffixes)
    return importlib.import_module(SOURCES[kind]).open_source(where, shard_size, caption_column, suffixes)


def _kind_of(text, suffixes):
    path = Path(text)
    kinds = {".tar": "webdataset", ".parquet": "parquet"}
    if path.suffix.lower() in kinds:
        return kinds[path.suffix.lower()]
    if path.is_dir():
        top = {Path(name).suffix.lower() for name in walk_files(path, kinds, deep=False).names}
        return next((kind for suffix, kind in kinds.items() if suffix in top), None) or _kind_below(
            path, kinds, suffixes
        )
    kinds = ", ".join(f"{kind}:WHERE" for kind in SOURCES)
    raise ConfigError(f"no source at {text}: give a folder of images, .tar or .parquet files, or {kinds}")


def _kind_below(path, kinds, suffixes):
    """Returns the kind of a folder that has no tars or Parquet files directly in it, by the files in its subfolders."""
    deeper = {Path(name).suffix.lower() for name in walk_files(path, {*kinds, *suffixes}).names}
    if deeper & set(suffixes):
        return "folder"
    return next((kind for suffix, kind in kinds.items() if suffix in deeper), "folder")


def others_in(where: str, suffix: str) -> dict[str, tuple[str, ...]]:
    """Returns {reason: names of what is not read} in the folder `where`, for a source that reads the folder's files
    with `suffix`, such as .tar: images, files in subfolders and other files. Returns {} if `where` is no folder."""
    if not Path(where).is_dir():
        return {}
    walk = walk_files(where, {suffix, *IMAGES}, others={*OTHER_KINDS, *TABLE_SUFFIXES, ".tar"} - {suffix})
    read = {path.relative_to(where).as_posix() for path in files_of(where, suffix)}
    images = tuple(name for name in walk.names if not name.lower().endswith(suffix))
    deeper = tuple(name for name in walk.names if name.lower().endswith(suffix) and name not in read)
    found = {"images beside the files that are read": images, f"*{suffix} in folders of the folder": deeper}
    return {reason: names for reason, names in found.items() if names} | dict(walk.passed_over)


def files_of(where: str, suffix: str) -> list[Path]:
    """Returns the files that `where` names, sorted: a file, a folder of files, or a pattern such as `data/*.tar`.

    Of a folder, takes the files with `suffix` directly in it or, if there are none, in its subfolders. Raises
    `ConfigError` if there is no file, and if two files of a folder have the same name, and so records of equal keys.
    """
    path = Path(where)
    if path.is_dir():
        own = walk_files(path, {suffix}, deep=False).names
        found = [path / name for name in own or walk_files(path, {suffix}).names]
        stems = [file.stem for file in found]
        if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
            files = ", ".join(str(file) for file in found if file.stem == twice)
            equal = f"several files {twice}{suffix}, whose images would have equal keys"
            raise ConfigError(f"{where} has {equal}: {files}; rename them")
    elif any(character in path.name for character in "*?["):
        found = sorted(path.parent.glob(path.name))
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise ConfigError(f"no *{suffix} at {where}; give a file, a folder that holds some, or a pattern in quotes")
    return found


def listing_hash(rows: Iterable[Sequence]) -> str:
    """Computes the SHA-256 of rows such as (name, size)."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(list(row)).encode() + b"\n")
    return digest.hexdigest()
