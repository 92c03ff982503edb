"""The files that `rfjax duplicates` leaves: keys to drop, and beside them pairs, the curve, what was not compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rfjax.duplicates.removal import Found
from rfjax.files import write_whole
from rfjax.prepare import work

REASON = "near-duplicate"  # what the manifest of `rfjax prepare --drop-keys` counts them under
LIBRARIES = ("rfjax", "numpy", "scipy", "pillow", "faiss-cpu", "onnxruntime", "onnxruntime-gpu")


def names(out: Path) -> dict[str, Path]:
    """The files beside OUT."""
    stem = out.name.removesuffix(".tsv")
    kinds = {"pairs": ".pairs.tsv", "curve": ".curve.csv", "not_compared": ".not-compared.tsv", "facts": ".json"}
    return {kind: out.with_name(stem + suffix) for kind, suffix in kinds.items()}


def write(found: Found, out: Path, *, source: Mapping, descriptor: Mapping, threshold: float, probes: int) -> dict:
    """Writes all of them or none, and returns the facts."""
    facts = {
        "source": dict(source),
        "descriptor": dict(descriptor),
        "threshold": threshold,
        "clusters": found.clusters,
        "probes": min(probes, found.clusters),
        "images": found.images,
        "dropped": len(found.pairs),
        "same_bytes": sum(similarity is None for _, _, similarity in found.pairs),
        "stay_for_their_key": found.repeated,
        "not_compared": dict(sorted(Counter(reason for _, reason in found.not_compared).items())),
        "made_with": work.versions(LIBRARIES),
    }
    named = names(out)
    pairs = ((key, kept, "same bytes" if s is None else f"{s:.6f}") for key, kept, s in found.pairs)
    left_out = ((ascii(key)[1:-1], reason) for key, reason in found.not_compared)
    curve = ((f"{t:g}", str(n), f"{n / found.images:.6f}") for t, n in found.curve)
    write_whole(
        {
            named["pairs"]: _lines(("key", "kept", "similarity"), pairs),
            named["not_compared"]: _lines(("key", "reason"), left_out),
            named["curve"]: _lines(("threshold", "dropped", "share"), curve, ","),
            named["facts"]: json.dumps(facts, indent=1, ensure_ascii=False) + "\n",
            out: "".join(f"{key}\t{REASON}\n" for key, _, _ in found.pairs),  # last: what says that the rest is there
        }
    )
    return facts


def _lines(header: Sequence[str], rows: Iterable[Sequence[str]], separator: str = "\t") -> str:
    return "".join(separator.join(row) + "\n" for row in (header, *rows))


def summary(found: Found, facts: Mapping, out: Path) -> list[str]:
    """What was found, for the console."""
    copies = facts["same_bytes"]
    lines = [
        f"{out}: {len(found.pairs):,} of {found.images:,} images are near-duplicates of one that stays at similarity "
        f"{facts['threshold']:g} "
        f"({copies:,} of them the same bytes); {found.clusters:,} clusters, {facts['probes']} searched",
        "dropped at other thresholds: "
        + ", ".join(f"{t:g}: {n:,} ({100 * n / found.images:.3g} %)" for t, n in found.curve),
    ]
    if facts["not_compared"]:
        lines.append("not compared: " + ", ".join(f"{n:,} {reason}" for reason, n in facts["not_compared"].items()))
    if found.repeated:
        lines.append(f"{found.repeated:,} more stay, because an image that stays has the same key")
    lines.append(
        f"which of which, and how similar: {names(out)['pairs']}; leave them out with: rfjax prepare ... "
        f"--drop-keys {out}"
    )
    return lines
