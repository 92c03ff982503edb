"""Writes the captions of `rfjax recaption`: a file of JSON lines for each part of a source, and captions.json."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

from PIL import Image

from rfjax.data import hashing
from rfjax.errors import RfjaxError
from rfjax.files import folder_moved_when_whole, write_whole
from rfjax.inputs import seals
from rfjax.prepare import clips, images
from rfjax.prepare.clips import ClipRule
from rfjax.prepare.filters import Filter, first_refusal
from rfjax.prepare.judge import decoded
from rfjax.prepare.options import check_range
from rfjax.prepare.part import LeftOut, Tell, listed, map_in_order
from rfjax.prepare.recipe import keys_facts
from rfjax.prepare.sources import Drop, Record, Source

NAME = "captions.json"
FORMAT, VERSION = "rfjax-captions", 1


@dataclass(frozen=True, kw_only=True)
class Showing:
    """The settings that decide which images of a source the captioner sees, how they are cropped, and how many are
    captioned at once."""

    crop: str
    batch_size: int
    shard_size: int
    corrupt_limit: float
    filters: tuple[Filter, ...]
    dropped_keys: Mapping[str, str]
    clips: ClipRule | None = None  # how clips are cut from files; None: images
    shown_frames: tuple[int, ...] = ()  # which frames of a clip the captioner sees

    def __post_init__(self):
        check_range(self, ("batch_size", "shard_size"), 1)
        check_range(self, ("corrupt_limit",), 0, 1)

    def facts(self) -> dict:
        """Returns the settings for JSON, with a hash in place of the keys to drop."""
        plain = {name: getattr(self, name) for name in ("crop", "batch_size", "shard_size", "corrupt_limit")}
        plain |= {"filters": [test.text for test in self.filters], "dropped_keys": keys_facts(self.dropped_keys)}
        if self.clips is not None:
            plain |= {"clips": asdict(self.clips), "shown_frames": list(self.shown_frames)}
        return plain


@dataclass(frozen=True)
class Shown:
    """An image, or frames of a clip, as the captioner sees it."""

    key: str
    images: tuple[Image.Image, ...]
    done: float | int  # how much of the part has been read up to here


class PartJson(TypedDict):
    """The content of a finished part's .json."""

    name: str
    recipe_sha256: str
    size: object  # the source part's size, in the source's own unit
    images: int
    captions: int
    empty: int
    dropped: dict[str, int]
    bytes: int
    sha256: str


class OfSource(TypedDict):
    listing: str


class OfModel(TypedDict):
    sha256: str
    files: dict[str, str]


class OfPart(TypedDict):
    name: str
    size: object
    images: int
    bytes: int
    sha256: str


class ListJson(TypedDict):
    """The keys of captions.json that `rfjax.prepare.joined_captions` reads."""

    source: OfSource
    model: OfModel
    settings: dict[str, object]
    images: int
    shards: list[OfPart]


def sizes(facts: Mapping) -> dict[str, int]:
    """Returns {file name: bytes}, from a part's .json."""
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
    """Writes the captions of a part's images to files whose names begin with `path`; returns the content of PATH.json.

    Raises `RfjaxError` if too many images are corrupt or a file cannot be written. Then no file of the part is left.
    """
    name = path.name
    window = showing.batch_size + threads if showing.clips is None else 2 * threads  # a file may give many clips
    left_out, lines = LeftOut(name), []
    counts = Counter(images=0, captions=0, empty=0)
    last = path.with_name(f"{name}.json")
    with folder_moved_when_whole(last, files_of=True) as inside, ThreadPoolExecutor(threads) as pool:
        looked = map_in_order(pool, lambda record: _look(record, showing), source.records(part), window)
        every = itertools.chain.from_iterable(looked)
        of_files = showing.clips is not None
        kept = left_out.sift(_without_repeats(every), tell, showing.corrupt_limit, of_files)
        number = 0
        while batch := list(itertools.islice(kept, showing.batch_size)):
            # The seed depends only on the batch's place in the part, so a part made again gets the same captions.
            draw = hashing.key("recaption", seed, name, number) % 2**63
            written = model.captions([shown.images for shown in batch], int(draw))
            for shown, captions in zip(batch, written, strict=True):
                counts.update(images=1, captions=len(captions), empty=not captions)
                lines.append(json.dumps({"key": shown.key, "captions": list(captions)}, ensure_ascii=False) + "\n")
            number += 1
        data = "".join(lines).encode()
        (inside / f"{name}.jsonl").write_bytes(data)
        facts = {
            "name": name,
            "recipe_sha256": recipe_hash,
            "size": source.sizes[part],
            **counts,
            "dropped": left_out.by_reason(),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        left_out.write_with(facts, inside)
    return facts


def _look(record: Record | Drop, showing: Showing) -> list[Shown | Drop]:
    """Decodes a record and crops its pictures for the captioner. Returns one `Shown` for an image or for each clip, and
    a `Drop` with the reason in place of whatever is left out."""
    if isinstance(record, Drop):
        return [record]
    if record.key in showing.dropped_keys:
        return [Drop(record.key, listed(showing.dropped_keys[record.key]), "", record.done)]
    return (_look_at_image if showing.clips is None else _look_at_clips)(record, showing)


def _look_at_image(record: Record, showing: Showing) -> list[Shown | Drop]:
    columns = record.metadata
    if any(test.measured for test in showing.filters):
        whole = decoded(record, lambda file: images.decode_unscaled(file, "none"))
        if isinstance(whole, Drop):
            return [whole]
        columns = {**columns, **images.size_columns(*whole.size)}
    if reason := first_refusal(showing.filters, columns):
        return [Drop(record.key, reason, "", record.done)]
    image = decoded(record, lambda file: images.decode_unscaled(file, showing.crop))
    return [image if isinstance(image, Drop) else Shown(record.key, (image,), record.done)]


def _look_at_clips(record: Record, showing: Showing) -> list[Shown | Drop]:
    if reason := first_refusal((test for test in showing.filters if not test.measured), record.metadata):
        return [Drop(record.key, reason, "", record.done)]
    pick = lambda file: clips.pick(file, showing.clips, showing.shown_frames, showing.crop)  # noqa: E731
    picked = decoded(record, pick, of_clips=True)
    if isinstance(picked, Drop):
        return [picked]
    columns = {**record.metadata, **images.size_columns(picked[0].width, picked[0].height)}
    if reason := first_refusal(showing.filters, columns):
        return [Drop(record.key, reason, "", record.done)]
    keys = clips.clip_keys(record.key, len(picked), showing.clips)
    dropped = {key: listed(showing.dropped_keys[key]) for key in keys if key in showing.dropped_keys}
    return [
        Drop(key, dropped[key], "", record.done) if key in dropped else Shown(key, frames.images, record.done)
        for key, frames in zip(keys, picked, strict=True)
    ]


def _without_repeats(looked: Iterable[Shown | Drop]) -> Iterator[Shown | Drop]:
    seen = set()
    for item in looked:
        if isinstance(item, Shown) and item.key in seen:
            yield Drop(item.key, "repeated key", "another image has this key, and captions are found by key", item.done)
            continue
        if isinstance(item, Shown):
            seen.add(item.key)
        yield item


def write_list(folder: Path, parts: Sequence[Mapping], *, source: Mapping, model: Mapping, settings: Mapping) -> dict:
    """Writes captions.json, whose presence marks the captions as complete, and returns its content.

    Raises `RfjaxError` if no image has a caption.
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
        lack = f"no caption was written for {facts['images']} images of {source['location']}"
        raise RfjaxError(f"{lack} ({facts['empty']} came out empty); give another --model or --prompt")
    write_whole({folder / NAME: json.dumps(seals.seal(facts), indent=1, ensure_ascii=False) + "\n"})
    return facts
