"""What decides the bytes of a prepared corpus; two preparations with equal recipes make the same shards."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rfjax.data import hashing
from rfjax.data.prepared.manifest import bucket_name
from rfjax.errors import ConfigError
from rfjax.files import write_whole
from rfjax.prepare.captions import CaptionColumns
from rfjax.prepare.filters import Filter

VERSION = 2  # raised whenever the same recipe makes other bytes
NAME = "recipe.json"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything but the frozen models and the source, whose hashes stand beside it in recipe.json."""

    buckets: tuple[tuple[int, int], ...] = ((256, 256),)  # (height, width) in pixels; the first is the default shape
    resample: str = "lanczos"
    precision: str = "float16"  # of latents and contexts, as stored
    pooled_precision: str = "float32"
    t5_tokens: int = 77
    batch_size: int = 32  # images that the models see at once: sums in floating point depend on it
    compute_dtype: str = "float32"
    shard_size: int = 1024
    validation_share: float = 0.01
    corrupt_limit: float = 0.1
    thumbnail: int = 64
    columns: CaptionColumns = field(default_factory=CaptionColumns)
    filters: tuple[Filter, ...] = ()
    dropped_keys: Mapping[str, str] = field(default_factory=dict)  # key -> the reason that is counted

    def __post_init__(self):
        low = {"t5_tokens": 1, "batch_size": 1, "shard_size": 1, "thumbnail": 8}
        for name, least in low.items():
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        check_buckets(self.buckets)
        for name in ("validation_share", "corrupt_limit"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must lie in [0, 1]")

    def split_of(self, key: str) -> str:
        """train or validation, a function of the record's key alone: growing a corpus moves nothing across."""
        draw = hashing.uniforms(hashing.key("prepared split", key), np.zeros(1, np.uint64), 1)[0, 0]
        return "validation" if draw < self.validation_share else "train"

    def facts(self) -> dict:
        """For JSON; the keys to drop, of which there may be millions, as their hash."""
        facts = dataclasses.asdict(dataclasses.replace(self, filters=(), dropped_keys={}))
        facts["filters"] = [one.text for one in self.filters]
        names = json.dumps(facts["columns"].pop("class_names"), sort_keys=True)
        facts["columns"]["class_names_sha256"] = hashlib.sha256(names.encode()).hexdigest()
        facts["dropped_keys"] = keys_facts(self.dropped_keys)
        return {"version": VERSION} | facts


def parse_buckets(text: str) -> tuple[tuple[int, int], ...]:
    """(height, width) of each `HEIGHTxWIDTH`, with commas between; checked as `check_buckets` does."""
    try:
        buckets = tuple(tuple(map(int, each.split("x"))) for each in text.split(","))
        if any(len(bucket) != 2 for bucket in buckets):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"--buckets is {text!r}; it is HEIGHTxWIDTH in pixels, several with commas between: "
            "1024x1024,1216x832,832x1216"
        ) from None
    check_buckets(buckets)
    return buckets


def check_buckets(buckets: tuple[tuple[int, int], ...]) -> None:
    """`ConfigError` for sides below 8 pixels, and for two buckets of one aspect: no image could tell them apart."""
    for number, (height, width) in enumerate(buckets):
        if min(height, width) < 8:
            given = (
                f"--size is {height}"
                if buckets == ((height, height),)
                else f"--buckets has {bucket_name((height, width))}"
            )
            raise ConfigError(f"{given}; a side must be at least 8")
        for other in buckets[:number]:
            if other[0] * width == other[1] * height:
                raise ConfigError(
                    f"--buckets has {bucket_name(other)} and {bucket_name((height, width))}, which are of one "
                    "aspect; give one of them"
                )


def settle(folder: Path, facts: Mapping) -> str:
    """Writes recipe.json, or holds `facts` against the one that is there; returns the recipe's hash.

    Raises `ConfigError` with what differs: shards of two recipes must not stand in one folder.
    """
    path = folder / NAME
    facts = json.loads(json.dumps(facts))
    if not path.exists():
        write_whole({path: json.dumps(facts, indent=1, sort_keys=True) + "\n"})
    try:
        there = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; give another folder") from None
    ours, theirs = _flat(facts), _flat(there)
    wrong = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    if wrong:
        said = "; ".join(f"{key} was {theirs.get(key)!r} and is now {ours.get(key)!r}" for key in wrong[:4])
        raise ConfigError(
            f"{folder} holds shards of another preparation: {said}; give the same command as before or another "
            "folder, or remove this one"
        )
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read_settled(folder: Path, *names: str) -> dict:
    """What the folder's recipe.json says under these names, for a merge that need not load the models."""
    try:
        there = json.loads((folder / NAME).read_text())
        return {name: there[name] for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"nothing to merge in {folder}: {NAME} cannot be read ({error}); give the command without --merge"
        ) from None


def keys_facts(dropped_keys: Mapping[str, str]) -> dict:
    """For JSON: keys to drop, of which there may be millions, as their number and hash."""
    keys = json.dumps(sorted(dropped_keys.items()))
    return {"count": len(dropped_keys), "sha256": hashlib.sha256(keys.encode()).hexdigest()}


def _flat(facts, prefix=""):
    found = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
