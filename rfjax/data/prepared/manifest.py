"""The manifest of a prepared corpus: its shards' files and numbers, and the layout of its text features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rfjax.data.batch import EncoderSlot, latent_shape, written_shape
from rfjax.data.prepared import manifest_facts
from rfjax.data.prepared.autoencoders import FOLDER, IDENTITY
from rfjax.data.prepared.manifest_facts import KINDS, NAME, SPLITS, VERSION, bucket_name
from rfjax.data.prepared.text_encoders import SIDE_BY_SIDE
from rfjax.errors import ConfigError
from rfjax.inputs import seals

COPY_AGAIN = "copy the corpus again, or remove the shard's .json and prepare again"


@dataclass(frozen=True)
class StoredEncoder:
    """A text encoder whose features a corpus stores, and their sizes: the context is [tokens, channels], the pooled
    vector [pooled]."""

    name: str
    kind: str  # a row of `text_encoders.KINDS`
    tokens: int
    channels: int
    pooled: int  # 0: none


def layout(encoders: Sequence[StoredEncoder]) -> tuple[tuple[int, int], int, tuple[EncoderSlot, ...]]:
    """Returns ((tokens, size) of the context, size of pooled, slots). Encoders are joined as in SD3 (Esser et al. 2024,
    fig. 2).

    The CLIP models are side by side along the channels of the first tokens, with zeros up to the widest encoder's
    channels. The tokens of all other encoders follow. Pooled vectors are concatenated. Raises `ConfigError` for CLIP
    models of different lengths.
    """
    clips = [encoder for encoder in encoders if encoder.kind == SIDE_BY_SIDE]
    if len({encoder.tokens for encoder in clips}) > 1:
        lengths = ", ".join(f"{encoder.name} {encoder.tokens}" for encoder in clips)
        raise ConfigError(f"CLIP encoders side by side need as many tokens each; these have {lengths}")
    slots, channel, pooled, tokens = [], 0, 0, 0
    for encoder in clips:
        spans = (0, encoder.tokens), (channel, channel + encoder.channels), (pooled, pooled + encoder.pooled)
        slots.append(EncoderSlot(encoder.name, *spans))
        channel, pooled, tokens = channel + encoder.channels, pooled + encoder.pooled, encoder.tokens
    for encoder in encoders:
        if encoder.kind != SIDE_BY_SIDE:
            own = (pooled, pooled + encoder.pooled) if encoder.pooled else (0, 0)
            slots.append(EncoderSlot(encoder.name, (tokens, tokens + encoder.tokens), (0, encoder.channels), own))
            tokens, pooled = tokens + encoder.tokens, pooled + encoder.pooled
    return (tokens, max(slot.channels[1] for slot in slots)), pooled, tuple(slots)


@dataclass(frozen=True)
class Bucket:
    """An aspect bucket: the sides that all its images or clips have, and its numbers of images and captions."""

    pixels: tuple[int, ...]  # height, width; of clips (frames, height, width)
    latents: tuple[int, ...]  # frames, height, width, channels; may be given as (height, width, channels) of an image
    images: Mapping[str, int]  # number of images, by split
    captions: Mapping[str, int]  # number of stored captions, by split

    def __post_init__(self):
        object.__setattr__(self, "latents", latent_shape(self.latents))

    @property
    def name(self) -> str:
        return bucket_name(self.pixels)

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of the latents in records and in the manifest, where an image's latents have no frame axis."""
        return written_shape(self.latents)


@dataclass(frozen=True)
class UnitFiles:
    """The names of the files that hold one kind of record (images or captions) of one split and bucket, in the shards'
    order, and the number of records in each."""

    names: tuple[str, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """A prepared corpus's manifest.json, read and checked; `facts` is its whole content."""

    folder: Path
    facts: Mapping

    @property
    def encoders(self) -> tuple[StoredEncoder, ...]:
        fields = StoredEncoder.__dataclass_fields__
        return tuple(StoredEncoder(**{name: each[name] for name in fields}) for each in self.facts["text"]["encoders"])

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets in the order in which they were asked for; the first is the default shape."""
        buckets = []
        for each in self.facts["buckets"]:
            images, captions = ({split: each["splits"][split][kind] for split in SPLITS} for kind in KINDS)
            buckets.append(Bucket(tuple(each["pixels"]), tuple(each["latents"]), images, captions))
        return tuple(buckets)

    @property
    def side(self) -> int:
        """The value for config.data.image_size: the longer side of the first bucket's latents."""
        return max(self.buckets[0].latents[1:3])

    @property
    def of_pixels(self) -> bool:
        """Whether latents are pixels, so that no autoencoder is needed."""
        return self.facts["models"]["parts"][FOLDER]["class"] == IDENTITY

    @property
    def shift(self) -> float:
        return self.facts["latents"]["shift"]

    @property
    def scale(self) -> float:
        return self.facts["latents"]["scale"]

    def count(self, split: str) -> int:
        """The number of a split's images, in all buckets."""
        return sum(bucket.images[split] for bucket in self.buckets)

    def files(self, split: str, bucket: str, kind: str) -> UnitFiles:
        """The files with one kind of records (images or captions) of a split and bucket."""
        units = [unit for unit in self._units() if (unit["split"], unit["bucket"]) == (split, bucket)]
        return UnitFiles(tuple(unit["files"][kind]["name"] for unit in units), tuple(unit[kind] for unit in units))

    def every_file(self) -> Iterator[Mapping]:
        """The name, bytes and sha256 of each file, in the shards' order."""
        return (file for unit in self._units() for file in unit["files"].values())

    def _units(self):
        return (unit for shard in self.facts["shards"] for unit in shard["units"])

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides the examples: the files, the latents' shapes, shift and scale, and the encoders.
        Numbers of records are left out, since the files decide them (`check_records`)."""
        units = self._units()
        held = [(unit["split"], unit["bucket"], *(unit["files"][kind]["sha256"] for kind in KINDS)) for unit in units]
        shapes = [(bucket.name, bucket.stored) for bucket in self.buckets]
        decides = [VERSION, held, shapes, self.shift, self.scale, [repr(e) for e in self.encoders]]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def read(folder: str | Path) -> Manifest:
    """The manifest of a folder. Raises `ConfigError` if there is none, if it has another version, if its numbers
    contradict each other (`manifest_facts.check`), and if a file has another size than the manifest says.
    `check_records` and `rfjax inspect` check the files' contents."""
    folder = Path(folder)
    path = folder / NAME
    if not path.is_file():
        shards = len(list(folder.glob("shard-*.json"))) if folder.is_dir() else 0
        hint = f"it has {shards} shards: run its rfjax prepare command again" if shards else "rfjax prepare makes one"
        raise ConfigError(f"no prepared corpus in {folder}: it has no {NAME}; {hint}")
    found = Manifest(folder, manifest_facts.read(path))
    for file in found.every_file():
        _check_size(folder / file["name"], file["bytes"])
    return found


def check_seal(found: Manifest) -> None:
    """Raises `ConfigError` if the manifest was edited after rfjax wrote it, because its numbers would then no longer
    describe the records."""
    if seals.is_broken(found.facts):
        remedy = "copy the corpus again, or give its rfjax prepare command again, which writes it anew"
        raise ConfigError(f"{found.folder / NAME} was changed after it was written; {remedy}")


def check_records(found: Manifest) -> None:
    """Raises `ConfigError` for the first file in `wrong_counts`."""
    for wrong in wrong_counts(found):
        raise ConfigError(f"{wrong}; {COPY_AGAIN}")


def wrong_counts(found: Manifest) -> list[str]:
    """A line for each file that has another number of records than the manifest says, or that cannot be opened. With a
    wrong number, an image would get another image's caption."""
    from array_record.python.array_record_module import ArrayRecordReader

    def compare(said):
        path, count = said
        try:
            reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0", file_reader_buffer_size=2**12)
            records = reader.num_records()
            reader.close()
        except Exception as error:  # array_record raises several kinds, with messages from C++
            return f"{path} cannot be read: {error}"
        return "" if records == count else f"{path} has {records} records, and {NAME} says {count}"

    said = [
        (found.folder / file["name"], unit[kind])
        for shard in found.facts["shards"]
        for unit in shard["units"]
        for kind, file in unit["files"].items()
    ]
    with ThreadPoolExecutor(16) as pool:  # a remote disk answers slowly, but many requests at once
        return list(filter(None, pool.map(compare, said)))


def _check_size(path, size):
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{path}, which {NAME} names, cannot be read: {error.strerror}; copy it again") from None
    if found != size:
        raise ConfigError(f"{path} has {found} bytes, and {NAME} says {size}; {COPY_AGAIN}")
