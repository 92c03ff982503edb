"""Shows a prepared corpus: draws some of its images, and makes a picture of them."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections import Counter

import numpy as np

from rfjax.data import hashing
from rfjax.data.prepared.manifest import COPY_AGAIN, Manifest
from rfjax.data.prepared.records import FACTS_OF, unpack
from rfjax.data.prepared.shards import Shards
from rfjax.errors import RfjaxError
from rfjax.prepare.images import film_strip

MADE_BY = "rfjax inspect"  # stored in the PNG, so that the command recognises its own picture


def samples(found: Manifest, split: str, count: int, seed: int) -> list[tuple]:
    """Draws `count` images from a split: from each bucket equally many, to within one, or all if the bucket has fewer.

    Returns for each image a row (bucket's name, the image's index in split and bucket, the record's facts, {index of a
    caption's record: caption}, the thumbnail's JPEG, the stored latent).
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
        where = f"record {place} of the {split} images in bucket {bucket.name} of {found.folder}"
        arrays, facts = _unpacked(record, "images", where)
        numbers = [*facts["original"], *facts["synthetic"]]
        if not numbers or not {"latents", "thumbnail"} <= arrays.keys():
            raise RfjaxError(f"{where} has no caption, latents or thumbnail; {COPY_AGAIN}")
        # An index outside the shard's file would read a caption of another shard.
        if lost := [number for number in numbers if not 0 <= number < texts.count(file)]:
            raise RfjaxError(f"{where} names caption {lost[0]} of {texts.count(file)}; {COPY_AGAIN}")
        records = texts.read(texts.first(file) + np.array(numbers, np.int64))
        stored = {n: _unpacked(text, "captions", where) for n, text in zip(numbers, records, strict=True)}
        captions = {number: about["caption"] for number, (_, about) in stored.items()}
        rows.append((bucket.name, place, facts, captions, bytes(arrays["thumbnail"]), arrays["latents"]))
    return rows


def _unpacked(record, kind, where):
    try:
        return unpack(record, FACTS_OF[kind])
    except ValueError as error:
        raise RfjaxError(f"{where}: {error}; {COPY_AGAIN}") from None


def picture(rows, decoded=None) -> bytes:
    """Returns a PNG that shows each image of `rows`, which come from `samples`: its thumbnail and its first caption.

    `decoded`, if given, are the images decoded from the latents, [height, width, 3] or [frames, height, width, 3] in
    [0, 1]. They are shown beside the thumbnails. A clip's thumbnail is a strip of frames; decoded frames are below it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    strips = rows[0][-1].ndim == 4
    wide = min(len(rows), 2 if strips else 4)
    high = -(-len(rows) // wide)
    sizes = (6.0, 1.7 if decoded is None else 2.7) if strips else (3.0 * (1 if decoded is None else 1.6), 3.2)
    figure = Figure(figsize=(sizes[0] * wide, sizes[1] * high), layout="constrained")
    for number, (_, _, _, captions, small, _) in enumerate(rows):
        axes = figure.add_subplot(high, wide, number + 1)
        shown = Image.open(io.BytesIO(small)).convert("RGB")
        if decoded is None:
            pixels = np.asarray(shown) / 255.0
        else:
            below = np.concatenate(list(film_strip(decoded[number])), axis=1) if strips else decoded[number]
            height, width = below.shape[:2]
            large = shown.resize((width, height), Image.Resampling.BICUBIC)
            pixels = np.concatenate([np.asarray(large) / 255.0, below], axis=0 if strips else 1)
        axes.imshow(pixels)
        axes.set_axis_off()
        first = next(iter(captions.values()))
        title = textwrap.fill(textwrap.shorten(first, 90), 68 if strips else 34)
        axes.set_title(title.replace("$", r"\$"), fontsize=7)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib's font lacks some scripts; captions are printed as well
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": MADE_BY})
    return buffer.getvalue()
