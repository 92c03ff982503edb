"""The corpus `prepared`: real images and captions, read from the shards that `rfjax prepare` wrote.

The order of an epoch maps an index to an image's record. This record lists the records of the image's captions, and
(seed, index) chooses one of them. Reading needs NumPy and array_record. Encoding a new caption or decoding a latent
needs the frozen models, which are loaded, with PyTorch, at the first such call. Training makes no such call.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from operator import attrgetter

import numpy as np
from jaxtyping import Float, Integer

from rfjax.config import DataConfig
from rfjax.data import hashing
from rfjax.data.batch import Batch, BatchShapes, Conditions, stills
from rfjax.data.buckets import BucketedCorpus
from rfjax.data.corpus import Corpus
from rfjax.data.prepared import manifest
from rfjax.data.prepared.epoch_orders import EpochOrders
from rfjax.data.prepared.manifest import Bucket, Manifest
from rfjax.data.prepared.manifest_facts import KINDS, SPLITS
from rfjax.data.prepared.records import FACTS_OF, unpack
from rfjax.data.prepared.shards import Shards
from rfjax.data.prepared.text_precision import from_stored, shapes_stored
from rfjax.errors import ConfigError, RfjaxError

VERSION = "prepared-1"  # to be raised whenever the example of an index changes
FROZEN = "rfjax.data.prepared.frozen"  # named and not imported, because it imports PyTorch


@dataclass(frozen=True)
class PreparedCorpus:
    """The images of one bucket of a prepared corpus; see `corpus.Corpus` for the methods.

    Training examples come in epochs. Each epoch has an order of its own, which the seed decides, and draws captions
    anew. Validation examples are the same for every seed: the split's images in stored order, each with its first
    original caption, or its first synthetic caption if it has no original. Example ids number the images of all
    buckets, one bucket after the other.
    """

    manifest: Manifest
    seed: int
    encoders: tuple[str, ...]  # only these encoders' slots have features; the others are zero
    synthetic_captions: float  # share of training examples with a synthetic caption
    models: str  # the folder of the frozen models; "": the folder that the manifest names
    name: str  # prepared:FOLDER
    number: int = 0  # the bucket's index in the manifest

    @property
    def bucket(self) -> Bucket:
        return self.manifest.buckets[self.number]

    @property
    def training_images(self) -> int:
        """The number of the bucket's training images."""
        return self.bucket.images["train"]

    @property
    def shapes(self) -> BatchShapes:
        context, pooled, slots = manifest.layout(self.manifest.encoders)
        used = tuple(slot for slot in slots if slot.name in self.encoders)
        return BatchShapes(self.bucket.latents, context, pooled, used)

    @property
    def parts(self) -> tuple[PreparedCorpus]:
        return (self,)

    @property
    def fingerprint(self) -> str:
        facts = (VERSION, self.manifest.fingerprint, self.seed, self.encoders, self.synthetic_captions, *self._own)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def examples(self, indices: Integer[np.ndarray, " n"], split: str) -> Batch:
        indices = np.asarray(indices, np.uint64)
        places = self._places(indices, split)
        images = self._records("images", split, places)
        latents = np.empty((len(indices), *self.bucket.stored), np.float32)
        for row, place, (arrays, _) in zip(latents, places.tolist(), images, strict=True):
            self._check_shape(arrays, "latents", row.shape, f"record {place} of the {split} images")
            row[...] = arrays["latents"]
        latents -= np.float32(self.manifest.shift)
        latents *= np.float32(self.manifest.scale)
        conditions = self._assemble([arrays for arrays, _ in self._choose_captions(indices, split, places, images)])
        before = sum(bucket.images[split] for bucket in self.manifest.buckets[: self.number])
        latents = latents.reshape(len(indices), *self.bucket.latents)
        return Batch(latents, *conditions, (places + np.uint64(before)).astype(np.uint32))

    def captions(self, indices: Integer[np.ndarray, " n"], split: str) -> list[str]:
        indices = np.asarray(indices, np.uint64)
        places = self._places(indices, split)
        chosen = self._choose_captions(indices, split, places, self._records("images", split, places))
        return [facts["caption"] for _, facts in chosen]

    def encode(self, captions: Sequence[str]) -> Conditions:
        features = self._frozen.text(list(captions))
        return self._assemble([{name: rows[i] for name, rows in features.items()} for i in range(len(captions))])

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        return []  # the encoders have learnt from more text than the corpus has

    @property
    def made_with(self) -> dict[str, object]:
        unused = {encoder.name for encoder in self.manifest.encoders} - set(self.encoders)
        parts = self.manifest.facts["models"].get("parts", {})
        models = {f"the files of {name}": about["sha256"] for name, about in parts.items() if name not in unused}
        return models | {"the latents' shift": self.manifest.shift, "the latents' scale": self.manifest.scale}

    def evaluation_prompts(self, prompts_per_task: int, seed: int) -> list[dict]:
        return []

    def render_prompt(self, row: dict, seed: int) -> Float[np.ndarray, "h w 3"]:
        raise ConfigError("a prepared corpus has no scenes to render; set config.data.corpus to shapes or digits")

    def to_images(self, latents: Float[np.ndarray, "n frames h w c"]) -> Float[np.ndarray, "n height width 3"]:
        return self._pixels(stills(latents))

    def to_clips(self, latents: Float[np.ndarray, "n f h w c"]) -> Float[np.ndarray, "n frames height width 3"]:
        return self._pixels(latents)

    def to_latents(self, images: Float[np.ndarray, "n *frames height width 3"]) -> Float[np.ndarray, "n f h w c"]:
        raw = self._autoencoder.latents(np.asarray(images, np.float32))
        scaled = (raw - np.float32(self.manifest.shift)) * np.float32(self.manifest.scale)
        return scaled if scaled.ndim == 5 else scaled[:, None]

    def _pixels(self, latents):
        raw = np.asarray(latents, np.float32) / np.float32(self.manifest.scale) + np.float32(self.manifest.shift)
        return self._autoencoder.images(raw)

    @property
    def frame_rate(self) -> Fraction | None:
        """Frames a second of the clips; None for images, and for clips whose frames were taken as their files store
        them."""
        rule = self.manifest.facts["recipe"].get("clips")
        return Fraction(rule["rate"]) if rule and rule["rate"] else None

    @property
    def _frozen(self):
        return _frozen(self.manifest.folder, self.models, self.encoders)

    @property
    def _autoencoder(self):
        """The models that encode images and decode latents. For a corpus of pixels nothing is loaded."""
        return importlib.import_module(FROZEN).pixel_models() if self.manifest.of_pixels else self._frozen

    @property
    def _own(self) -> tuple[str, ...]:
        """What the bucket adds to the keys of hashed random numbers, so that buckets differ in the order of their
        images and the choice of captions; () if there is one bucket."""
        return (self.bucket.name,) if len(self.manifest.buckets) > 1 else ()

    @property
    def _where(self) -> str:
        return f"the prepared corpus {self.manifest.folder}" + "".join(f" in bucket {name}" for name in self._own)

    def _places(self, indices, split):
        """The number of the stored image that each index means, as uint64. In training the order of the epoch decides
        it; in validation it is the index itself. Raises `ConfigError` for an index beyond the validation images."""
        if split not in SPLITS:
            raise ConfigError(f"split {split!r} is unknown; it must be one of {', '.join(SPLITS)}")
        count = self.bucket.images[split]
        if split == "train":
            if not count:
                raise ConfigError(
                    f"{self._where} has no training images; prepare the corpus again with a smaller --validation-share"
                )
            return self._orders.places(indices)
        if len(indices) and int(indices.max()) >= count:  # a repeated example would shrink the standard error
            given = f"{self._where} has {count} validation images, and number {int(indices.max())} was asked for"
            remedy = "or prepare it with a larger --validation-share"
            raise ConfigError(f"{given}; set config.evaluation.validation.examples to at most {count}, {remedy}")
        return indices

    @cached_property
    def _orders(self) -> EpochOrders:
        return EpochOrders(self.bucket.images["train"], hashing.key(VERSION, self.seed, *self._own))

    @cached_property
    def _files(self) -> dict[tuple[str, str], Shards]:
        found = {}
        for split in SPLITS:
            for kind in KINDS:
                files = self.manifest.files(split, self.bucket.name, kind)
                found[split, kind] = Shards([self.manifest.folder / name for name in files.names], files.counts)
        return found

    def _records(self, kind, split, places):
        files = self._files[split, kind]
        out = []
        for place, record in zip(places.tolist(), files.read(places), strict=True):
            try:
                out.append(unpack(record, FACTS_OF[kind]))
            except ValueError as error:
                given = f"record {place} of the {split} {kind} of {self._where}"
                raise RfjaxError(f"{given}: {error}; rfjax inspect finds what is damaged") from None
        return out

    def _choose_captions(self, indices, split, places, images):
        """Chooses a caption for each image, and returns the captions' records, read in one call."""
        captions = self._files[split, "captions"]
        draws, share, rows = np.zeros((len(indices), 2)), 0.0, []
        if split == "train":
            draws = hashing.uniforms(hashing.key(VERSION, "caption", self.seed, *self._own), indices, 2)
            share = self.synthetic_captions
        files = self._files[split, "images"].file_of(places).tolist()
        for (_, facts), (mix, which), file in zip(images, draws, files, strict=True):
            original, synthetic = facts["original"], facts["synthetic"]
            wanted, other = (synthetic, original) if mix < share else (original, synthetic)
            among = wanted or other
            number = among[int(which * len(among))] if among else -1
            if not 0 <= number < captions.count(file):  # a caption in another file is another image's
                given = f"{self._where}: the image {facts['key']!r} has no caption number {number} in its shard"
                raise RfjaxError(f"{given}; rfjax inspect finds what is damaged")
            rows.append(captions.first(file) + number)
        return self._records("captions", split, np.array(rows, np.int64))

    def _check_shape(self, arrays, name, shape, what):
        """Raises `RfjaxError` for an array of another shape: NumPy would silently repeat a smaller one."""
        found = arrays[name].shape if name in arrays else "no array"
        if found != shape:
            given = f"{what} of {self._where} has {name} of {found}, and the manifest says {shape}"
            raise RfjaxError(f"{given}; rfjax inspect finds what is damaged")

    def _assemble(self, stored):
        """Makes float32 `Conditions` from the stored arrays of captions, {name: array} for each caption: each encoder's
        features go into the encoder's slot, and the rest is zero."""
        shapes = self.shapes
        context = np.zeros((len(stored), *shapes.context), np.float32)
        pooled = np.zeros((len(stored), shapes.pooled), np.float32)
        for slot in shapes.encoders:
            tokens, channels = slice(*slot.tokens), slice(*slot.channels)
            for row, arrays in enumerate(stored):
                place, name = context[row, tokens, channels], f"{slot.name}.context"
                for part, shape in shapes_stored(arrays, name, place.shape).items():
                    self._check_shape(arrays, part, shape, "a caption")
                from_stored(arrays, name, place)
                if slot.pooled[1] > slot.pooled[0]:
                    place, name = pooled[row, slice(*slot.pooled)], f"{slot.name}.pooled"
                    self._check_shape(arrays, name, place.shape, "a caption")
                    place[...] = arrays[name]
        return Conditions(context, pooled)


def with_encoders(corpus: Corpus, names: Sequence[str]) -> Corpus:
    """The same prepared corpus, but with features of the text encoders `names` only; all other slots are zero. Raises
    `ConfigError` for an encoder that the corpus does not have, and for a corpus that was not prepared."""
    known = [slot.name for slot in corpus.shapes.encoders]
    if not all(isinstance(part, PreparedCorpus) for part in corpus.parts):
        given = f"--encoders is {','.join(names)}, and the corpus {corpus.name}"
        raise ConfigError(f"{given} was not prepared with text encoders; leave it out")
    for name in names:
        if name not in known:
            raise ConfigError(f"--encoders has {name!r}, which the run was not trained with; it has {', '.join(known)}")
    chosen = tuple(name for name in known if name in names)
    parts = tuple(replace(part, encoders=chosen) for part in corpus.parts)
    return replace(corpus, parts=parts) if isinstance(corpus, BucketedCorpus) else parts[0]


@lru_cache(maxsize=1)
def _frozen(folder, models, encoders):
    return importlib.import_module(FROZEN).of_corpus(manifest.read(folder), models, encoders)


def make(data: DataConfig, seed: int) -> PreparedCorpus | BucketedCorpus:
    """Makes the prepared corpus that a config names; a corpus of several buckets has a part for each. Raises
    `ConfigError` if the manifest cannot be used, or if fields of the config do not match it, naming these fields."""
    wanted = data.prepared
    if not wanted.path:
        missing = "config.data.corpus is prepared, and config.data.prepared.path names no folder"
        raise ConfigError(f"{missing}; give the folder that rfjax prepare wrote")
    found = manifest.read(wanted.path)
    manifest.check_seal(found)
    manifest.check_records(found)
    (tokens, size), pooled, _ = manifest.layout(found.encoders)
    has = {
        "image_size": found.side,
        "frames": found.buckets[0].latents[0],
        "channels": found.buckets[0].latents[-1],
        "context_tokens": tokens,
        "context_size": size,
        "pooled_size": pooled,
        "prepared.latent_shift": found.shift,
        "prepared.latent_scale": found.scale,
    }
    asked = {field: attrgetter(field)(data) for field in has}
    wrong = [field for field in has if asked[field] is not None and asked[field] != has[field]]
    if wrong:
        said = "; ".join(f"config.data.{field} is {asked[field]}, and the corpus has {has[field]}" for field in wrong)
        raise ConfigError(f"the prepared corpus {wanted.path} does not match: {said}")
    names = tuple(encoder.name for encoder in found.encoders)
    for name in wanted.encoders:
        if name not in names:
            given = f"config.data.prepared.encoders has {name!r}, which the prepared corpus {wanted.path} lacks"
            raise ConfigError(f"{given}; it has {', '.join(names)}")
    if wanted.synthetic_captions and not found.facts["captions"]["synthetic"]:
        given = f"config.data.prepared.synthetic_captions is {wanted.synthetic_captions}"
        remedy = "set it to 0, or prepare them with --synthetic-column"
        raise ConfigError(f"{given}, and the prepared corpus {wanted.path} has no synthetic captions; {remedy}")
    chosen = tuple(name for name in names if not wanted.encoders or name in wanted.encoders)
    buckets = found.buckets
    parts = tuple(
        PreparedCorpus(found, seed, chosen, wanted.synthetic_captions, wanted.models, data.label, number)
        for number in range(len(buckets))
    )
    if len(parts) == 1:
        return parts[0]
    training, validation = (tuple(bucket.images[split] for bucket in buckets) for split in SPLITS)
    return BucketedCorpus(data.label, parts, seed, training, validation)
