"""The manifest of a prepared corpus: what its shards hold, and how text features are put together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rfjax.data.batch import EncoderSlot
from rfjax.errors import ConfigError

NAME = "manifest.json"
FORMAT = "rfjax-prepared"
VERSION = 2
KINDS = ("images", "captions")  # the files of a shard's unit: its images of one split and one bucket
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class StoredEncoder:
    """One text encoder's features as they are stored: `context` [tokens, channels], `pooled` [pooled]."""

    name: str
    kind: str  # clip | t5
    tokens: int
    channels: int
    pooled: int  # 0: none


def layout(encoders: Sequence[StoredEncoder]) -> tuple[tuple[int, int], int, tuple[EncoderSlot, ...]]:
    """((tokens, size) of the context, size of pooled, the slots), as SD3 puts the encoders together.

    The CLIP models stand side by side over the first tokens, with zeros up to the widest; T5 stands
    after them. Pooled vectors follow each other (Esser et al. 2024, figure 2). Raises `ConfigError`
    for CLIP models of different lengths.
    """
    clips = [encoder for encoder in encoders if encoder.kind == "clip"]
    if len({encoder.tokens for encoder in clips}) > 1:
        lengths = ", ".join(f"{encoder.name} {encoder.tokens}" for encoder in clips)
        raise ConfigError(f"CLIP encoders side by side need as many tokens each; these have {lengths}")
    slots, channel, pooled, tokens = [], 0, 0, 0
    for encoder in clips:
        spans = (0, encoder.tokens), (channel, channel + encoder.channels), (pooled, pooled + encoder.pooled)
        slots.append(EncoderSlot(encoder.name, *spans))
        channel, pooled, tokens = channel + encoder.channels, pooled + encoder.pooled, encoder.tokens
    for encoder in encoders:
        if encoder.kind != "clip":
            slots.append(EncoderSlot(encoder.name, (tokens, tokens + encoder.tokens), (0, encoder.channels), (0, 0)))
            tokens += encoder.tokens
    size = max(slot.channels[1] for slot in slots)
    return (tokens, size), pooled, tuple(slots)


def bucket_name(pixels: Sequence[int]) -> str:
    """HEIGHTxWIDTH of an image's sides in pixels."""
    return f"{pixels[0]}x{pixels[1]}"


@dataclass(frozen=True)
class Bucket:
    """An aspect bucket: all its images have these sides, and how many there are."""

    pixels: tuple[int, int]  # height, width
    latents: tuple[int, int, int]  # height, width, channels
    images: Mapping[str, int]  # by split
    captions: Mapping[str, int]  # stored ones, by split

    @property
    def name(self) -> str:
        return bucket_name(self.pixels)


@dataclass(frozen=True)
class UnitFiles:
    """The files of one kind that a split and bucket has, in the shards' order, and how many records each has."""

    names: tuple[str, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """A prepared corpus's manifest.json, read and checked; `facts` is all of it."""

    folder: Path
    facts: Mapping

    @property
    def encoders(self) -> tuple[StoredEncoder, ...]:
        fields = StoredEncoder.__dataclass_fields__
        return tuple(StoredEncoder(**{name: each[name] for name in fields}) for each in self.facts["text"]["encoders"])

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """In the order in which they were asked for; the first is the default shape."""
        return tuple(
            Bucket(
                tuple(each["pixels"]),
                tuple(each["latents"]),
                {split: each["splits"][split]["images"] for split in SPLITS},
                {split: each["splits"][split]["captions"] for split in SPLITS},
            )
            for each in self.facts["buckets"]
        )

    @property
    def side(self) -> int:
        """What config.data.image_size must be: the longer side of the first bucket's latents."""
        return max(self.buckets[0].latents[:2])

    @property
    def shift(self) -> float:
        return self.facts["latents"]["shift"]

    @property
    def scale(self) -> float:
        return self.facts["latents"]["scale"]

    def count(self, split: str) -> int:
        """Images of a split, in all buckets."""
        return sum(bucket.images[split] for bucket in self.buckets)

    def files(self, split: str, bucket: str, kind: str) -> UnitFiles:
        """The files of a split and bucket that hold records of a kind."""
        units = [unit for unit in self._units() if (unit["split"], unit["bucket"]) == (split, bucket)]
        return UnitFiles(tuple(unit["files"][kind]["name"] for unit in units), tuple(unit[kind] for unit in units))

    def every_file(self) -> Iterator[Mapping]:
        """Name, bytes and sha256 of each file, in the shards' order."""
        return (file for unit in self._units() for file in unit["files"].values())

    def _units(self):
        return (unit for shard in self.facts["shards"] for unit in shard["units"])

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides the examples: what the shards hold, and how it is scaled and laid out."""
        held = [
            (unit["split"], unit["bucket"], *(unit["files"][kind]["sha256"] for kind in KINDS))
            for unit in self._units()
        ]
        shapes = [(bucket.name, bucket.latents) for bucket in self.buckets]
        decides = [VERSION, held, shapes, self.shift, self.scale, [repr(e) for e in self.encoders]]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def read(folder: str | Path) -> Manifest:
    """The manifest of a folder. `ConfigError` where there is none, it is of another version, or a
    file that it names is not there whole; bytes are compared by `rfjax inspect`, sizes here."""
    folder = Path(folder)
    path = folder / NAME
    if not path.is_file():
        shards = len(list(folder.glob("shard-*.json"))) if folder.is_dir() else 0
        hint = (
            f"{shards} of its shards are there: the command that prepares it goes on"
            if shards
            else "rfjax prepare makes one"
        )
        raise ConfigError(f"no prepared corpus in {folder}: it has no {NAME}; {hint}")
    try:
        facts = json.loads(path.read_text())
        known = facts["format"], facts["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error!r}; prepare the corpus again") from None
    if known != (FORMAT, VERSION):
        raise ConfigError(
            f"{path} is {known[0]} version {known[1]}; this rfjax reads {FORMAT} version {VERSION}: prepare the "
            "corpus again"
        )
    found = Manifest(folder, facts)
    for file in found.every_file():
        _check_size(folder / file["name"], file["bytes"])
    return found


def _check_size(path, size):
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{path}, which {NAME} names, cannot be read: {error.strerror}; copy it again") from None
    if found != size:
        raise ConfigError(
            f"{path} has {found} bytes, and {NAME} says {size}; copy it again, or remove its shard's .json and "
            "prepare again"
        )
