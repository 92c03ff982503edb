"""A folder of images, in any depth of folders, with sidecars beside each image: `cat.jpg`, `cat.txt` and `cat.json`.

The .txt or .caption is the caption. The .json holds columns, the caption among them if there is no .txt. A
metadata.jsonl or metadata.csv holds the columns of the images of its folder, by `file_name`. Each image also has the
column `folder`, the name of its folder: a class, if images are sorted by class.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from rfjax.errors import ConfigError
from rfjax.inputs.files import read_bytes
from rfjax.inputs.json_files import parse_json
from rfjax.inputs.text import read_text
from rfjax.inputs.walk import walk_files
from rfjax.prepare.sources import CAPTION_COLUMNS, IMAGES, Drop, Record, listing_hash

SUFFIXES = set(IMAGES)
CAPTIONS = (".caption", ".txt")  # the last one counts, where an image has both
SIDECARS = {*CAPTIONS, ".json"}
TABLES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class FolderSource:
    location: str
    listing: str
    parts: tuple[tuple[str, ...], ...]  # paths inside the folder, with /
    sidecars: Mapping[str, Mapping[str, str]] = field(repr=False)  # path without suffix -> suffix -> path
    columns: Mapping[str, Mapping[str, object]] = field(repr=False)  # path -> the columns of its row in a table
    passed_over: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # reason -> what was not read
    kind: str = "folder"
    label: str | None = None
    class_names: None = None

    @property
    def sizes(self) -> list[int]:
        return [len(part) for part in self.parts]

    @property
    def keys(self) -> Iterator[str]:
        """The keys of all images, known before any is read."""
        return (name for part in self.parts for name in part)

    @property
    def root_name(self) -> str:
        """The name of the folder itself, also where it was given as a dot: the class of the images right in it."""
        return Path(self.location).resolve().name

    def records(self, part: int) -> Iterator[Record | Drop]:
        for done, name in enumerate(self.parts[part], 1):
            path = Path(self.location, name)
            try:
                name.encode()
            except UnicodeEncodeError:  # a key is text
                yield Drop(ascii(name)[1:-1], "name that is not UTF-8", "", done)
                continue
            try:
                metadata = {
                    "folder": path.parent.name if "/" in name else self.root_name,
                    **self.columns.get(name, {}),
                    **self._sidecars(name),
                }
                yield Record(name, read_bytes(path), metadata, done)
            except (OSError, ValueError) as error:
                yield Drop(name, "unreadable", f"{type(error).__name__}: {error}", done)

    def _sidecars(self, name: str) -> dict:
        beside = {suffix: Path(self.location, other) for suffix, other in self.sidecars.get(_stem(name), {}).items()}
        found = parse_json(read_bytes(beside[".json"])) if ".json" in beside else {}
        for suffix in CAPTIONS:
            if suffix in beside:
                found["caption"] = read_bytes(beside[suffix])
        return found


def _stem(name: str) -> str:
    """A path without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def open_source(where: str, shard_size: int, caption_column: str | None) -> FolderSource:
    root = Path(where)
    if not root.is_dir():
        raise ConfigError(f"no folder at {where}; give a folder of images")
    walk = walk_files(root, SUFFIXES | SIDECARS | {".jsonl", ".csv"})
    images = [row for row in walk.files if _suffix(row[0]) in SUFFIXES]
    tables = [row for row in walk.files if PurePosixPath(row[0]).name in TABLES]
    beside = [row for row in walk.files if _suffix(row[0]) in SIDECARS]
    if not images:
        held = "".join(f"; {line}" for line in walk.describe_passed_over()) + _other_kinds(root)
        raise ConfigError(f"no images in {where}; their names must end in one of {', '.join(sorted(SUFFIXES))}{held}")
    names = [name for name, _ in images]
    sidecars: dict[str, dict[str, str]] = {}
    for name, _ in beside:
        sidecars.setdefault(_stem(name), {})[_suffix(name)] = name
    passed_over = {reason: names for reason, names in walk.passed_over.items()}
    columns: dict[str, dict[str, object]] = {}
    for table, _ in tables:
        rows, unread = _read_table(root, table)
        columns |= rows
        passed_over |= {f"rows of {table} that {why}": found for why, found in unread.items() if found}
    stems = {_stem(name) for name in names}
    if alone := tuple(name for name, _ in beside if _stem(name) not in stems):
        passed_over["files of captions beside no image"] = alone
    absent = tuple(sorted(set(columns) - set(names)))
    if absent:
        passed_over["rows of metadata that name no image"] = absent
    parts = tuple(tuple(names[start : start + shard_size]) for start in range(0, len(names), shard_size))
    listing = listing_hash([*images, *beside, *tables])
    return FolderSource(str(root), listing, parts, sidecars, columns, passed_over)


# What holds images in another way, and what makes a source of it.
_OTHER_KINDS = {
    ".zip": "unpack it",
    ".tgz": "unpack it, or pack it anew as .tar",
    ".gz": "unpack it, or pack it anew as .tar",
    ".zst": "unpack it, or pack it anew as .tar",
    ".arrow": "a dataset of datasets.save_to_disk is written as Parquet by its to_parquet",
    ".mdb": "write an LMDB as tars (WebDataset)",
    ".tfrecord": "give tfds:NAME, or write tars (WebDataset)",
    ".npz": "write its arrays as PNG",
    ".npy": "write its arrays as PNG",
    ".h5": "write its arrays as PNG",
}


def _other_kinds(root: Path) -> str:
    """What a folder without images holds in their place, and the remedy, for the message."""
    for name, _ in walk_files(root, _OTHER_KINDS).files:
        return f"; it has {name}: {_OTHER_KINDS[_suffix(name)]}"
    return ""


def _read_table(root: Path, table: str) -> tuple[dict[str, dict[str, object]], dict[str, tuple[str, ...]]]:
    """(columns by the image's path inside the folder, by reason the rows that are of no use) of a table of metadata."""
    text = read_text(root / table, "the table of metadata")
    unread: dict[str, list[str]] = {"cannot be read": [], "have no file_name": [], "name an image again": []}
    found: dict[str, dict[str, object]] = {}
    if table.endswith(".csv"):
        rows = enumerate(csv.DictReader(io.StringIO(text, newline="")), 2)
    else:
        rows = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    folder = PurePosixPath(table).parent
    for number, row in rows:
        try:
            values = parse_json(row) if isinstance(row, str) else {key: row[key] for key in row if key is not None}
        except ValueError:
            unread["cannot be read"].append(f"line {number}")
            continue
        name = values.pop("file_name", None)
        if not isinstance(name, str) or not name:
            unread["have no file_name"].append(f"line {number}")
            continue
        path = str(folder / name)
        if path in found:
            unread["name an image again"].append(f"line {number}")
            continue
        if "caption" not in values:
            column = next((column for column in CAPTION_COLUMNS if column in values), None)
            values |= {"caption": values[column]} if column else {}
        found[path] = values
    return found, {why: tuple(lines) for why, lines in unread.items()}
