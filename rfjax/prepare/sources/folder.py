"""A folder of images and its subfolders, with sidecar files beside each image: `cat.jpg`, `cat.txt` and `cat.json`.

A .txt or .caption holds the caption. A .json holds columns, and the caption if there is neither .txt nor .caption. A
metadata.jsonl or metadata.csv holds columns of the images in its folder, by `file_name`. Each image also has the
column `folder`, its folder's name, which is a class if images are sorted by class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from rfjax.errors import ConfigError
from rfjax.inputs.files import read_bytes
from rfjax.inputs.json_files import parse_json
from rfjax.inputs.walk import walk_files
from rfjax.prepare.sources import CLIPS, IMAGES, OTHER_KINDS, TABLE_SUFFIXES, Drop, Record, listing_hash
from rfjax.prepare.sources.metadata_tables import NO_CAPTIONS, TABLES, UNREAD_TABLES, read_tables

CAPTIONS = (".caption", ".txt")  # if an image has both, .txt is used
SIDECARS = {*CAPTIONS, ".json"}
SHARED = "files of captions or columns that several images share"
OTHER_CASE = "files of captions or columns beside another of the same name"


@dataclass(frozen=True)
class FolderSource:
    location: str
    listing: str
    parts: tuple[tuple[str, ...], ...]  # paths inside the folder, with /
    sidecars: Mapping[str, Mapping[str, str]] = field(repr=False)  # path without suffix -> suffix -> path
    columns: Mapping[str, Mapping[str, object]] = field(repr=False)  # path -> the columns of its row in a table
    passed_over: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # reason -> what was not read
    noticed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # reason -> what may be a mistake
    by_path: bool = False  # whether a record holds its file's path, not its bytes (for clips)
    kind: str = "folder"
    label: str | None = None
    class_names: None = None

    @property
    def sizes(self) -> list[int]:
        return [len(part) for part in self.parts]

    @property
    def keys(self) -> Iterator[str]:
        """Yields the keys of all images, without reading any."""
        return (name for part in self.parts for name in part)

    @property
    def root_name(self) -> str:
        """The folder's own name, even if it was given as ".". It is the class of images directly in the folder."""
        return Path(self.location).resolve().name

    def records(self, part: int) -> Iterator[Record | Drop]:
        root_name = self.root_name
        for done, name in enumerate(self.parts[part], 1):
            path = Path(self.location, name)
            try:
                name.encode()
            except UnicodeEncodeError:  # a key must be text
                yield Drop(ascii(name)[1:-1], "name that is not UTF-8", "", done)
                continue
            try:
                metadata = {
                    "folder": path.parent.name if "/" in name else root_name,
                    **self.columns.get(name, {}),
                    **self._sidecars(name),
                }
                yield Record(name, path if self.by_path else read_bytes(path), metadata, done)
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
    """Returns a path without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _base(name: str) -> str:
    return PurePosixPath(name).name


def open_source(
    where: str, shard_size: int, caption_column: str | None, suffixes: Sequence[str] = IMAGES
) -> FolderSource:
    root, what = Path(where), "clips" if suffixes is CLIPS else "images"
    if not root.is_dir():
        raise ConfigError(f"no folder at {where}; give a folder of {what}")
    others = {*OTHER_KINDS, ".tar", *IMAGES} - set(suffixes)
    walk = walk_files(root, {*suffixes, *SIDECARS, *TABLE_SUFFIXES}, others=others)
    images = [row for row in walk.files if _suffix(row[0]) in suffixes]
    tables = [row for row in walk.files if _base(row[0]) in TABLES]
    beside = [row for row in walk.files if _suffix(row[0]) in SIDECARS]
    if not images:
        held = "".join(f"; {line}" for line in walk.describe_passed_over()) + _other_kinds(root)
        if what == "images" and walk_files(root, CLIPS).files:
            held += "; --frames reads its clips"
        raise ConfigError(f"no {what} in {where}; their names must end in one of {', '.join(sorted(suffixes))}{held}")
    names = [name for name, _ in images]
    stems = Counter(map(_stem, names))
    sidecars: dict[str, dict[str, str]] = {}
    again, alone = [], []
    for name, _ in beside:
        others = sidecars.setdefault(_stem(name), {})
        again += [others[_suffix(name)]] if _suffix(name) in others else []
        alone += [name] if _stem(name) not in stems else []
        others[_suffix(name)] = name
    metadata = read_tables(root, [name for name, _ in tables], set(names), caption_column)
    other_tables = [name for name, _ in walk.files if _suffix(name) in TABLE_SUFFIXES and _base(name) not in TABLES]
    found = {UNREAD_TABLES: other_tables, "files of captions beside no image": alone, OTHER_CASE: again}
    passed_over = {**walk.passed_over, **metadata.left_out, **{why: tuple(each) for why, each in found.items() if each}}
    shared = [other for stem, others in sidecars.items() if stems[stem] > 1 for other in others.values()]
    noticed = {**metadata.noticed, **({SHARED: tuple(shared)} if shared else {})}
    if stems.keys() <= sidecars.keys():  # every image has a sidecar, so tables need no captions
        noticed.pop(NO_CAPTIONS, None)
    parts = tuple(tuple(names[start : start + shard_size]) for start in range(0, len(names), shard_size))
    listing = listing_hash([*images, *beside, *tables])
    return FolderSource(str(root), listing, parts, sidecars, metadata.columns, passed_over, noticed, what == "clips")


def _other_kinds(root: Path) -> str:
    """Returns the end of a message on a folder without images: a file that it has, and the remedy; "" for no file."""
    for name, _ in walk_files(root, OTHER_KINDS).files:
        return f"; it has {name}: {OTHER_KINDS[_suffix(name)]}"
    return ""
