"""Describes a prepared corpus in a few lines."""

from __future__ import annotations

from rfjax.data.buckets import CYCLE
from rfjax.data.prepared import manifest
from rfjax.data.prepared.manifest import Manifest
from rfjax.prepare.clips import describe_rule
from rfjax.prepare.images import CUT
from rfjax.prepare.part import list_counts


def rarity_note(images: int, total: int) -> str:
    """Returns a note if a bucket has images, but fewer than 1/`CYCLE` of the `total`, so that training sees its images
    more often than the others; else ""."""
    return f"; fewer than 1/{CYCLE}, which training sees oftener than the others" if 0 < images * CYCLE < total else ""


def summary(found: Manifest) -> list[str]:
    """Returns lines for a console; the last has the config overrides to train on the corpus."""
    facts = found.facts
    (tokens, size), pooled, slots = manifest.layout(found.encoders)
    buckets, latents = found.buckets, facts["latents"]
    gigabytes = sum(file["bytes"] for file in found.every_file()) / 1e9
    train, validation = (facts["splits"][split] for split in ("train", "validation"))
    rule = facts["recipe"].get("clips")
    what = "images" if rule is None else "clips"
    several = f" of the first of {len(buckets)} buckets" if len(buckets) > 1 else ""
    lines = [
        f"{found.folder}: {train['images']:,} training and {validation['images']:,} validation {what}, "
        f"{train['captions'] + validation['captions']:,} captions stored ({facts['captions']['original']:,} original, "
        f"{facts['captions']['synthetic']:,} synthetic in use), {len(facts['shards'])} shards, {gigabytes:.3g} GB",
        f"source: {facts['source']['kind']} {facts['source']['location']}",
        f"latents{several}: {'x'.join(map(str, buckets[0].stored))}, shift {found.shift!r}, scale {found.scale!r} "
        f"({latents['scaling']})",
    ]
    if rule is not None:
        lines.append(describe_rule(rule))
    for bucket in buckets if len(buckets) > 1 else ():
        counts = f"{bucket.images['train']:,} training and {bucket.images['validation']:,} validation {what}"
        sides, note = "x".join(map(str, bucket.stored)), rarity_note(bucket.images["train"], train["images"])
        lines.append(
            f"  {bucket.name} ({'' if rule is None else 'frames x '}height x width): latents {sides}, {counts}{note}"
        )
    for split, statistics in latents["statistics"].items():
        mean, std = statistics["all"]["mean"], statistics["all"]["std"]
        seen = f"{(mean - found.shift) * found.scale:.4f} and {std * found.scale:.4f}"
        lines.append(f"  {split}: mean {mean:.4f}, deviation {std:.4f} as encoded; a network sees {seen}")
    for encoder in facts["text"]["encoders"]:
        name, model = encoder["name"], facts["models"]["parts"][encoder["name"]]
        lines.append(
            f"{name}: {model['class']} {model['sha256'][:12]}, {encoder['tokens']} tokens of {encoder['channels']}, "
            f"pooled {encoder['pooled'] or 'none'}; {facts['truncated'].get(name, 0):,} captions cut off"
        )
    for title, name in (("not read", "passed_over"), ("noticed", "noticed")):
        if counts := facts["source"].get(name):
            lines.append(f"{title}: {list_counts(counts)}")
    if validation["images"] < 2 and facts["recipe"].get("validation_share"):
        share = f"--validation-share {facts['recipe']['validation_share']:g}"
        came = "none" if not validation["images"] else "1, and a validation loss needs 2"
        lines.append(
            f"no validation loss: {share} of {train['images'] + validation['images']:,} {what} came to {came}; prepare "
            "into another folder with a larger share, or with --validation-keys"
        )
    lines += [f"{title}: {list_counts(facts[title])}" for title in ("dropped", "converted") if facts[title]]
    if lost := facts["converted"].get(CUT):
        lines.append(
            f"the centred crop cuts off more than half of {lost:,} {what}; prepare into another folder with --buckets "
            "of shapes nearer to theirs, or drop them with --filter on aspect"
        )
    if facts["dropped"]:
        lines.append(f"each that was dropped is named in {found.folder}/shard-*.dropped.jsonl")
    examples = min(validation["images"], 512) if validation["images"] > 1 else 0
    config = {
        "data.corpus": "prepared",
        "data.prepared.path": found.folder,
        **({"data.frames": buckets[0].latents[0]} if buckets[0].latents[0] > 1 else {}),
        "data.image_size": found.side,
        "data.channels": buckets[0].latents[-1],
        "data.context_tokens": tokens,
        "data.context_size": size,
        "data.pooled_size": pooled,
        "evaluation.geneval.prompts_per_task": 0,
        "evaluation.validation.examples": examples,
    }
    return [*lines, "to train on it: " + " ".join(f"--config.{field}={value}" for field, value in config.items())]
