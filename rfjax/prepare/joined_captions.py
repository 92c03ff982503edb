"""Captions from elsewhere joined to a source by its images' keys: what `rfjax recaption` wrote, or a file of one's
own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rfjax.errors import ConfigError, RfjaxError
from rfjax.prepare.caption_files import FORMAT, NAME, VERSION
from rfjax.prepare.captions import texts
from rfjax.prepare.progress import say
from rfjax.prepare.sources import Drop, Record, Source

COLUMN = "joined synthetic captions"  # the column that a joined record has
HINT = 'a file has lines {"key": ..., "captions": [...]}, or columns key and captions (.parquet)'


@dataclass(frozen=True)
class Captions:
    """Captions by key. `facts` is what decides them, for recipe and manifest; `parts` are files of one part each."""

    facts: Mapping
    listing: str | None  # of the source that they were written for
    sizes: tuple  # of its parts
    files: tuple[tuple[Path, str | None], ...]  # (file, its SHA-256 where known)

    def for_part(self, source: Source, part: int) -> Mapping[str, tuple[str, ...]]:
        """Captions by key, with those of the source's part `part` among them.

        Of captions written for this source in the same parts, one file is read; otherwise all are held in memory.
        """
        if self.listing == source.listing and list(self.sizes) == list(source.sizes):
            return _read(self.files[part : part + 1])
        return self._all

    @cached_property
    def _all(self):
        return _read(self.files)


@dataclass(frozen=True)
class JoinedSource:
    """A source whose records have one column more: the captions that stand elsewhere under their key."""

    source: Source
    captions: Captions

    kind = property(lambda self: self.source.kind)
    location = property(lambda self: self.source.location)
    listing = property(lambda self: self.source.listing)
    sizes = property(lambda self: self.source.sizes)
    label = property(lambda self: self.source.label)
    class_names = property(lambda self: self.source.class_names)

    def records(self, part: int) -> Iterator[Record | Drop]:
        found = self.captions.for_part(self.source, part)
        known, images, example = 0, 0, ""
        for one in self.source.records(part):
            if isinstance(one, Record):
                known, images, example = known + (one.key in found), images + 1, one.key
                one = dataclasses.replace(one, metadata={**one.metadata, COLUMN: list(found.get(one.key, ()))})
            yield one
        if images and not known and self.captions.listing != self.source.listing:
            say(
                f"no synthetic caption for any of {images} images: their keys are as {example!r}, and the captions' "
                f"as {next(iter(found), 'none')!r}"
            )


def open_captions(text: str) -> Captions:
    """The captions of `--synthetic-captions`: a folder that `rfjax recaption` finished, a .jsonl or a .parquet.

    Raises `ConfigError` for anything else.
    """
    path = Path(text)
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file() or path.suffix not in READERS:
        raise ConfigError(
            f"--synthetic-captions {text} is neither a folder that rfjax recaption wrote nor a .jsonl or .parquet "
            f"file; {HINT}"
        )
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Captions({"sha256": digest}, None, (), ((path, None),))


def _of_folder(folder):
    try:
        facts = json.loads((folder / NAME).read_text())
        if (facts["format"], facts["version"]) != (FORMAT, VERSION):
            raise ValueError(
                f"it is {facts['format']} version {facts['version']}, and this rfjax reads {FORMAT} version {VERSION}"
            )
        model = {name: facts["model"][name] for name in ("class", "sha256", "files")}
        files = tuple((folder / f"{shard['name']}.jsonl", shard["sha256"]) for shard in facts["shards"])
        digest = hashlib.sha256("".join(sha256 for _, sha256 in files).encode()).hexdigest()
        return Captions(
            {"sha256": digest, "model": model, "settings": facts["settings"]},
            facts["source"]["listing"],
            tuple(shard["size"] for shard in facts["shards"]),
            files,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--synthetic-captions {folder} holds no finished captions: {NAME}: {error}; the rfjax recaption command "
            "that made it goes on"
        ) from None


def _read(files) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for path, sha256 in files:
        for key, value in READERS[path.suffix](path, sha256):
            if key in found:
                raise RfjaxError(f"{path} has the key {key!r} twice; put an image's captions into one row")
            found[key] = texts(value)
    return found


def _json_lines(path: Path, sha256: str | None) -> Iterable[tuple[str, object]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RfjaxError(f"{path} cannot be read: {error.strerror}") from None
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise RfjaxError(f"{path} is not as rfjax recaption wrote it; remove its .json and give that command again")
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
                key = row["key"]
                if not isinstance(key, str):
                    raise ValueError("its key is no text")
                yield key, row["captions"] if "captions" in row else row["caption"]
            except (ValueError, KeyError, TypeError) as error:
                raise RfjaxError(f"{path}, line {number}: {error!r}; {HINT}") from None


def _parquet(path: Path, sha256: str | None) -> Iterable[tuple[str, object]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("reading Parquet needs pyarrow: pip install 'rfjax[prepare]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            column = next((name for name in ("captions", "caption") if name in file.schema_arrow.names), None)
            if column is None or "key" not in file.schema_arrow.names:
                raise RfjaxError(f"{path} has the columns {', '.join(file.schema_arrow.names)}; {HINT}")
            for batch in file.iter_batches(columns=["key", column]):
                yield from zip(batch["key"].to_pylist(), batch[column].to_pylist(), strict=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise RfjaxError(f"{path} cannot be read: {error}") from None


READERS: dict[str, Callable] = {".jsonl": _json_lines, ".parquet": _parquet}
