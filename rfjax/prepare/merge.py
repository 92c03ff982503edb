"""Makes the manifest of a prepared corpus from the .json files of its finished shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rfjax.data.prepared import manifest, manifest_facts
from rfjax.data.prepared.manifest import SPLITS, Manifest, StoredEncoder
from rfjax.data.prepared.manifest_facts import FORMAT, KINDS, NAME, VERSION, bucket_name
from rfjax.errors import RfjaxError
from rfjax.files import write_whole
from rfjax.inputs import seals
from rfjax.inputs.json_files import WrongJson
from rfjax.prepare.part import NO_CAPTION, NO_TEXT, list_counts

SCALINGS = ("autoencoder", "measured")
LARGEST_SUM = 1e150  # a larger number's square would overflow
HELD = ("bucket", "split", *KINDS, "files")  # keys of a shard's units that the manifest keeps


def write_manifest(
    folder: Path,
    shards: Sequence[Mapping],
    *,
    recipe: Mapping,
    source: Mapping,
    models: Mapping,
    encoders: Sequence[StoredEncoder],
    buckets: Sequence[tuple[int, ...]],
    reduction: int,
    channels: int,
    time_reduction: int = 1,
    shift: float,
    scale: float,
    scaling: str,
) -> Manifest:
    """Merges the shards' facts, in their order, and writes manifest.json; returns the manifest.

    `buckets` are (height, width) in pixels, or (frames, height, width) for clips. A latent has the bucket's sides
    divided by `reduction`, and 1 + (frames - 1) / `time_reduction` frames. If `scaling` is "measured", the given
    `shift` and `scale` are replaced by the mean and 1 / standard deviation, over all channels, of the training latents
    or, if there are none, of the validation latents (Rombach et al. 2022 measure only the scale). Raises `RfjaxError`
    if no image is left, if the latents to measure are all equal, and for facts that contradict each other.
    """
    dropped = _total(shard["dropped"] for shard in shards)
    units = [unit for shard in shards for unit in shard["units"]]
    if not units:
        reasons = list_counts(dropped) or "the source is empty"
        remedy = "see the shards' .dropped.jsonl"
        if set(dropped) <= {NO_CAPTION, NO_TEXT} and dropped:
            label, column = recipe["columns"]["label"], recipe["columns"]["original"]
            reasons += f" (looked for in {'the class in ' if label else ''}column {label or column!r})"
            places = "a .txt, .caption or .json beside each image, metadata.jsonl or metadata.csv, or a column"
            remedy = f"captions come from {places}; or give --label-column=folder or --synthetic-captions"
        raise RfjaxError(f"nothing is left of {source['location']}: {reasons}; {remedy}")
    of_split = {split: [unit for unit in units if unit["split"] == split] for split in SPLITS}
    damaged = f"the shards' .json in {folder} contradict each other", "remove them and give the command again"
    if wrong := next((unit for unit in units if not _has_sums(unit["statistics"], channels)), None):
        what = f"{wrong['files']['images']['name']} has sums of latents that are not {channels} finite numbers"
        raise RfjaxError(f"{damaged[0]}: {what}; {damaged[1]}")
    statistics = {split: _moments([unit["statistics"] for unit in some]) for split, some in of_split.items() if some}
    if scaling == "measured":
        moments = (statistics.get("train") or statistics["validation"])["all"]
        if not moments["std"] > 0:
            given = f"--latent-scaling is measured, and all latents of {source['location']} are {moments['mean']:g}"
            raise RfjaxError(f"{given}; give the same command with --latent-scaling=autoencoder")
        shift, scale = moments["mean"], 1.0 / moments["std"]

    def describe(pixels):
        name, frames = bucket_name(pixels), [1 + (frames - 1) // time_reduction for frames in pixels[:-2]]
        inside = {split: [unit for unit in some if unit["bucket"] == name] for split, some in of_split.items()}
        return {
            "name": name,
            "pixels": list(pixels),
            "latents": [*frames, *(side // reduction for side in pixels[-2:]), channels],
            "splits": {split: _count(some) for split, some in inside.items()},
        }

    facts = {
        "format": FORMAT,
        "version": VERSION,
        "source": dict(source),
        "splits": {split: _count(some) for split, some in of_split.items()},
        "buckets": [describe(pixels) for pixels in buckets],
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
    try:
        manifest_facts.check(facts)
    except WrongJson as error:
        raise RfjaxError(f"{damaged[0]}: {error}; {damaged[1]}") from None
    manifest.check_records(Manifest(folder, facts))
    write_whole({folder / NAME: json.dumps(seals.seal(facts), indent=1, ensure_ascii=False) + "\n"})
    return manifest.read(folder)


def _total(counts) -> Counter:
    total = Counter()
    for some in counts:
        total.update(some)
    return total


def _count(units) -> dict[str, int]:
    return {kind: sum(unit[kind] for unit in units) for kind in KINDS}


def _has_sums(sums: Mapping, channels: int) -> bool:
    """Returns whether `sums`, over a shard's latents of one split and bucket, have a number for each channel, and give
    a finite mean and standard deviation."""
    whole = all(len(sums[name]) == channels for name in ("sum", "squares"))
    return whole and sums["values"] > 0 and max(map(abs, (*sums["sum"], *sums["squares"]))) < LARGEST_SUM


def _moments(sums: Sequence[Mapping]) -> dict:
    """Computes the mean and standard deviation of raw latents, per channel and over all channels (`all`)."""
    count = sum(unit["values"] for unit in sums)
    mean = np.sum([unit["sum"] for unit in sums], axis=0) / count
    square = np.sum([unit["squares"] for unit in sums], axis=0) / count
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    overall = float(mean.mean())
    spread = float(np.sqrt(max(square.mean() - overall**2, 0.0)))
    return {"values": count, "mean": mean.tolist(), "std": std.tolist(), "all": {"mean": overall, "std": spread}}
