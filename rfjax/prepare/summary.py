"""What a prepared corpus holds, in a few lines."""

from __future__ import annotations

from rfjax.data.buckets import CYCLE
from rfjax.data.prepared import manifest
from rfjax.data.prepared.manifest import Manifest


def rare(images: int, of: int) -> str:
    """What to say of a bucket that training sees more often than its images are worth."""
    return f"; fewer than 1/{CYCLE}, which training sees oftener than the others" if 0 < images * CYCLE < of else ""


def summary(found: Manifest) -> list[str]:
    """For a console; the last line is the config that trains on it."""
    facts = found.facts
    (tokens, size), pooled, slots = manifest.layout(found.encoders)
    buckets = found.buckets
    stored = sum(file["bytes"] for file in found.every_file())
    train, validation = (facts["splits"][split] for split in ("train", "validation"))
    statistics = facts["latents"]["statistics"]
    lines = [
        f"{found.folder}: {train['images']:,} training and {validation['images']:,} validation images, "
        f"{train['captions'] + validation['captions']:,} captions stored ({facts['captions']['original']:,} original, "
        f"{facts['captions']['synthetic']:,} synthetic in use), {len(facts['shards'])} shards, {stored / 1e9:.3g} GB",
        f"source: {facts['source']['kind']} {facts['source']['location']}",
        f"latents: {'x'.join(map(str, buckets[0].latents))}, shift {found.shift!r}, scale {found.scale!r} "
        f"({facts['latents']['scaling']})",
    ]
    if len(buckets) > 1:
        lines[-1] = lines[-1].replace("latents: ", f"latents of {len(buckets)} buckets, the first ", 1)
        for bucket in buckets:
            lines.append(
                f"  {bucket.name} (height x width): latents {'x'.join(map(str, bucket.latents))}, "
                f"{bucket.images['train']:,} training and "
                f"{bucket.images['validation']:,} validation images{rare(bucket.images['train'], train['images'])}"
            )
    for split, about in statistics.items():
        mean, std = about["all"]["mean"], about["all"]["std"]
        lines.append(
            f"  {split}: mean {mean:.4f}, deviation {std:.4f} as encoded; a network sees "
            f"{(mean - found.shift) * found.scale:.4f} and {std * found.scale:.4f}"
        )
    for encoder in facts["text"]["encoders"]:
        model = facts["models"]["parts"][encoder["name"]]
        cut = facts["truncated"].get(encoder["name"], 0)
        lines.append(
            f"{encoder['name']}: {model['class']} {model['sha256'][:12]}, {encoder['tokens']} tokens of "
            f"{encoder['channels']}, pooled {encoder['pooled'] or 'none'}; {cut:,} captions cut off"
        )
    for title in ("dropped", "converted"):
        if facts[title]:
            lines.append(
                f"{title}: "
                + ", ".join(
                    f"{count:,} {reason}" for reason, count in sorted(facts[title].items(), key=lambda item: -item[1])
                )
            )
    lines += [
        "to train on it: --config.data.corpus=prepared "
        f"--config.data.prepared.path={found.folder} --config.data.image_size={found.side} "
        f"--config.data.channels={buckets[0].latents[2]} "
        f"--config.data.context_tokens={tokens} --config.data.context_size={size} --config.data.pooled_size={pooled} "
        "--config.evaluation.geneval.prompts_per_task=0 "
        f"--config.evaluation.validation.examples={min(validation['images'], 512) if validation['images'] > 1 else 0}"
    ]
    return lines
