"""The manifest of a prepared corpus: what its shards hold, and how text features are put together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rfjax.data.batch import EncoderSlot
from rfjax.errors import ConfigError

NAME = "manifest.json"
FORMAT = "rfjax-prepared"
VERSION = 1
KINDS = ("images", "captions")  # the files of a shard's split


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


@dataclass(frozen=True)
class SplitFiles:
    """A split's files of one kind, in order, and how many records each has."""

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

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return tuple(self.facts["latents"]["shape"])

    @property
    def shift(self) -> float:
        return self.facts["latents"]["shift"]

    @property
    def scale(self) -> float:
        return self.facts["latents"]["scale"]

    def count(self, split: str) -> int:
        return self.facts["splits"][split]["images"]

    def files(self, split: str, kind: str) -> SplitFiles:
        """The files of a split that hold records of a kind."""
        parts = [shard["splits"][split] for shard in self.facts["shards"] if shard["splits"][split]["images"]]
        return SplitFiles(tuple(part["files"][kind]["name"] for part in parts), tuple(part[kind] for part in parts))

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides the examples: what the shards hold, and how it is scaled and laid out."""
        held = [
            {split: {kind: file["sha256"] for kind, file in part["files"].items()} for split, part in shard["splits"].items()}
            for shard in self.facts["shards"]
        ]
        decides = [VERSION, held, self.facts["latents"]["shape"], self.shift, self.scale, [repr(e) for e in self.encoders]]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def read(folder: str | Path) -> Manifest:
    """The manifest of a folder. `ConfigError` where there is none, it is of another version, or a
    file that it names is not there whole; bytes are compared by `rfjax inspect`, sizes here."""
    folder = Path(folder)
    path = folder / NAME
    if not path.is_file():
        shards = len(list(folder.glob("shard-*.json"))) if folder.is_dir() else 0
        hint = f"{shards} of its shards are there: the command that prepares it goes on" if shards else "rfjax prepare makes one"
        raise ConfigError(f"no prepared corpus in {folder}: it has no {NAME}; {hint}")
    try:
        facts = json.loads(path.read_text())
        known = facts["format"], facts["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error!r}; prepare the corpus again") from None
    if known != (FORMAT, VERSION):
        raise ConfigError(f"{path} is {known[0]} version {known[1]}; this rfjax reads {FORMAT} version {VERSION}: prepare the corpus again")
    for shard in facts["shards"]:
        for part in shard["splits"].values():
            for file in part["files"].values():
                _check_size(folder / file["name"], file["bytes"])
    return Manifest(folder, facts)


def _check_size(path, size):
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{path}, which {NAME} names, cannot be read: {error.strerror}; copy it again") from None
    if found != size:
        raise ConfigError(f"{path} has {found} bytes, and {NAME} says {size}; copy it again, or remove its shard's .json and prepare again")
