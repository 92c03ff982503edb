"""One part of a source made one shard: decoded, filtered, encoded and written, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from rfjax.data.prepared.manifest import KINDS, SPLITS, StoredEncoder, bucket_name
from rfjax.data.prepared.records import pack
from rfjax.errors import RfjaxError
from rfjax.files import folder_moved_when_whole
from rfjax.prepare import images
from rfjax.prepare.images import CorruptImage, Picture
from rfjax.prepare.part import CORRUPT, NO_CAPTION, LeftOut, Tell, in_order
from rfjax.prepare.recipe import Recipe
from rfjax.prepare.sources import Drop, Record, Source

AHEAD = 4  # batches decoded ahead of the models


@runtime_checkable
class Models(Protocol):
    """What a shard needs of `frozen.FrozenModels`."""

    encoders: tuple[StoredEncoder, ...]

    def latents(self, images): ...
    def text(self, captions): ...
    def token_counts(self, captions): ...


@dataclass(frozen=True)
class Kept:
    """An image that goes into the shard."""

    key: str
    picture: Picture
    original: tuple[str, ...]
    synthetic: tuple[str, ...]
    done: float | int

    @property
    def bucket(self) -> str:
        return bucket_name(self.picture.pixels.shape)


def sizes(facts: Mapping) -> dict[str, int]:
    """The bytes of each file of a shard, by name, as its .json says."""
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
    """Makes a part's shard, files whose names begin with `path`, and returns what its .json says.

    `tell` hears how much of the part is done and how many images were kept and dropped. Raises
    `RfjaxError` where too many images are corrupt or nothing more can be written; then nothing of
    the shard is left.
    """
    name = path.name
    left_out, converted, truncated = LeftOut(name), Counter(), Counter()
    with (
        folder_moved_when_whole(path.with_name(f"{name}.json"), files_of=True) as inside,
        ThreadPoolExecutor(threads) as pool,
    ):
        buckets = [bucket_name(pixels) for pixels in recipe.buckets]
        writers = {
            (bucket, split): _UnitWriter(inside, f"{name}.{bucket}.{split}", recipe, models, truncated)
            for bucket in buckets
            for split in SPLITS
        }
        batches: dict[str, list[Kept]] = {bucket: [] for bucket in buckets}  # of one shape each
        judged = in_order(pool, lambda record: judge(record, recipe), source.records(part), AHEAD * recipe.batch_size)
        for one in left_out.sift(judged, tell, recipe.corrupt_limit):
            converted.update(one.picture.converted)
            batch = batches[one.bucket]
            batch.append(one)
            if len(batch) == recipe.batch_size:
                _encode(batch, recipe, models, writers)
                batch.clear()
        for batch in batches.values():
            if batch:
                _encode(batch, recipe, models, writers)
        units = [
            {"bucket": bucket, "split": split, **writer.close()}
            for (bucket, split), writer in writers.items()
            if writer.written
        ]
        (inside / f"{name}.dropped.jsonl").write_text(left_out.lines(), encoding="utf-8")
        facts = {
            "name": name,
            "recipe_sha256": recipe_hash,
            "units": units,
            "dropped": left_out.by_reason(),
            "converted": dict(sorted(converted.items())),
            "truncated": dict(sorted(truncated.items())),
        }
        (inside / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def judge(record: Record | Drop, recipe: Recipe) -> Kept | Drop:
    """A record decoded, or why it is dropped. What costs least is asked first."""
    if isinstance(record, Drop):
        return record
    if record.key in recipe.dropped_keys:
        return Drop(record.key, recipe.dropped_keys[record.key], "", record.done)
    original, synthetic = recipe.columns.of(record.metadata)
    if not original and not synthetic:
        return Drop(record.key, NO_CAPTION, "", record.done)
    for reason in (one.refuses(record.metadata) for one in recipe.filters if not one.measured):
        if reason:
            return Drop(record.key, reason, "", record.done)
    try:
        picture = images.decode(record.image, recipe.buckets, recipe.resample)
    except CorruptImage as error:
        return Drop(record.key, CORRUPT, str(error), record.done)
    for reason in (one.refuses(picture.columns) for one in recipe.filters if one.measured):
        if reason:
            return Drop(record.key, reason, f"{picture.width}x{picture.height}", record.done)
    return Kept(record.key, picture, original, synthetic, record.done)


def _encode(
    batch: Sequence[Kept], recipe: Recipe, models: Models, writers: Mapping[tuple[str, str], _UnitWriter]
) -> None:
    """Encodes and writes images of one bucket."""
    bucket = batch[0].bucket
    latents = models.latents(np.stack([one.picture.pixels for one in batch]))
    splits = [recipe.split_of(one.key) for one in batch]
    for split in SPLITS:
        mine = [one for one, own in zip(batch, splits, strict=True) if own == split]
        writers[bucket, split].add_captions([text for one in mine for text in (*one.original, *one.synthetic)])
    for one, own, split in zip(batch, latents, splits, strict=True):
        writers[bucket, split].add_image(one, own)


class _UnitWriter:
    """The two files of a shard's split and bucket, made when there is an image for them; a caption that comes
    again is stored once."""

    def __init__(self, folder, stem, recipe, models, truncated):
        self._paths = {kind: folder / f"{stem}.{kind}.array_record" for kind in KINDS}
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
        except Exception as error:  # C++'s words, such as "No space left on device"
            raise OSError(f"{error}") from None
        self._counts[kind] += 1

    def add_captions(self, texts: Sequence[str]) -> None:
        """Encodes and stores the captions that are new here."""
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        for start in range(0, len(new), self._recipe.batch_size):
            some = new[start : start + self._recipe.batch_size]
            features = self._models.text(some)
            for encoder in self._models.encoders:
                counts = self._models.token_counts(some)[encoder.name]
                self._truncated[encoder.name] += sum(count > encoder.tokens for count in counts)
            for i, text in enumerate(some):
                arrays = {name: self._stored(name, rows[i], text) for name, rows in features.items()}
                self._rows[text] = len(self._rows)
                self._write("captions", pack(arrays, {"caption": text}))

    def add_image(self, one: Kept, latents) -> None:
        values = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
        self._sum, self._squares = self._sum + values.sum(0), self._squares + np.square(values).sum(0)
        self._values += len(values)
        self._originals, self._synthetic = self._originals + len(one.original), self._synthetic + len(one.synthetic)
        small = images.thumbnail(one.picture.pixels, self._recipe.thumbnail)
        arrays = {"latents": self._stored("latents", latents, one.key), "thumbnail": np.frombuffer(small, np.uint8)}
        facts = {
            "key": one.key,
            "width": one.picture.width,
            "height": one.picture.height,
            "original": [self._rows[text] for text in one.original],
            "synthetic": [self._rows[text] for text in one.synthetic],
        }
        self._write("images", pack(arrays, facts))

    def _stored(self, name, values, of):
        precision = self._recipe.pooled_precision if name.endswith(".pooled") else self._recipe.precision
        with np.errstate(over="ignore"):
            stored = values.astype(precision)
        if not np.isfinite(stored).all():
            why = f"do not fit {precision}" if np.isfinite(values).all() else "are not finite"
            raise RfjaxError(
                f"the {name} of {of[:80]!r} {why}; prepare with --precision=float32 --compute-dtype=float32"
            )
        return stored

    def close(self) -> dict:
        """Closes the files; what the shard's .json says of them."""
        for writer in self._writers.values():
            try:
                writer.close()
            except Exception as error:
                raise OSError(f"{error}") from None
        files = {kind: _file_facts(self._paths[kind]) for kind in self._writers}
        sums = {
            "values": self._values,
            "sum": np.atleast_1d(self._sum).tolist(),
            "squares": np.atleast_1d(self._squares).tolist(),
        }
        return {
            **self._counts,
            "original": self._originals,
            "synthetic": self._synthetic,
            "files": files,
            "statistics": sums,
        }


def _file_facts(path):
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
