"""The content of a prepared corpus's manifest.json: its shape, and the rules that its numbers must keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from rfjax.data.prepared import text_encoders
from rfjax.data.prepared.autoencoders import FOLDER
from rfjax.errors import ConfigError
from rfjax.inputs.json_files import WrongJson, check_json, read_json

NAME = "manifest.json"
FORMAT = "rfjax-prepared"
VERSION = 2
KINDS = ("images", "captions")  # the files of a unit: a shard's examples of one split and one bucket
SPLITS = ("train", "validation")
REMEDY = "copy it again, or give the command that prepared the corpus again"


class FileFacts(TypedDict):
    name: str
    bytes: int
    sha256: str


class FilesOfUnit(TypedDict):
    images: FileFacts
    captions: FileFacts


class UnitFacts(TypedDict):
    bucket: str
    split: Literal["train", "validation"]
    images: int
    captions: int
    files: FilesOfUnit


class ShardFacts(TypedDict):
    name: str
    units: list[UnitFacts]


class CountFacts(TypedDict):
    images: int
    captions: int


class OfSplits(TypedDict):
    train: CountFacts
    validation: CountFacts


class BucketFacts(TypedDict):
    name: str
    pixels: list[int]
    latents: list[int]
    splits: OfSplits


class EncoderFacts(TypedDict):
    name: str
    kind: str
    tokens: int
    channels: int
    pooled: int


class TextFacts(TypedDict):
    encoders: list[EncoderFacts]


class Moments(TypedDict):
    mean: float
    std: float


class StatisticsFacts(TypedDict):
    all: Moments


class LatentFacts(TypedDict):
    shift: float
    scale: float
    scaling: str
    statistics: dict[str, StatisticsFacts]


class CaptionFacts(TypedDict):
    original: int
    synthetic: int


class SourceFacts(TypedDict):
    kind: str
    location: str
    passed_over: NotRequired[dict[str, int]]
    noticed: NotRequired[dict[str, int]]


class ModelFacts(TypedDict):
    sha256: str
    files: dict[str, str]


class ModelsFacts(TypedDict):
    folder: str
    variant: str
    parts: dict[str, ModelFacts]  # each also has the key `class`, which cannot be the name of a field


class ClipFacts(TypedDict):
    frames: int
    rate: str
    most: int


class RecipeFacts(TypedDict):
    compute_dtype: str
    clips: NotRequired[ClipFacts]
    text_settings: NotRequired[dict[str, dict[str, int | str]]]


class ManifestFacts(TypedDict):
    source: SourceFacts
    splits: OfSplits
    buckets: list[BucketFacts]
    latents: LatentFacts
    text: TextFacts
    captions: CaptionFacts
    dropped: dict[str, int]
    converted: dict[str, int]
    truncated: dict[str, int]
    models: ModelsFacts
    recipe: RecipeFacts
    shards: list[ShardFacts]


def bucket_name(pixels: Sequence[int]) -> str:
    """Returns a bucket's name: HEIGHTxWIDTH in pixels for images, FRAMESxHEIGHTxWIDTH for clips."""
    return "x".join(map(str, pixels))


def unit_file(shard: str, bucket: str, split: str, kind: str) -> str:
    """The name of the file that holds a shard's records of one kind (images or captions), split and bucket. The name
    contains all four, so that files cannot be mixed up."""
    return f"{shard}.{bucket}.{split}.{kind}.array_record"


def read(path: Path) -> ManifestFacts:
    """Reads and checks a manifest.json. Raises `ConfigError`, naming the file, the key and the remedy."""
    about = read_json(path, remedy=REMEDY, error=ConfigError)
    known = about.get("format"), about.get("version")
    if known != (FORMAT, VERSION):
        given, wanted = f"{known[0]} version {known[1]}", f"{FORMAT} version {VERSION}"
        raise ConfigError(f"{path} is {given}, and this rfjax reads {wanted}; prepare the corpus again")
    try:
        facts = check_json(about, ManifestFacts)
        check(facts)
        return facts
    except WrongJson as error:
        raise ConfigError(f"{path} was changed or damaged after it was written: {error}; {REMEDY}") from None


def check(facts: Mapping) -> None:
    """Raises `WrongJson` if the manifest contradicts itself, in sums over splits and buckets, in names, in sizes of
    latents or in the list of models, and for a number that is too small.

    Counts decide which caption an image gets, so a single wrong count must be found.
    """
    buckets = {bucket["name"]: bucket for bucket in facts["buckets"]}
    for number, bucket in enumerate(facts["buckets"]):
        where = f"buckets[{number}]"
        for key, sides in (("pixels", (2, 3)), ("latents", (3, 4))):
            if len(bucket[key]) not in sides or min(bucket[key]) < 1:
                numbers = " or ".join(map(str, sides))
                raise WrongJson(f"{where}.{key} is {bucket[key]}; it has {numbers} numbers of at least 1")
        _equal(f"the number of sides in {where}.latents", len(bucket["latents"]), len(bucket["pixels"]) + 1)
        _equal(f"{where}.name", bucket["name"], bucket_name(bucket["pixels"]))
    if not buckets:
        raise WrongJson("buckets is empty")
    _equal("the number of buckets' names", len(buckets), len(facts["buckets"]))
    forms = {
        (p / q, b["latents"][-1])
        for b in buckets.values()
        for p, q in zip(b["pixels"][-2:], b["latents"][-3:-1], strict=True)
    }
    if len(forms) > 1:
        said = "; ".join(f"{b['name']}: {b['latents']}" for b in buckets.values())
        raise WrongJson(f"buckets have latents of several reductions or channels: {said}")
    if not facts["latents"]["scale"] > 0:
        raise WrongJson(f"latents.scale is {facts['latents']['scale']}; it is above 0")
    _check_models(facts["text"]["encoders"], facts["models"]["parts"])
    of_bucket, of_split = Counter(), Counter()
    for shard_number, shard in enumerate(facts["shards"]):
        for number, unit in enumerate(shard["units"]):
            where = f"shards[{shard_number}].units[{number}]"
            if unit["bucket"] not in buckets:
                raise WrongJson(f"{where}.bucket is {unit['bucket']!r}, which is none of {', '.join(buckets)}")
            for kind in KINDS:
                file, count = unit["files"][kind], unit[kind]
                name = unit_file(shard["name"], unit["bucket"], unit["split"], kind)
                _equal(f"{where}.files.{kind}.name", file["name"], name)
                if count < 1 or file["bytes"] < 1:
                    raise WrongJson(f"{where} has {count} {kind} in {file['bytes']} bytes; both are at least 1")
                of_bucket[unit["bucket"], unit["split"], kind] += count
                of_split[unit["split"], kind] += count
    _once("shards", [shard["name"] for shard in facts["shards"]])
    _once("units", [unit["files"]["images"]["name"] for shard in facts["shards"] for unit in shard["units"]])
    for split in SPLITS:
        for kind in KINDS:
            _equal(f"splits.{split}.{kind}", facts["splits"][split][kind], of_split[split, kind], "its units")
            for number, bucket in enumerate(facts["buckets"]):
                where = f"buckets[{number}].splits.{split}.{kind}"
                _equal(where, bucket["splits"][split][kind], of_bucket[bucket["name"], split, kind], "its units")


def _check_models(encoders, parts):
    if not encoders:
        raise WrongJson("text.encoders is empty")
    _once("text.encoders", [encoder["name"] for encoder in encoders])
    for number, encoder in enumerate(encoders):
        if min(encoder["tokens"], encoder["channels"]) < 1 or encoder["pooled"] < 0:
            raise WrongJson(f"text.encoders[{number}] has sizes below 1")
        if encoder["kind"] not in text_encoders.KINDS:
            raise WrongJson(
                f"text.encoders[{number}].kind is {encoder['kind']!r}, none of {', '.join(text_encoders.KINDS)}"
            )
    for name in (FOLDER, *(encoder["name"] for encoder in encoders)):
        if name not in parts:
            raise WrongJson(f"models.parts has no {name}")
        if not isinstance(parts[name].get("class"), str):
            raise WrongJson(f"models.parts.{name}.class is no text")


def _equal(where, value, wanted, of="its other numbers"):
    if value != wanted:
        raise WrongJson(f"{where} is {value!r}, and {of} make it {wanted!r}")


def _once(where, names):
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise WrongJson(f"{where} has {twice[0]!r} twice")
