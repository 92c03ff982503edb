"""The manifest of a prepared corpus, from what its finished shards say of themselves."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rfjax.data import manifest
from rfjax.data.manifest import Manifest, StoredEncoder
from rfjax.data.prepared import SPLITS
from rfjax.errors import RfjaxError
from rfjax.files import write_whole

SCALINGS = ("autoencoder", "measured")


def write_manifest(
    folder: Path,
    shards: Sequence[Mapping],
    *,
    recipe: Mapping,
    source: Mapping,
    models: Mapping,
    encoders: Sequence[StoredEncoder],
    latent_shape: tuple[int, int, int],
    shift: float,
    scale: float,
    scaling: str,
) -> Manifest:
    """Merges the shards' facts, in their order, and writes manifest.json.

    `shift` and `scale` are the autoencoder's; with `scaling` measured they are the training latents'
    mean and 1 / standard deviation instead, over all channels (Rombach et al. 2022 measure the
    scale alone). Raises `RfjaxError` where nothing is left.
    """
    dropped = _total(shard["dropped"] for shard in shards)
    counts = {split: _total({kind: shard["splits"][split][kind] for kind in manifest.KINDS} for shard in shards) for split in SPLITS}
    if not any(count["images"] for count in counts.values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common()) or "the source is empty"
        raise RfjaxError(f"nothing is left of {source['location']}: {reasons}; the shards' .dropped.jsonl list every image")
    statistics = {split: _moments([shard["splits"][split]["statistics"] for shard in shards]) for split in SPLITS if counts[split]["images"]}
    of = statistics.get("train") or statistics["validation"]
    if scaling == "measured":
        shift, scale = of["all"]["mean"], 1.0 / of["all"]["std"]
    facts = {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "source": dict(source),
        "splits": {split: dict(count) for split, count in counts.items()},
        "latents": {
            "shape": list(latent_shape),
            "stored": "raw posterior mean; (stored - shift) * scale is what a network sees",
            "shift": shift,
            "scale": scale,
            "scaling": scaling,
            "statistics": statistics,
        },
        "text": {"encoders": [asdict(encoder) for encoder in encoders]},
        "captions": {
            name: sum(shard["splits"][split][name] for shard in shards for split in SPLITS) for name in ("original", "synthetic")
        },
        "dropped": dict(dropped),
        "converted": dict(_total(shard["converted"] for shard in shards)),
        "truncated": dict(_total(shard["truncated"] for shard in shards)),
        "models": dict(models),
        "recipe": dict(recipe),
        "shards": [{"name": shard["name"], "splits": {split: _held(shard["splits"][split]) for split in SPLITS}} for shard in shards],
    }
    write_whole({folder / manifest.NAME: json.dumps(facts, indent=1, ensure_ascii=False) + "\n"})
    for left in folder.glob(".shard-*.tmp"):  # of preparations that were killed; nobody writes any more
        shutil.rmtree(left, ignore_errors=True)
    return manifest.read(folder)


def _total(counts) -> Counter:
    total = Counter()
    for each in counts:
        total.update(each)
    return total


def _held(split):
    return {"images": split["images"], "captions": split["captions"], "files": split["files"]}


def _moments(sums: Sequence[Mapping]) -> dict:
    """Mean and standard deviation per channel and over all, of raw latents."""
    sums = [one for one in sums if one["values"]]
    count = sum(one["values"] for one in sums)
    mean = np.sum([one["sum"] for one in sums], axis=0) / count
    square = np.sum([one["squares"] for one in sums], axis=0) / count
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    overall = float(mean.mean())
    spread = float(np.sqrt(max(square.mean() - overall**2, 0.0)))
    return {"values": count, "mean": mean.tolist(), "std": std.tolist(), "all": {"mean": overall, "std": spread}}
