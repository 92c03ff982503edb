"""The manifest of a prepared corpus, from what its finished shards say of themselves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rfjax.data.prepared import manifest
from rfjax.data.prepared.manifest import SPLITS, Manifest, StoredEncoder, bucket_name
from rfjax.errors import RfjaxError
from rfjax.files import write_whole

SCALINGS = ("autoencoder", "measured")
HELD = ("bucket", "split", *manifest.KINDS, "files")  # what the manifest keeps of a shard's units


def write_manifest(
    folder: Path,
    shards: Sequence[Mapping],
    *,
    recipe: Mapping,
    source: Mapping,
    models: Mapping,
    encoders: Sequence[StoredEncoder],
    buckets: Sequence[tuple[int, int]],
    reduction: int,
    channels: int,
    shift: float,
    scale: float,
    scaling: str,
) -> Manifest:
    """Merges the shards' facts, in their order, and writes manifest.json.

    `buckets` are (height, width) in pixels, `reduction` of which are one of a latent. `shift` and `scale` are the
    autoencoder's; with `scaling` measured they are the training latents'
    mean and 1 / standard deviation instead, over all channels (Rombach et al. 2022 measure the
    scale alone). Raises `RfjaxError` where nothing is left.
    """
    dropped = _total(shard["dropped"] for shard in shards)
    units = [unit for shard in shards for unit in shard["units"]]
    if not units:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common()) or "the source is empty"
        raise RfjaxError(
            f"nothing is left of {source['location']}: {reasons}; the shards' .dropped.jsonl list every image"
        )
    of_split = {split: [unit for unit in units if unit["split"] == split] for split in SPLITS}
    statistics = {split: _moments([unit["statistics"] for unit in own]) for split, own in of_split.items() if own}
    of = statistics.get("train") or statistics["validation"]
    if scaling == "measured":
        shift, scale = of["all"]["mean"], 1.0 / of["all"]["std"]
    facts = {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "source": dict(source),
        "splits": {split: _counts(own) for split, own in of_split.items()},
        "buckets": [
            {
                "name": bucket_name(pixels),
                "pixels": list(pixels),
                "latents": [pixels[0] // reduction, pixels[1] // reduction, channels],
                "splits": {
                    split: _counts(unit for unit in own if unit["bucket"] == bucket_name(pixels))
                    for split, own in of_split.items()
                },
            }
            for pixels in buckets
        ],
        "latents": {
            "stored": "raw posterior mean; (stored - shift) * scale is what a network sees",
            "shift": shift,
            "scale": scale,
            "scaling": scaling,
            "statistics": statistics,
        },
        "text": {"encoders": [asdict(encoder) for encoder in encoders]},
        "captions": {name: sum(unit[name] for unit in units) for name in ("original", "synthetic")},
        "dropped": dict(dropped),
        "converted": dict(_total(shard["converted"] for shard in shards)),
        "truncated": dict(_total(shard["truncated"] for shard in shards)),
        "models": dict(models),
        "recipe": dict(recipe),
        "shards": [
            {"name": shard["name"], "units": [{name: unit[name] for name in HELD} for unit in shard["units"]]}
            for shard in shards
        ],
    }
    write_whole({folder / manifest.NAME: json.dumps(facts, indent=1, ensure_ascii=False) + "\n"})
    return manifest.read(folder)


def _total(counts) -> Counter:
    total = Counter()
    for each in counts:
        total.update(each)
    return total


def _counts(units) -> dict:
    total = _total({kind: unit[kind] for kind in manifest.KINDS} for unit in units)
    return {kind: total[kind] for kind in manifest.KINDS}


def _moments(sums: Sequence[Mapping]) -> dict:
    """Mean and standard deviation per channel and over all, of raw latents."""
    count = sum(one["values"] for one in sums)
    mean = np.sum([one["sum"] for one in sums], axis=0) / count
    square = np.sum([one["squares"] for one in sums], axis=0) / count
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    overall = float(mean.mean())
    spread = float(np.sqrt(max(square.mean() - overall**2, 0.0)))
    return {"values": count, "mean": mean.tolist(), "std": std.tolist(), "all": {"mean": overall, "std": spread}}
