"""A folder of images, in any depth of folders, with sidecars beside each image: `cat.jpg`, `cat.txt` and `cat.json`.

The .txt is the caption. The .json holds columns, the caption among them if there is no .txt. Each image also has the
column `folder`, the name of its folder: a class, if images are sorted by class.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rfjax.errors import ConfigError
from rfjax.prepare.sources import Drop, Record, listing_hash

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm"}
SIDECARS = {".txt", ".json"}


@dataclass(frozen=True)
class FolderSource:
    location: str
    listing: str
    parts: tuple[tuple[str, ...], ...]  # paths inside the folder, with /
    kind: str = "folder"
    label: str | None = None
    class_names: None = None

    @property
    def sizes(self) -> list[int]:
        return [len(part) for part in self.parts]

    def records(self, part: int) -> Iterator[Record | Drop]:
        for done, name in enumerate(self.parts[part], 1):
            path = Path(self.location, name)
            try:
                name.encode()
            except UnicodeEncodeError:  # a key is text
                yield Drop(ascii(name)[1:-1], "name that is not UTF-8", "", done)
                continue
            try:
                metadata = {"folder": path.parent.name, **_sidecars(path)}
                yield Record(name, path.read_bytes(), metadata, done)
            except (OSError, ValueError) as error:
                yield Drop(name, "unreadable", f"{type(error).__name__}: {error}", done)


def _sidecars(path: Path) -> dict:
    found = {}
    columns = path.with_suffix(".json")
    if columns.is_file():
        found = json.loads(columns.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"{columns.name} holds no object")
    text = path.with_suffix(".txt")
    if text.is_file():
        found["caption"] = text.read_bytes()
    return found


def open_source(where: str, shard_size: int, caption_column: str | None) -> FolderSource:
    root = Path(where)
    if not root.is_dir():
        raise ConfigError(f"no folder at {where}; give a folder of images")
    rows, sidecars = [], []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES | SIDECARS and not name.startswith("."):
                of_kind = sidecars if path.suffix.lower() in SIDECARS else rows
                of_kind.append((path.relative_to(root).as_posix(), path.stat().st_size if path.exists() else -1))
    rows.sort()
    if not rows:
        raise ConfigError(f"no images in {where}; their names must end in one of {', '.join(sorted(SUFFIXES))}")
    names = [name for name, _ in rows]
    parts = tuple(tuple(names[start : start + shard_size]) for start in range(0, len(names), shard_size))
    return FolderSource(str(root), listing_hash([*rows, *sorted(sidecars)]), parts)
