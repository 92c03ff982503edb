"""Inspects a prepared corpus: finds damaged files, and makes a picture of some images."""

from __future__ import annotations

import hashlib
import io
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from rfjax.data import hashing
from rfjax.data.prepared import manifest
from rfjax.data.prepared.manifest import Manifest
from rfjax.data.prepared.manifest_facts import KINDS, SPLITS
from rfjax.data.prepared.records import unpack
from rfjax.data.prepared.shards import Shards
from rfjax.errors import RfjaxError

MADE_BY = "rfjax inspect"  # in the PNG, so that the command knows its own picture


def damaged_files(found: Manifest, say: Callable[[str], None] = lambda text: None) -> Iterator[str]:
    """Names of files whose SHA-256 is not the manifest's. Raises `RfjaxError` for a file that cannot be read."""
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


def contradictions(found: Manifest, say: Callable[[str], None] = lambda text: None) -> Iterator[str]:
    """Lines on what the manifest says otherwise than the records: their numbers and sizes, the captions that images
    name, and how many there are. Every record of an image is read."""
    wrong = manifest.wrong_counts(found)
    yield from wrong
    if wrong:
        return
    total, read, captions = sum(map(found.count, SPLITS)), 0, Counter()
    for bucket, split in ((bucket, split) for bucket in found.buckets for split in SPLITS):
        files, texts = (found.files(split, bucket.name, kind) for kind in KINDS)
        images = Shards([found.folder / name for name in files.names], files.counts)
        for file, (name, stored) in enumerate(zip(files.names, texts.counts, strict=True)):
            for start in range(0, files.counts[file], 256):
                places = np.arange(start, min(start + 256, files.counts[file])) + images.first(file)
                for place, record in zip(places.tolist(), images.read(places), strict=True):
                    arrays, facts = unpack(record)
                    where = f"{name}, record {place - images.first(file)} ({facts['key']!r})"
                    if arrays["latents"].shape != bucket.latents:
                        shape = arrays["latents"].shape
                        yield f"{where} has latents of {shape}, and the manifest says {bucket.latents}"
                    lost = [n for n in (*facts["original"], *facts["synthetic"]) if not 0 <= n < stored]
                    if lost:
                        yield f"{where} names caption {lost[0]} of {stored}"
                    captions.update({kind: len(facts[kind]) for kind in ("original", "synthetic")})
                read += len(places)
                if read % 65_536 < 256:
                    say(f"records: {read:,} of {total:,} images")
    for kind, said in found.facts["captions"].items():
        if said != captions[kind]:
            yield f"the manifest says {said} {kind} captions, and the images have {captions[kind]}"


def samples(found: Manifest, split: str, count: int, seed: int) -> list[tuple]:
    """Images drawn from a split, equally many of each bucket as far as it has them.

    Each is (bucket's name, place, facts, captions by row, thumbnail's bytes, latents).
    """
    pairs = [(turn, n) for n, bucket in enumerate(found.buckets) for turn in range(min(count, bucket.images[split]))]
    shares = Counter(number for _, number in sorted(pairs)[:count])
    drawn = (_draw(found, found.buckets[number], split, share, seed) for number, share in sorted(shares.items()))
    return [row for rows in drawn for row in rows]


def _draw(found, bucket, split, count, seed):
    every = bucket.images[split]
    draws = hashing.uniforms(hashing.key("inspect", seed, split), np.arange(every, dtype=np.uint64), 1)[:, 0]
    places = np.sort(np.argsort(draws, kind="stable")[:count])
    of_kind = (found.files(split, bucket.name, kind) for kind in ("images", "captions"))
    images, texts = (Shards([found.folder / name for name in files.names], files.counts) for files in of_kind)
    rows = []
    for place, file, record in zip(places.tolist(), images.file_of(places).tolist(), images.read(places), strict=True):
        arrays, facts = unpack(record)
        numbers = [*facts["original"], *facts["synthetic"]]
        records = texts.read(texts.first(file) + np.array(numbers, np.int64))
        captions = {number: unpack(text)[1]["caption"] for number, text in zip(numbers, records, strict=True)}
        rows.append((bucket.name, place, facts, captions, bytes(arrays["thumbnail"]), arrays["latents"]))
    return rows


def picture(rows, decoded=None) -> bytes:
    """A PNG of each image's thumbnail, and its decoded latent if given, over its first caption."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    wide = min(len(rows), 4)
    high = -(-len(rows) // wide)
    figure = Figure(figsize=(3.0 * wide * (1 if decoded is None else 1.6), 3.2 * high), layout="constrained")
    for number, (_, _, _, captions, small, _) in enumerate(rows):
        axes = figure.add_subplot(high, wide, number + 1)
        shown = Image.open(io.BytesIO(small)).convert("RGB")
        if decoded is None:
            pixels = np.asarray(shown) / 255.0
        else:
            height, width = decoded[number].shape[:2]
            large = shown.resize((width, height), Image.Resampling.BICUBIC)
            pixels = np.concatenate([np.asarray(large) / 255.0, decoded[number]], axis=1)
        axes.imshow(pixels)
        axes.set_axis_off()
        first = next(iter(captions.values()))
        axes.set_title(textwrap.fill(textwrap.shorten(first, 90), 34).replace("$", r"\$"), fontsize=7)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib's font lacks some scripts; captions are printed as well
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": MADE_BY})
    return buffer.getvalue()
