"""The recipe of a prepared corpus: all settings that decide its bytes. With one source, the same models and versions of
the libraries, and one kind of device, equal recipes make equal shards."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from rfjax.data import hashing
from rfjax.data.prepared.manifest_facts import EncoderFacts, ModelFacts, bucket_name
from rfjax.errors import ConfigError
from rfjax.files import write_whole
from rfjax.inputs.json_files import read_json
from rfjax.limits import SIDE_END
from rfjax.prepare.captions import JOINED, CaptionColumns
from rfjax.prepare.clips import ClipRule
from rfjax.prepare.filters import Filter
from rfjax.prepare.options import check_range

VERSION = 3  # raised whenever the same settings come to make different bytes
NAME = "recipe.json"


class LatentForm(TypedDict):
    """The form of the latents, and the autoencoder's scaling."""

    reduction: int  # an image's side in pixels divided by its latent's side
    channels: int
    shift: float
    scale: float
    time_reduction: NotRequired[int]  # (frames of a clip - 1) / (frames of its latent - 1); left out if this is 1


DECIDE_NO_BYTES = {"recipe.corrupt_limit"}  # the limit decides when to stop, not what is made until then
# Written only where set, so that older folders keep their recipe.
WRITTEN_WHERE_SET = ("validation_keys", "autoencoder", "text_settings", "text_precision", "clips")
_WORDS = {"source.listing": "the hash of the source's file names and sizes (source.listing)"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings that decide the bytes of the shards. recipe.json also has the hashes of the frozen models and of the
    source."""

    buckets: tuple[tuple[int, int], ...] = ((256, 256),)  # (height, width) in pixels; the first is the default shape
    resample: str = "lanczos"
    precision: str = "float16"  # type of stored latents, and of contexts without `text_precision`
    text_precision: str = ""  # type of stored contexts, one of `options.TEXT_PRECISIONS`; "": `precision`
    pooled_precision: str = "float32"
    t5_tokens: int = 77
    batch_size: int = 32  # images that the models see at once; floating-point sums depend on it
    compute_dtype: str = "float32"
    shard_size: int = 1024
    validation_share: float = 0.01
    corrupt_limit: float = 0.1
    thumbnail: int = 64
    columns: CaptionColumns = field(default_factory=CaptionColumns)
    filters: tuple[Filter, ...] = ()
    dropped_keys: Mapping[str, str] = field(default_factory=dict)  # key -> the reason under which it is counted
    validation_keys: frozenset[str] = frozenset()  # if any, these are the validation images, and no others
    autoencoder: str = ""  # "identity": pixels; "": the model in the folder
    text_settings: Mapping[str, Mapping[str, int | str]] = field(default_factory=dict)  # encoder -> field -> value
    clips: ClipRule | None = None  # how clips are cut from files; None: images

    def __post_init__(self):
        check_range(self, ("t5_tokens", "batch_size", "shard_size"), 1)
        check_range(self, ("thumbnail",), 8)
        check_buckets(self.buckets)
        check_range(self, ("validation_share", "corrupt_limit"), 0, 1)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The buckets in pixels: (height, width), or (frames, height, width) of clips."""
        frames = () if self.clips is None else (self.clips.frames,)
        return tuple((*frames, *bucket) for bucket in self.buckets)

    def split_of(self, key: str) -> str:
        """Returns the split of the record `key`, "train" or "validation". The source's other records do not affect it,
        so an image stays in its split if the source grows."""
        if self.validation_keys:
            return "validation" if key in self.validation_keys else "train"
        draw = hashing.uniforms(hashing.key("prepared split", key), np.zeros(1, np.uint64), 1)[0, 0]
        return "validation" if draw < self.validation_share else "train"

    def precision_of(self, name: str) -> str:
        """Returns the type in which the array called `name` of a record is stored."""
        if name.endswith(".pooled"):
            return self.pooled_precision
        return self.precision if name == "latents" else self.text_precision or self.precision

    def facts(self) -> dict:
        """Returns the recipe for JSON, with hashes in place of class names and lists of keys, which may be long."""
        facts = dataclasses.asdict(dataclasses.replace(self, filters=(), dropped_keys={}, validation_keys=frozenset()))
        for name in WRITTEN_WHERE_SET:
            if not facts[name]:
                del facts[name]
        facts["filters"] = [test.text for test in self.filters]
        names = json.dumps(facts["columns"].pop("class_names"), sort_keys=True)
        facts["columns"]["class_names_sha256"] = hashlib.sha256(names.encode()).hexdigest()
        facts["dropped_keys"] = keys_facts(self.dropped_keys)
        if self.clips is not None and self.clips.most > 1 and (self.dropped_keys or self.columns.synthetic == JOINED):
            facts["clips"]["keys"] = "of clips, too"  # an earlier version knew no keys of clips, and made other shards
        if self.validation_keys:
            facts["validation_keys"] = keys_facts(dict.fromkeys(self.validation_keys, ""))
        return {"version": VERSION} | facts


def parse_buckets(text: str) -> tuple[tuple[int, int], ...]:
    """Parses `HEIGHTxWIDTH,HEIGHTxWIDTH,...` to (height, width) pairs. Raises `ConfigError` for any other text, and for
    buckets that `check_buckets` refuses."""
    try:
        buckets = tuple(tuple(map(int, bucket.split("x"))) for bucket in text.split(","))
        if any(len(bucket) != 2 for bucket in buckets):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"--buckets is {text!r}; it must be HEIGHTxWIDTH in pixels, separated by commas, such as 1024x1024,1216x832"
        ) from None
    check_buckets(buckets)
    return buckets


def check_buckets(buckets: tuple[tuple[int, int], ...]) -> None:
    """Raises `ConfigError` for sides below 8 pixels or above `SIDE_END`, and for two buckets of the same aspect."""
    names = [bucket_name(bucket) for bucket in buckets]
    for number, (height, width) in enumerate(buckets):
        if max(height, width) > SIDE_END:
            raise ConfigError(f"--buckets has {names[number]}; a side must be at most {SIDE_END}")
        if min(height, width) < 8:
            alone = buckets == ((height, height),)
            given = f"--size is {height}" if alone else f"--buckets has {names[number]}"
            raise ConfigError(f"{given}; a side must be at least 8")
        for other in range(number):
            if buckets[other][0] * width == buckets[other][1] * height:
                both = f"{names[other]} and {names[number]}"
                raise ConfigError(f"--buckets has {both}, which have the same aspect ratio; give one of them")


def claim(folder: Path, facts: Mapping) -> str:
    """Writes `facts` as the folder's recipe.json, or compares them with an existing one. Returns a hash of
    the file's content.

    Values in `DECIDE_NO_BYTES` may differ. Then recipe.json keeps its own, so that the hash in the parts stays valid.

    Raises `ConfigError` with all other differences: shards of two recipes must not be in one folder.
    """
    path = folder / NAME
    facts = json.loads(json.dumps(facts))
    if not path.exists():
        write_whole({path: json.dumps(facts, indent=1, sort_keys=True) + "\n"})
    there = read_json(path, remedy="give another folder, or remove it", error=ConfigError)
    ours, theirs = _flatten(facts), _flatten(there)
    keys = sorted((ours.keys() | theirs.keys()) - DECIDE_NO_BYTES)
    wrong = [key for key in keys if ours.get(key) != theirs.get(key)]
    if wrong:
        said = "; ".join(
            f"{_WORDS.get(key, key)} was {theirs.get(key)!r} and is now {ours.get(key)!r}" for key in wrong[:4]
        )
        raise ConfigError(f"{folder} has another recipe: {said}; give the command as before, or another folder")
    return hashlib.sha256(json.dumps(there, sort_keys=True).encode()).hexdigest()


def read_recipe(folder: Path, *names: str) -> dict:
    """Reads the named values of the folder's recipe.json, so that a merge need not load the models."""
    remedy = "give the command without --merge"
    try:
        there = read_json(folder / NAME, MadeWith, remedy=remedy, error=ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"nothing to merge in {folder}: it has no {NAME}; {remedy}") from None
    lacking = [name for name in names if name not in there]
    if lacking:
        raise ConfigError(f"nothing to merge in {folder}: {NAME} has no {lacking[0]}; {remedy}")
    return {name: there[name] for name in names}


class MadeWith(TypedDict, total=False):
    """What recipe.json says about models. `rfjax prepare` writes the first three keys, and `rfjax recaption` writes the
    last."""

    models: dict[str, ModelFacts]
    encoders: list[EncoderFacts]
    latents: LatentForm
    model: ModelFacts


def keys_facts(dropped_keys: Mapping[str, str]) -> dict:
    """Returns what stands in JSON for {key: reason}: the number of keys, and one hash of all keys and reasons. There
    may be millions of keys."""
    keys = json.dumps(sorted(dropped_keys.items()))
    return {"count": len(dropped_keys), "sha256": hashlib.sha256(keys.encode()).hexdigest()}


def _flatten(facts, prefix=""):
    found = {}
    for key, value in facts.items():
        found |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
