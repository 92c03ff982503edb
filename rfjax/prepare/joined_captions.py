"""Joins captions to a source's images by key. The captions come from `rfjax recaption` or from a file that the user
has."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NotRequired, TypedDict

from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs import seals
from rfjax.inputs.json_files import check_json, parse_json, read_json
from rfjax.inputs.text import UndecodableText, decode_text
from rfjax.prepare.caption_files import FORMAT, NAME, VERSION, ListJson
from rfjax.prepare.captions import JOINED, JOINED_OF_CLIPS, NUL_REMOVED, NoText, notes_of, texts
from rfjax.prepare.clips import ClipRule, file_of
from rfjax.prepare.libraries import require
from rfjax.prepare.progress import say
from rfjax.prepare.sources import Drop, Record, Source

HINT = 'a file has lines {"key": ..., "captions": [...]}, or columns key and captions (.parquet)'


class Row(TypedDict):
    """A line of a .jsonl."""

    key: str
    captions: NotRequired[object]  # `rfjax.prepare.captions.texts` reads them
    caption: NotRequired[object]


@dataclass(frozen=True)
class Captions:
    """Captions of images, stored under the images' keys in one file, or in one file for each part of a source. `facts`
    identify the captions in the recipe and in the manifest."""

    facts: Mapping
    listing: str | None  # hash of the source that they were written for, if known
    sizes: tuple  # sizes of that source's parts
    files: tuple[tuple[Path, str | None], ...]  # (file, its SHA-256 if known)
    # How the clips that they were written for were cut: the fields of a `ClipRule`, {} for images; None if not known
    rule: Mapping | None = None

    def for_part(self, source: Source, part: int) -> Mapping[str, tuple[str, ...]]:
        """Returns {key: captions} with all captions of the source's part `part`, and perhaps captions of other parts.

        If the captions were written for this source in the same parts, only one file is read. Otherwise all captions
        are kept in memory.
        """
        if self.listing == source.listing and list(self.sizes) == list(source.sizes):
            return _read(self.files[part : part + 1])
        return self.all

    @cached_property
    def all(self) -> Mapping[str, tuple[str, ...]]:
        """{key: captions} of all files."""
        return _read(self.files)


@dataclass(frozen=True)
class JoinedSource:
    """A source with columns of captions added to its records: `JOINED` has the captions of the record's key and, if
    several clips are cut from a file, `JOINED_OF_CLIPS` has the captions of the clips' keys."""

    source: Source
    captions: Captions
    clips: ClipRule | None = None
    met: dict[int, set[str]] = field(default_factory=dict)  # part read so far -> its keys that have captions

    kind = property(lambda self: self.source.kind)
    location = property(lambda self: self.source.location)
    listing = property(lambda self: self.source.listing)
    sizes = property(lambda self: self.source.sizes)
    label = property(lambda self: self.source.label)
    class_names = property(lambda self: self.source.class_names)
    passed_over = property(lambda self: self.source.passed_over)
    noticed = property(lambda self: self.source.noticed)
    root_name = property(lambda self: self.source.root_name)
    keys = property(lambda self: getattr(self.source, "keys", None))

    def records(self, part: int) -> Iterator[Record | Drop]:
        found = self.captions.for_part(self.source, part)
        of_clips = _by_file(found, self.clips)
        images, example, met = 0, "", set()
        for item in self.source.records(part):
            if isinstance(item, Record):
                images, example = images + 1, item.key
                written, numbered = found.get(item.key), of_clips.get(item.key, {})
                met |= {item.key} if written is not None else set()
                met |= {f"{item.key}#{number}" for number in numbered}
                added = {JOINED: list(written or ())} | ({JOINED_OF_CLIPS: numbered} if numbered else {})
                item = dataclasses.replace(item, metadata={**item.metadata, **added})
            yield item
        self.met[part] = met
        if images and not met and self.captions.listing != self.source.listing:
            forms = f"their keys are like {example!r}, those of the captions like {next(iter(found), 'none')!r}"
            say(f"no synthetic caption for any of {images} images: {forms}")


def _by_file(found: Mapping[str, tuple[str, ...]], rule: ClipRule | None) -> dict[str, dict[int, tuple[str, ...]]]:
    """Returns {key of a file: {number of a clip: its captions}}; empty unless `rule` allows several clips."""
    files: dict[str, dict[int, tuple[str, ...]]] = {}
    for key, captions in found.items() if rule is not None and rule.most > 1 else ():
        if (clip := file_of(key, rule)) is not None:
            files.setdefault(clip[0], {})[clip[1]] = captions
    return files


def open_captions(text: str | Path) -> Captions:
    """Opens the captions of `--synthetic-captions`: a folder that `rfjax recaption` finished, a .jsonl or a .parquet.

    Raises `ConfigError` for anything else.
    """
    path = Path(text)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file() or path.suffix not in READERS:
        raise ConfigError(f"--synthetic-captions {text} is neither a folder of rfjax recaption nor a file; {HINT}")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Captions({"sha256": digest}, None, (), ((path, None),))


def _open_folder(folder):
    try:
        about = read_json(folder / NAME)
        form, readable = f"{about.get('format')} version {about.get('version')}", f"{FORMAT} version {VERSION}"
        if form != readable:
            raise ValueError(f"it is {form}, and this rfjax reads {readable}")
        facts = check_json(about, ListJson)
        if seals.is_broken(facts) or facts["images"] != sum(shard["images"] for shard in facts["shards"]):
            raise ValueError("it was changed after it was written")
        model = {name: facts["model"][name] for name in ("class", "sha256", "files")}
        for shard in facts["shards"]:
            name = shard["name"]
            if Path(name).name != name or "\0" in name:
                raise ValueError(f"a shard is called {name!r}, which is no name of a file here")
            size = (folder / f"{name}.jsonl").stat().st_size  # checked before images are encoded
            if size != shard["bytes"]:
                raise ValueError(f"{name}.jsonl has {size} bytes, and {NAME} says {shard['bytes']}")
        files = tuple((folder / f"{shard['name']}.jsonl", shard["sha256"]) for shard in facts["shards"])
        digest = hashlib.sha256("".join(sha256 for _, sha256 in files).encode()).hexdigest()
        identity = {"sha256": digest, "model": model, "settings": facts["settings"]}
        sizes = tuple(shard["size"] for shard in facts["shards"])
        return Captions(identity, facts["source"]["listing"], sizes, files, facts["settings"].get("clips", {}))
    except (OSError, ValueError, KeyError, RfjaxError) as error:
        lack = f"--synthetic-captions {folder} holds no finished captions: {NAME}: {error}"
        raise ConfigError(f"{lack}; give its rfjax recaption command again") from None


def _read(files) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    mended = []
    for path, sha256 in files:
        for key, value in READERS[path.suffix](path, sha256):
            if key in found:
                raise RfjaxError(f"{path} has the key {key!r} twice; put an image's captions into one row")
            try:
                found[key] = texts(value)
                mended += [key] if NUL_REMOVED in notes_of(value) else []
            except NoText as error:
                raise RfjaxError(f"{path}: the captions of {key!r} are no text: {error}; {HINT}") from None
    if mended:
        say(f"{path}: {len(mended):,} captions with NUL removed, of {mended[0]!r} first")
    return found


def _json_lines(path: Path, sha256: str | None) -> Iterable[tuple[str, object]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RfjaxError(f"{path} cannot be read: {error.strerror}; give a file that can be read") from None
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise RfjaxError(f"{path} is not as rfjax recaption wrote it; remove its .json and give that command again")
    try:
        lines = decode_text(data).text.split("\n")
    except UndecodableText as error:
        raise RfjaxError(f"{path} cannot be read: {error}; save it as UTF-8") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = parse_json(line, Row)
                if not {"captions", "caption"} & set(row):
                    raise ValueError("it has no captions")
                yield row["key"], row["captions"] if "captions" in row else row["caption"]
            except ValueError as error:
                raise RfjaxError(f"{path}, line {number}: {error}; {HINT}") from None


def _parquet(path: Path, sha256: str | None) -> Iterable[tuple[str, object]]:
    require("pyarrow.parquet", "reading Parquet needs pyarrow")
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            column = next((name for name in ("captions", "caption") if name in file.schema_arrow.names), None)
            if column is None or "key" not in file.schema_arrow.names:
                raise RfjaxError(f"{path} has the columns {', '.join(file.schema_arrow.names)}; {HINT}")
            for batch in file.iter_batches(columns=["key", column]):
                yield from zip(batch["key"].to_pylist(), batch[column].to_pylist(), strict=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise RfjaxError(f"{path} cannot be read: {error}; {HINT}") from None


READERS: dict[str, Callable] = {".jsonl": _json_lines, ".parquet": _parquet}
