"""Measures how many samples a second one core loads from a prepared corpus, and how much storage each precision takes.

    python analysis/benchmarks/prepared_loading.py --folder /a/disk/with/room [--out FILE.json]

The shards are as `rfjax prepare` writes them, with real sizes and random numbers: latents of 32x32x16, 77 tokens of
CLIP-L, CLIP-G and T5, and pooled vectors. The corpus `prepared` reads them in random order and makes float32 batches.
Rates are per second of processor time of all threads together. The shards are in the page cache; in real use, a disk or
a bucket must deliver the bytes, too. A gigabyte is 10^9 bytes. All captions differ, as web captions do.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from rfjax.config import DataConfig, PreparedConfig
from rfjax.data.corpus import load_corpus
from rfjax.data.loader import batches
from rfjax.data.prepared.manifest import StoredEncoder
from rfjax.prepare import merge, shard
from rfjax.prepare.recipe import Recipe
from rfjax.prepare.sources import Record

EXAMPLES, BATCH, ROUNDS = 384, 32, 4
ENCODERS = (
    StoredEncoder("clip_l", "clip", 77, 768, 768),
    StoredEncoder("clip_g", "clip", 77, 1280, 1280),
    StoredEncoder("t5", "t5", 77, 4096, 0),
)
PRECISIONS = (
    ("float16", "float16"),
    ("float16", "float32"),
    ("float32", "float32"),
)  # of latents and contexts, of pooled


class RandomModels:
    """Features of the real sizes."""

    encoders = ENCODERS
    _rng = np.random.default_rng(0)

    def latents(self, images):
        return self._rng.standard_normal((len(images), 32, 32, 16), np.float32)

    def text(self, captions):
        found = {}
        for encoder in ENCODERS:
            found[f"{encoder.name}.context"] = self._rng.standard_normal(
                (len(captions), encoder.tokens, encoder.channels), np.float32
            )
            if encoder.pooled:
                found[f"{encoder.name}.pooled"] = self._rng.standard_normal((len(captions), encoder.pooled), np.float32)
        return found

    def token_counts(self, captions):
        return {encoder.name: [77] * len(captions) for encoder in ENCODERS}


def write(folder: Path, precision: str, pooled: str):
    """A corpus of one shard; its manifest."""
    small = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(small, "PNG")
    records = lambda part: (Record(f"{n}", small.getvalue(), {"caption": f"caption {n}"}, n) for n in range(EXAMPLES))  # noqa: E731
    source = SimpleNamespace(
        kind="folder", location="random", listing="", sizes=[EXAMPLES], label=None, class_names=None, records=records
    )
    recipe = Recipe(precision=precision, pooled_precision=pooled, buckets=((64, 64),), validation_share=0.0)
    folder.mkdir(parents=True)
    facts = shard.make_shard(
        source, 0, folder / "shard-00000-of-00001", recipe=recipe, recipe_hash="", models=RandomModels()
    )
    return merge.write_manifest(
        folder,
        [facts],
        recipe=recipe.facts(),
        source={"kind": "folder", "location": "random"},
        models={},
        encoders=ENCODERS,
        buckets=((64, 64),),
        reduction=2,
        channels=16,
        shift=0.0,
        scale=1.0,
        scaling="autoencoder",
    )


def rate(folder: Path) -> dict:
    """The best of some rounds over the corpus, each in an order of its own."""
    data = DataConfig(
        corpus="prepared",
        image_size=32,
        channels=16,
        context_tokens=154,
        context_size=4096,
        pooled_size=2048,
        prepared=PreparedConfig(path=str(folder)),
    )
    steps, found = EXAMPLES // BATCH, []
    for n in range(ROUNDS):
        corpus = load_corpus(data, n)
        cpu, wall = time.process_time(), time.perf_counter()
        count = sum(
            len(batch.latents)
            for batch in batches(corpus, batch_size=BATCH, start_step=0, stop_step=steps, read_ahead=2, threads=1)
        )
        found.append((count / (time.process_time() - cpu), count / (time.perf_counter() - wall)))
    return {"samples_per_core_second": max(f[0] for f in found), "samples_per_second": max(f[1] for f in found)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="needs 1 GB")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    folder, rows = args.folder / "prepared-loading", []
    for precision, pooled in PRECISIONS:
        try:
            found = write(folder, precision, pooled)
            sizes = {
                kind: found.facts["shards"][0]["units"][0]["files"][kind]["bytes"] / EXAMPLES
                for kind in ("images", "captions")
            }
            rows.append(
                {
                    "precision": precision,
                    "pooled": pooled,
                    "bytes_of_an_image": sizes["images"],
                    "bytes_of_a_caption": sizes["captions"],
                    **rate(folder),
                }
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print("latents, contexts  pooled    GB per million images  and captions  samples per core-second  by the clock")
    for row in rows:
        print(
            f"{row['precision']:<19}{row['pooled']:<10}{row['bytes_of_an_image'] / 1e3:>21,.1f}"
            f"{row['bytes_of_a_caption'] / 1e3:>14,.0f}"
            f"{row['samples_per_core_second']:>25,.0f}{row['samples_per_second']:>14,.0f}"
        )
    if args.out:
        args.out.write_text(
            json.dumps({"date": str(date.today()), "examples": EXAMPLES, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
