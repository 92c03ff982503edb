"""Writes the files of `rfjax duplicates`: the keys to drop and, beside them, the pairs, the curve, the images that were
not compared, and the facts (settings and counts)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rfjax.duplicates.removal import Found
from rfjax.files import write_whole
from rfjax.prepare.libraries import versions
from rfjax.prepare.part import list_counts

REASON = "near-duplicate"  # under this reason the manifest of `rfjax prepare --drop-keys` counts the dropped images
LIBRARIES = ("rfjax", "numpy", "scipy", "pillow", "faiss-cpu", "onnxruntime", "onnxruntime-gpu")


def names(out: Path) -> dict[str, Path]:
    """Returns {kind: path} of the files that are written beside the file `out` of keys."""
    stem = out.name.removesuffix(".tsv")
    kinds = {"pairs": ".pairs.tsv", "curve": ".curve.csv", "not_compared": ".not-compared.tsv", "facts": ".json"}
    return {kind: out.with_name(stem + suffix) for kind, suffix in kinds.items()}


def write(
    found: Found, out: Path, *, source: Mapping, descriptor: Mapping, threshold: float, probes: int, clips: Mapping
) -> dict:
    """Writes all files or none, and returns the content of the .json. `clips` has the fields of the rule by which clips
    were cut; it is empty for images."""
    facts = {
        "source": dict(source),
        "descriptor": dict(descriptor),
        **({"clips": dict(clips)} if clips else {}),
        "threshold": threshold,
        "clusters": found.clusters,
        "probes": min(probes, found.clusters),
        "images": found.images,
        "dropped": len(found.pairs),
        "same_bytes": sum(similarity is None for _, _, similarity in found.pairs),
        "stay_for_their_key": found.repeated,
        "left_out": dict(sorted(Counter(reason for _, reason in found.left_out).items())),  # not counted in "images"
        "not_compared": dict(sorted(Counter(reason for _, reason in found.not_compared).items())),
        "made_with": versions(LIBRARIES),
    }
    beside = names(out)
    pairs = ((key, kept, "same bytes" if s is None else f"{s:.6f}") for key, kept, s in found.pairs)
    left_out = ((ascii(key)[1:-1], reason) for key, reason in found.not_compared)
    curve = ((f"{t:g}", str(n), f"{n / found.images:.6f}") for t, n in found.curve)
    write_whole(
        {
            beside["pairs"]: _lines(("key", "kept", "similarity"), pairs),
            beside["not_compared"]: _lines(("key", "reason"), left_out),
            beside["curve"]: _lines(("threshold", "dropped", "share"), curve, ","),
            beside["facts"]: json.dumps(facts, indent=1, ensure_ascii=False) + "\n",
            out: "".join(f"{key}\t{REASON}\n" for key, _, _ in found.pairs),  # last: marks the others as complete
        }
    )
    return facts


def _lines(header: Sequence[str], rows: Iterable[Sequence[str]], separator: str = "\t") -> str:
    return "".join(separator.join(row) + "\n" for row in (header, *rows))


def summary(found: Found, facts: Mapping, out: Path) -> list[str]:
    """Returns lines for the console."""
    shares = (f"{t:g}: {n:,} ({100 * n / found.images:.3g} %)" for t, n in found.curve)
    lines = [
        f"{out}: {len(found.pairs):,} of {found.images:,} images are near-duplicates of one that stays, at similarity "
        f"{facts['threshold']:g} ({facts['same_bytes']:,} of them the same bytes); {found.clusters:,} clusters, "
        f"{facts['probes']} searched",
        f"dropped at other thresholds: {', '.join(shares)}",
    ]
    if facts["not_compared"]:
        lines.append(f"not compared: {list_counts(facts['not_compared'])}")
    if found.repeated:
        lines.append(f"{found.repeated:,} more stay, because an image that stays has the same key")
    use = f"leave them out with: rfjax prepare ... --drop-keys {out}"
    return [*lines, f"which image each duplicates, and how similar it is: {names(out)['pairs']}; {use}"]
