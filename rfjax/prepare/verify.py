"""Verifies a prepared corpus: checks its files' hashes, and compares its manifest with every record."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from rfjax.data.prepared.manifest import Manifest
from rfjax.data.prepared.manifest_facts import KINDS, NAME, SPLITS
from rfjax.data.prepared.records import FACTS_OF, unpack
from rfjax.data.prepared.shards import Shards
from rfjax.data.prepared.text_precision import shapes_stored
from rfjax.errors import RfjaxError
from rfjax.inputs import seals

AT_ONCE = {"images": 256, "captions": 32}  # records read together: a caption's features may be megabytes
MOMENTS_AGREE = 0.02  # in standard deviations: the manifest's moments are those of latents before rounding
Say = Callable[[str], None]


def damaged_files(found: Manifest, say: Say = lambda text: None) -> Iterator[str]:
    """Yields the names of files whose SHA-256 is not the manifest's. Raises `RfjaxError` for an unreadable file."""
    files = list(found.every_file())
    total, read = sum(file["bytes"] for file in files), 0
    for number, file in enumerate(files, 1):
        try:
            with open(found.folder / file["name"], "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            path = found.folder / file["name"]
            raise RfjaxError(f"{path} cannot be read: {error.strerror}; check the disk") from None
        read += file["bytes"]
        if number % 20 == 0:
            say(f"hashes: {number} of {len(files)} files, {100 * read / total:.0f} % of the bytes")
        if digest != file["sha256"]:
            yield file["name"]


def strangers(found: Manifest) -> list[str]:
    """Returns a line if the manifest was edited, and a line for each file of records that it does not name."""
    lines = [f"{NAME} was changed after it was written"] if seals.is_broken(found.facts) else []
    known = {file["name"] for file in found.every_file()}
    there = sorted(path.name for path in found.folder.glob("*.array_record"))
    return lines + [f"{name} is in the folder, and {NAME} does not name it" for name in there if name not in known]


@dataclass
class _Sums:
    """Sums over latents, per channel."""

    values: int = 0
    sum: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0


@dataclass
class _Counted:
    """Totals over all records."""

    images: int = 0
    captions: Counter = field(default_factory=Counter)  # by kind: original, synthetic
    latents: dict[str, _Sums] = field(default_factory=lambda: {split: _Sums() for split in SPLITS})


def contradictions(found: Manifest, say: Say = lambda text: None) -> Iterator[str]:
    """Reads every record; yields a line for each contradiction to the manifest.

    Checks the sizes of latents and features, that numbers are finite, that the captions which images name exist, the
    number of captions, and the latents' moments.
    """
    total, counted = sum(map(found.count, SPLITS)), _Counted()
    for bucket, split in ((bucket, split) for bucket in found.buckets for split in SPLITS):
        files = {kind: found.files(split, bucket.name, kind) for kind in KINDS}
        shards = {k: Shards([found.folder / name for name in some.names], some.counts) for k, some in files.items()}
        for number in range(len(files["images"].names)):
            names = {kind: some.names[number] for kind, some in files.items()}
            for where, record in _records(shards["captions"], number, names["captions"], "captions"):
                yield from _wrong_caption(where, record, found)
            stored = files["captions"].counts[number]
            for where, record in _records(shards["images"], number, names["images"], "images"):
                yield from _wrong_image(where, record, bucket.stored, stored, counted, split)
                counted.images += 1
                if counted.images % 65_536 == 0:
                    say(f"records: {counted.images:,} of {total:,} images")
    for kind, said in found.facts["captions"].items():
        if said != counted.captions[kind]:
            yield f"{NAME} says {said} {kind} captions, and the images have {counted.captions[kind]}"
    for split, said in found.facts["latents"]["statistics"].items():
        yield from _wrong_moments(split, said["all"], counted.latents[split])


def _records(shards, file, name, kind):
    """Yields (description of where the record is, the record's bytes) of each record in a file."""
    first, count = shards.first(file), shards.count(file)
    for start in range(0, count, AT_ONCE[kind]):
        places = np.arange(start, min(start + AT_ONCE[kind], count))
        for place, record in zip(places.tolist(), shards.read(places + first), strict=True):
            yield f"{name}, record {place}", record


def _wrong_caption(where, record, found):
    try:
        arrays, _ = unpack(record, FACTS_OF["captions"])
    except ValueError as error:
        yield f"{where}: {error}"
        return
    for encoder in found.encoders:
        sizes = shapes_stored(arrays, f"{encoder.name}.context", (encoder.tokens, encoder.channels))
        if encoder.pooled:
            sizes[f"{encoder.name}.pooled"] = (encoder.pooled,)
        for name, size in sizes.items():
            yield from _wrong_array(where, arrays, name, size)


def _wrong_image(where, record, size, stored, counted, split):
    try:
        arrays, facts = unpack(record, FACTS_OF["images"])
    except ValueError as error:
        yield f"{where}: {error}"
        return
    where = f"{where} ({facts['key']!r})"
    wrong = list(_wrong_array(where, arrays, "latents", size))
    yield from wrong
    numbers = [*facts["original"], *facts["synthetic"]]
    if not numbers:
        yield f"{where} names no caption"
    if lost := [number for number in numbers if not 0 <= number < stored]:
        yield f"{where} names caption {lost[0]} of {stored}"
    counted.captions.update({kind: len(facts[kind]) for kind in ("original", "synthetic")})
    if not wrong:
        values, sums = arrays["latents"].reshape(-1, size[-1]).astype(np.float64), counted.latents[split]
        sums.values += len(values)
        sums.sum, sums.squares = sums.sum + values.sum(0), sums.squares + np.square(values).sum(0)


def _wrong_array(where, arrays, name, size):
    if name not in arrays:
        yield f"{where} has no {name}"
    elif arrays[name].shape != tuple(size):
        yield f"{where} has {name} of {arrays[name].shape}, and {NAME} says {tuple(size)}"
    elif not np.isfinite(arrays[name]).all():
        yield f"{where} has {name} with numbers that are not finite"


def _wrong_moments(split, said, sums):
    """Compares the mean and the deviation of the latents over all channels, which `--latent-scaling=measured` uses,
    with those in the manifest. Yields a line for each that differs."""
    if not sums.values:
        return
    mean = float(np.mean(sums.sum) / sums.values)
    std = max(float(np.mean(sums.squares) / sums.values) - mean**2, 0.0) ** 0.5
    for name, here in (("mean", mean), ("std", std)):
        if abs(here - said[name]) > MOMENTS_AGREE * max(std, said["std"]):
            yield f"{NAME} says {said[name]:.4g} for the {split} latents' {name}, and the records make it {here:.4g}"
