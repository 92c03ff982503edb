"""What a prepared corpus holds: whether every byte of it is as it was written, and a picture of some images."""

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
from rfjax.data.prepared.records import unpack
from rfjax.data.prepared.shards import Shards
from rfjax.errors import RfjaxError


def damaged(found: Manifest, say: Callable[[str], None] = lambda text: None) -> Iterator[str]:
    """Names of files whose bytes do not hash to what the manifest says."""
    files = list(found.every_file())
    total, read = sum(file["bytes"] for file in files), 0
    for number, file in enumerate(files, 1):
        try:
            with open(found.folder / file["name"], "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise RfjaxError(f"{found.folder / file['name']} cannot be read: {error.strerror}") from None
        read += file["bytes"]
        if number % 20 == 0:
            say(f"hashes: {number} of {len(files)} files, {100 * read / total:.0f} % of the bytes")
        if digest != file["sha256"]:
            yield file["name"]


def samples(found: Manifest, split: str, count: int, seed: int) -> list[tuple]:
    """[(bucket's name, place, facts, captions by row, thumbnail's bytes, latents)] of images drawn from a split: as
    many of each bucket, as far as it has them."""
    turns = sorted(
        (turn, number)
        for number, bucket in enumerate(found.buckets)
        for turn in range(min(count, bucket.images[split]))
    )
    shares = Counter(number for _, number in turns[:count])
    return [
        row
        for number, share in sorted(shares.items())
        for row in _of_bucket(found, found.buckets[number], split, share, seed)
    ]


def _of_bucket(found, bucket, split, count, seed):
    every = bucket.images[split]
    draws = hashing.uniforms(hashing.key("inspect", seed, split), np.arange(every, dtype=np.uint64), 1)[:, 0]
    places = np.sort(np.argsort(draws, kind="stable")[:count])
    of_kind = {kind: found.files(split, bucket.name, kind) for kind in manifest.KINDS}
    kinds = {
        kind: Shards([found.folder / name for name in files.names], files.counts) for kind, files in of_kind.items()
    }
    rows = []
    files = kinds["images"].file_of(places)
    for place, file, record in zip(places.tolist(), files.tolist(), kinds["images"].read(places), strict=True):
        arrays, facts = unpack(record)
        own = [*facts["original"], *facts["synthetic"]]
        texts = kinds["captions"].read(kinds["captions"].first(file) + np.array(own, np.int64))
        captions = {row: unpack(text)[1]["caption"] for row, text in zip(own, texts, strict=True)}
        rows.append((bucket.name, place, facts, captions, bytes(arrays["thumbnail"]), arrays["latents"]))
    return rows


def picture(rows, decoded=None) -> bytes:
    """A PNG: each image's thumbnail (and what its latent decodes to) over its first caption."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    wide = min(len(rows), 4)
    high = -(-len(rows) // wide)
    figure = Figure(figsize=(3.0 * wide * (1 if decoded is None else 1.6), 3.2 * high), layout="constrained")
    for number, (_, _, _, captions, small, _) in enumerate(rows):
        axes = figure.add_subplot(high, wide, number + 1)
        pixels = np.asarray(Image.open(io.BytesIO(small)).convert("RGB")) / 255.0
        if decoded is not None:
            rows_and_columns = decoded[number].shape[:2]
            large = (
                np.asarray(
                    Image.open(io.BytesIO(small))
                    .convert("RGB")
                    .resize(rows_and_columns[::-1], Image.Resampling.BICUBIC)
                )
                / 255.0
            )
            pixels = np.concatenate([large, decoded[number]], axis=1)
        axes.imshow(pixels)
        axes.set_axis_off()
        first = next(iter(captions.values()))
        axes.set_title(textwrap.fill(textwrap.shorten(first, 90), 34).replace("$", r"\$"), fontsize=7)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scripts that matplotlib's font lacks: the captions are printed as well
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
