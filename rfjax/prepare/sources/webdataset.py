"""WebDataset tars as img2dataset writes them: `key.jpg`, `key.txt` and `key.json` side by side; a tar becomes a shard.

The .txt is the caption, the .json holds columns. Nothing is unpacked: members are read in their order. A member that is
no plain file, or whose name climbs out of the tar's folder, is counted and left out.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rfjax.errors import RfjaxError
from rfjax.prepare.sources import Drop, Record, files_of, listing_hash
from rfjax.prepare.sources.folder import SUFFIXES

SIDECARS = (".txt", ".json")
SIDECAR_BYTES = 2**24  # a larger file is no sidecar


@dataclass(frozen=True)
class WebDatasetSource:
    location: str
    listing: str
    paths: tuple[Path, ...]
    sizes: tuple[int, ...]  # bytes
    kind: str = "webdataset"
    label: str | None = None
    class_names: None = None

    def records(self, part: int) -> Iterator[Record | Drop]:
        path = self.paths[part]
        group: dict[str, bytes] = {}
        key, done = None, 0
        try:
            with tarfile.open(path, "r|*") as tar:  # as a stream, in the order on the disk or in a bucket
                for member in tar:
                    if member.isdir():
                        continue
                    if _unsafe(member):
                        why = "its name leaves the tar's folder" if member.isreg() else "a link or a device"
                        yield Drop(f"{path.stem}/{member.name}", "unsafe member of a tar", why, done)
                        continue
                    stem, _, suffix = member.name.partition(".") if "/" not in member.name else _split(member.name)
                    if stem != key:
                        yield from _record(path, key, group, done)
                        key, group = stem, {}
                    suffix = "." + suffix.lower()
                    if suffix in SUFFIXES or (suffix in SIDECARS and member.size <= SIDECAR_BYTES):
                        group[suffix] = tar.extractfile(member).read()
                    done = member.offset_data + member.size
            yield from _record(path, key, group, done)
        except (tarfile.TarError, OSError, EOFError) as error:
            # The last image may lack its caption, so it belongs to the rest.
            detail = f"{path.name}: {type(error).__name__}: {error}"
            yield Drop(f"{path.stem}/{key}", "rest of a broken tar", detail, done)


def _split(name):
    folder = PurePosixPath(name).parent
    stem, dot, suffix = PurePosixPath(name).name.partition(".")
    return str(folder / stem), dot, suffix


def _unsafe(member):
    path = PurePosixPath(member.name)
    return not member.isreg() or path.is_absolute() or ".." in path.parts


def _record(path, key, group, done):
    if key is None:
        return
    name = f"{path.stem}/{key}"
    images = [suffix for suffix in group if suffix in SUFFIXES]
    if not images:
        yield Drop(name, "no image", f"it has {', '.join(sorted(group)) or 'nothing'}", done)
        return
    try:
        metadata = json.loads(group[".json"]) if ".json" in group else {}
        if not isinstance(metadata, dict):
            raise ValueError("its .json holds no object")
    except ValueError as error:
        yield Drop(name, "unreadable", f"{type(error).__name__}: {error}", done)
        return
    if ".txt" in group:
        metadata["caption"] = group[".txt"]
    yield Record(name, group[images[0]], metadata, done)


def open_source(where: str, shard_size: int, caption_column: str | None) -> WebDatasetSource:
    paths = files_of(where, ".tar")
    try:
        sizes = [path.stat().st_size for path in paths]
    except OSError as error:
        raise RfjaxError(f"cannot read {error.filename}: {error.strerror}; replace it, or leave it out") from None
    listing = listing_hash((path.name, size) for path, size in zip(paths, sizes, strict=True))
    return WebDatasetSource(where, listing, tuple(paths), tuple(sizes))
