"""The files of captions that `rfjax recaption` writes: JSON lines for each part of a source, and captions.json."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rfjax.data import hashing
from rfjax.errors import ConfigError, RfjaxError
from rfjax.files import folder_moved_when_whole, write_whole
from rfjax.prepare import images
from rfjax.prepare.filters import Filter
from rfjax.prepare.part import CORRUPT, LeftOut, Tell, in_order
from rfjax.prepare.recipe import keys_facts
from rfjax.prepare.sources import Drop, Record, Source

NAME = "captions.json"
FORMAT, VERSION = "rfjax-captions", 1


@dataclass(frozen=True, kw_only=True)
class Showing:
    """Which images are shown to the model, and how."""

    crop: str
    batch_size: int
    shard_size: int
    corrupt_limit: float
    filters: tuple[Filter, ...]
    dropped_keys: Mapping[str, str]

    def __post_init__(self):
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.corrupt_limit <= 1:
            raise ConfigError(f"--corrupt-limit is {self.corrupt_limit}; it must lie in [0, 1]")

    def facts(self) -> dict:
        """For JSON; the keys to drop as their hash."""
        plain = {name: getattr(self, name) for name in ("crop", "batch_size", "shard_size", "corrupt_limit")}
        return plain | {"filters": [one.text for one in self.filters], "dropped_keys": keys_facts(self.dropped_keys)}


@dataclass(frozen=True)
class Shown:
    """An image as the model sees it."""

    key: str
    image: Image.Image
    done: float | int


def sizes(facts: Mapping) -> dict[str, int]:
    """The bytes of a part's file, by name, as its .json says."""
    return {f"{facts['name']}.jsonl": facts["bytes"]}


def write_part(
    source: Source,
    part: int,
    path: Path,
    *,
    showing: Showing,
    recipe_hash: str,
    model,
    seed: int,
    threads: int = 4,
    tell: Tell = lambda done, kept, dropped: None,
) -> dict:
    """Writes the captions of a part's images, in files whose names begin with `path`; returns what its .json says.

    Raises `RfjaxError` where too many images are corrupt or nothing more can be written; then nothing of the part
    is left.
    """
    name = path.name
    left_out, lines = LeftOut(name), []
    counts = Counter(images=0, captions=0, empty=0)
    batch, batches = [], 0

    def write():
        nonlocal batch, batches
        # a function of the batch's place alone, so that a part that is made again draws the same
        draw = hashing.key("recaption", seed, name, batches) % 2**63
        written = model.captions([one.image for one in batch], int(draw))
        for one, captions in zip(batch, written, strict=True):
            counts.update(images=1, captions=len(captions), empty=not captions)
            lines.append(json.dumps({"key": one.key, "captions": list(captions)}, ensure_ascii=False) + "\n")
        batch, batches = [], batches + 1

    with (
        folder_moved_when_whole(path.with_name(f"{name}.json"), files_of=True) as inside,
        ThreadPoolExecutor(threads) as pool,
    ):
        window = showing.batch_size + threads
        looked = in_order(pool, lambda record: _look(record, showing), source.records(part), window)
        for one in left_out.sift(_without_repeats(looked), tell, showing.corrupt_limit):
            batch.append(one)
            if len(batch) == showing.batch_size:
                write()
        if batch:
            write()
        data = "".join(lines).encode()
        (inside / f"{name}.jsonl").write_bytes(data)
        (inside / f"{name}.dropped.jsonl").write_text(left_out.lines(), encoding="utf-8")
        facts = {
            "name": name,
            "recipe_sha256": recipe_hash,
            "size": source.sizes[part],
            **counts,
            "dropped": left_out.by_reason(),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        (inside / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def _look(record: Record | Drop, showing: Showing) -> Shown | Drop:
    """A record's image as the model sees it, or why it is left out."""
    if isinstance(record, Drop):
        return record
    if record.key in showing.dropped_keys:
        return Drop(record.key, showing.dropped_keys[record.key], "", record.done)
    try:
        whole = images.unscaled(record.image, "none") if any(one.measured for one in showing.filters) else None
        columns = record.metadata if whole is None else {**record.metadata, **images.measured(*whole.size)}
        for reason in (one.refuses(columns) for one in showing.filters):
            if reason:
                return Drop(record.key, reason, "", record.done)
        return Shown(record.key, images.unscaled(record.image, showing.crop), record.done)
    except images.CorruptImage as error:
        return Drop(record.key, CORRUPT, str(error), record.done)


def _without_repeats(looked: Iterable[Shown | Drop]) -> Iterator[Shown | Drop]:
    seen = set()
    for one in looked:
        if isinstance(one, Shown) and one.key in seen:
            one = Drop(one.key, "repeated key", "captions are found by their image's key", one.done)
        elif isinstance(one, Shown):
            seen.add(one.key)
        yield one


def write_list(folder: Path, parts: Sequence[Mapping], *, source: Mapping, model: Mapping, settings: Mapping) -> dict:
    """Writes captions.json, which says that the parts are all there, and returns what it says.

    Raises `RfjaxError` where no image has a caption.
    """
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "source": dict(source),
        "model": dict(model),
        "settings": dict(settings),
        **{name: sum(part[name] for part in parts) for name in ("images", "captions", "empty")},
        "dropped": dict(sum((Counter(part["dropped"]) for part in parts), Counter())),
        "shards": [{name: part[name] for name in ("name", "size", "images", "bytes", "sha256")} for part in parts],
    }
    if not facts["captions"]:
        raise RfjaxError(
            f"no caption was written for {facts['images']} images of {source['location']}, of which {facts['empty']} "
            "came out empty; is --model one that writes captions, with this --prompt?"
        )
    write_whole({folder / NAME: json.dumps(facts, indent=1, ensure_ascii=False) + "\n"})
    return facts
