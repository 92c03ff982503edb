"""Makes a shard: decodes, filters and encodes a part of a source; writes the shard completely or not at all."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np

from rfjax.data.prepared.manifest import StoredEncoder
from rfjax.data.prepared.manifest_facts import KINDS, SPLITS, UnitFacts, bucket_name, unit_file
from rfjax.data.prepared.records import pack
from rfjax.data.prepared.text_precision import to_stored
from rfjax.errors import RfjaxError
from rfjax.files import folder_moved_when_whole
from rfjax.prepare import images
from rfjax.prepare.clips import Clip
from rfjax.prepare.judge import Kept, judge
from rfjax.prepare.part import LeftOut, Tell, map_in_order
from rfjax.prepare.recipe import Recipe
from rfjax.prepare.sources import Source

AHEAD = 4  # batches decoded ahead of the models


@runtime_checkable
class Models(Protocol):
    """What `make_shard` uses of `frozen.FrozenModels`."""

    encoders: tuple[StoredEncoder, ...]

    def latents(self, images): ...
    def text(self, captions): ...
    def token_counts(self, captions): ...


class Sums(TypedDict):
    """Sums over raw latents, per channel, from which mean and deviation are computed."""

    values: int  # number of values in each channel
    sum: list[float]
    squares: list[float]


class UnitJson(UnitFacts):
    original: int
    synthetic: int
    statistics: Sums


class ShardJson(TypedDict):
    """The content of a finished shard's .json."""

    name: str
    recipe_sha256: str
    units: list[UnitJson]
    dropped: dict[str, int]
    converted: dict[str, int]
    truncated: dict[str, int]


def sizes(facts: Mapping) -> dict[str, int]:
    """Returns {file name: number of bytes} of a shard's files, from the content of the shard's .json."""
    return {file["name"]: file["bytes"] for unit in facts["units"] for file in unit["files"].values()}


def make_shard(
    source: Source,
    part: int,
    path: Path,
    *,
    recipe: Recipe,
    recipe_hash: str,
    models: Models,
    threads: int = 4,
    tell: Tell = lambda done, kept, dropped: None,
) -> dict:
    """Makes the shard of a part, in files whose names begin with `path`; returns the content of PATH.json.

    Calls `tell` after each image. Raises `RfjaxError` if too many images are corrupt or a file cannot be written. Then
    no file of the shard is left.
    """
    name, window = path.name, 2 * threads if recipe.clips else AHEAD * recipe.batch_size
    left_out, converted, truncated = LeftOut(name), Counter(), Counter()
    last = path.with_name(f"{name}.json")
    with folder_moved_when_whole(last, files_of=True) as inside, ThreadPoolExecutor(threads) as pool:
        buckets = [bucket_name(pixels) for pixels in recipe.shapes]
        writers = {
            (bucket, split): _UnitWriter(inside, (name, bucket, split), recipe, models, truncated)
            for bucket in buckets
            for split in SPLITS
        }
        batches: dict[str, list[Kept]] = {bucket: [] for bucket in buckets}  # each batch has one shape
        judged = map_in_order(pool, lambda record: judge(record, recipe), source.records(part), window)
        every = itertools.chain.from_iterable(judged)
        for image in left_out.sift(every, tell, recipe.corrupt_limit, of_files=recipe.clips is not None):
            converted.update((*image.picture.converted, *image.notes))
            batch = batches[image.bucket]
            batch.append(image)
            if len(batch) == recipe.batch_size:
                _encode(batch, recipe, models, writers)
                batch.clear()
        for batch in filter(None, batches.values()):
            _encode(batch, recipe, models, writers)
        written = {unit: writer.close() for unit, writer in writers.items() if writer.written}
        facts = {
            "name": name,
            "recipe_sha256": recipe_hash,
            "units": [{"bucket": bucket, "split": split, **unit} for (bucket, split), unit in written.items()],
            "dropped": left_out.by_reason(),
            "converted": dict(sorted(converted.items())),
            "truncated": dict(sorted(truncated.items())),
        }
        left_out.write_with(facts, inside)
    return facts


def _encode(batch: Sequence[Kept], recipe: Recipe, models: Models, writers: Mapping[tuple, _UnitWriter]) -> None:
    """Encodes and writes a batch of images, all of one bucket."""
    bucket = batch[0].bucket
    latents = models.latents(np.stack([image.picture.pixels for image in batch]))
    splits = [recipe.split_of(image.record) for image in batch]
    for split in SPLITS:
        members = [image for image, its_split in zip(batch, splits, strict=True) if its_split == split]
        writers[bucket, split].add_captions([text for image in members for text in (*image.original, *image.synthetic)])
    for image, latent, split in zip(batch, latents, splits, strict=True):
        writers[bucket, split].add_image(image, latent)


class _UnitWriter:
    """Writes a shard's two files of one split and bucket: images and captions.

    Each file is created at its first record. A repeated caption is stored once.
    """

    def __init__(self, folder, unit, recipe, models, truncated):
        self._paths = {kind: folder / unit_file(*unit, kind) for kind in KINDS}
        self._writers, self._counts = {}, dict.fromkeys(KINDS, 0)
        self._recipe, self._models, self._truncated = recipe, models, truncated
        self._rows: dict[str, int] = {}
        self._sum = self._squares = 0.0
        self._values = self._originals = self._synthetic = 0

    @property
    def written(self) -> bool:
        return bool(self._writers)

    def _write(self, kind, record):
        from array_record.python.array_record_module import ArrayRecordWriter

        try:
            if kind not in self._writers:
                self._writers[kind] = ArrayRecordWriter(str(self._paths[kind]), "group_size:1,uncompressed")
            self._writers[kind].write(record)
        except Exception as error:  # a C++ error, such as "No space left on device"
            raise OSError(f"{error}") from None
        self._counts[kind] += 1

    def add_captions(self, texts: Sequence[str]) -> None:
        """Encodes and stores the captions that these files do not have yet."""
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        for start in range(0, len(new), self._recipe.batch_size):
            some = new[start : start + self._recipe.batch_size]
            features = self._models.text(some)
            for encoder in self._models.encoders:
                counts = self._models.token_counts(some)[encoder.name]
                self._truncated[encoder.name] += sum(count > encoder.tokens for count in counts)
            for i, text in enumerate(some):
                arrays = {}
                for name, rows in features.items():
                    arrays |= self._round(name, rows[i], text)
                self._rows[text] = len(self._rows)
                self._write("captions", pack(arrays, {"caption": text}))

    def add_image(self, image: Kept, latents) -> None:
        values = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
        self._sum, self._squares = self._sum + values.sum(0), self._squares + np.square(values).sum(0)
        self._values += len(values)
        self._originals += len(image.original)
        self._synthetic += len(image.synthetic)
        small = images.thumbnail(image.picture.pixels, self._recipe.thumbnail)
        arrays = self._round("latents", latents, image.key) | {"thumbnail": np.frombuffer(small, np.uint8)}
        facts = {
            "key": image.key,
            "width": image.picture.width,
            "height": image.picture.height,
            "original": [self._rows[text] for text in image.original],
            "synthetic": [self._rows[text] for text in image.synthetic],
            **({"start": image.picture.start} if isinstance(image.picture, Clip) else {}),
        }
        self._write("images", pack(arrays, facts))

    def _round(self, name, values, owner):
        """Returns the arrays, by name, that store `values` in the recipe's precision.

        Raises `RfjaxError`, naming `owner`, if the values do not fit or are not finite.
        """
        precision, whole = self._recipe.precision_of(name), bool(np.isfinite(values).all())
        stored = to_stored(name, values, precision) if whole else {}
        if not whole or not all(np.isfinite(array).all() for array in stored.values()):
            why = f"do not fit {precision}" if whole else "are not finite"
            remedy = "prepare with --precision=float32 --compute-dtype=float32"
            raise RfjaxError(f"the {name} of {owner[:80]!r} {why}; {remedy}")
        return stored

    def close(self) -> dict:
        """Closes the files; returns what the shard's .json says about them."""
        for writer in self._writers.values():
            try:
                writer.close()
            except Exception as error:
                raise OSError(f"{error}") from None
        sums = {"sum": np.atleast_1d(self._sum).tolist(), "squares": np.atleast_1d(self._squares).tolist()}
        return {
            **self._counts,
            "original": self._originals,
            "synthetic": self._synthetic,
            "files": {kind: _file_facts(self._paths[kind]) for kind in self._writers},
            "statistics": {"values": self._values, **sums},
        }


def _file_facts(path):
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
