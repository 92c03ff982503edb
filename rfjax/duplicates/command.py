"""`rfjax duplicates`: its arguments, the order of its work, and the files that it leaves."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rfjax.errors import ConfigError, RfjaxError
from rfjax.files import write_whole
from rfjax.prepare import command as prepare
from rfjax.prepare import work
from rfjax.prepare.progress import SAID_EVERY, duration, say

REASON = "near-duplicate"  # what the manifest of `rfjax prepare --drop-keys` counts them under
LIBRARIES = ("rfjax", "numpy", "scipy", "pillow", "faiss-cpu", "onnxruntime", "onnxruntime-gpu")
STEP, STEPS_DOWN = 0.05, 4  # of the curve: thresholds from four steps below the chosen one up to 1
PASSED_ON = ("filter", "drop_keys", "caption_column", "synthetic_column", "label_column", "class_names", "shard_size")


def add_arguments(parser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="as of rfjax prepare: a folder of images, .tar files, .parquet files, or tfds:NAME",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE.tsv",
        help="keys for rfjax prepare --drop-keys; pairs, curve and descriptors go beside it",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="S",
        help="similarity from which on two images are duplicates, in (0, 1] (default 0.9; 0.75 for a model)",
    )
    described = parser.add_argument_group("descriptor")
    described.add_argument(
        "--descriptor",
        default="phash",
        metavar="phash|MODEL.onnx",
        help="a perceptual hash of 256 bits, or a model such as SSCD (default phash)",
    )
    described.add_argument(
        "--model-size",
        type=int,
        metavar="PIXELS",
        help="side of the square that the model sees, where its input does not say",
    )
    described.add_argument(
        "--model-mean",
        default="0.485,0.456,0.406",
        metavar="R,G,B",
        help="subtracted from RGB in [0, 1] (default: ImageNet's, as SSCD)",
    )
    described.add_argument(
        "--model-std",
        default="0.229,0.224,0.225",
        metavar="R,G,B",
        help="divided by then (default: ImageNet's, as SSCD)",
    )
    described.add_argument(
        "--model-output", metavar="NAME", help="the descriptor, where the model gives several arrays"
    )
    described.add_argument(
        "--mirrored",
        action="store_true",
        help="compare mirrored images, too, for a model that sees a difference; phash always does",
    )
    described.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images described at once (default 32)"
    )
    searched = parser.add_argument_group("search")
    searched.add_argument(
        "--clusters", type=int, metavar="N", help="of k-means (default: 1 up to 50,000 images, then 2 sqrt(images))"
    )
    searched.add_argument(
        "--probes",
        type=int,
        default=8,
        metavar="N",
        help="nearest clusters that are searched; the paper searches 1 (default 8)",
    )
    kept = parser.add_argument_group("images", "what rfjax prepare would drop is not compared: give the same as there")
    kept.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="COMPARISON",
        help="as 'aesthetic>=5'; may be given several times",
    )
    kept.add_argument("--drop-keys", metavar="FILE", help="keys of images to leave out, one a line")
    kept.add_argument(
        "--uncaptioned",
        action="store_true",
        help="compare images without a caption, too: of a source that is to be recaptioned",
    )
    kept.add_argument("--caption-column", metavar="NAME")
    kept.add_argument("--synthetic-column", metavar="NAME")
    kept.add_argument("--label-column", metavar="NAME")
    kept.add_argument("--class-names", metavar="FILE")
    tasks = parser.add_argument_group("work")
    tasks.add_argument(
        "--shard-size",
        type=int,
        default=1024,
        metavar="N",
        help="images a file of descriptors; a tar is one of its own (default 1024)",
    )
    tasks.add_argument(
        "--task",
        metavar="I/N",
        help="describe only every Nth part, from the Ith (0 to N-1), and search nothing: for N processes or hosts",
    )
    tasks.add_argument(
        "--threads", type=int, default=0, metavar="N", help="that decode and search (default: one a core)"
    )


def run(args) -> int:
    """Describes what is not described yet and, unless it is one task of several, searches and writes what to drop."""
    from rfjax.duplicates import describe, removal
    from rfjax.duplicates.search import faiss_module
    from rfjax.prepare import recipe as recipes
    from rfjax.prepare.captions import CaptionColumns

    out = Path(args.out)
    own = work.parse_task(args.task)
    _check(args, out)
    source, recipe = prepare.plan(_as_prepare(args))
    descriptor = _descriptor(args)
    threshold = descriptor.threshold if args.threshold is None else args.threshold
    faiss = faiss_module()
    if args.uncaptioned:
        recipe = dataclasses.replace(recipe, columns=CaptionColumns(original=describe.ANY))
    recipe = dataclasses.replace(recipe, buckets=((descriptor.side, descriptor.side),), batch_size=args.batch_size)
    folder, parts = out.with_name(out.name + ".descriptors"), len(source.sizes)
    about = work.about(source)
    recipe_hash = recipes.settle(folder, {"descriptor": descriptor.facts, "recipe": recipe.facts(), "source": about})
    paths = [folder / describe.file_name(part, parts) for part in range(parts)]
    to_make = [part for part in range(own[0], parts, own[1]) if describe.read(paths[part], recipe_hash) is None]
    work.make_missing(
        source,
        [path.name for path in paths],
        to_make,
        lambda part, tell: describe.describe_part(
            source,
            part,
            paths[part],
            descriptor=descriptor,
            recipe=recipe,
            recipe_hash=recipe_hash,
            threads=work.threads(args.threads),
            tell=tell,
        ),
    )
    if args.task:
        say(f"task {args.task} is done; when all are: the same command without --task")
        return 0
    if args.threads:
        faiss.omp_set_num_threads(args.threads)
    search = Searching()
    found = removal.find(
        _described(paths, recipe_hash),
        threshold=threshold,
        curve=curve_thresholds(threshold),
        clusters=args.clusters,
        probes=args.probes,
        tell=search.tell,
        began=search.began,
    )
    facts = {
        "source": {**about, "location": source.location},
        "descriptor": descriptor.facts,
        "threshold": threshold,
        "clusters": found.clusters,
        "probes": min(args.probes, found.clusters),
        "images": found.images,
        "dropped": len(found.pairs),
        "same_bytes": sum(similarity is None for _, _, similarity in found.pairs),
        "stay_for_their_key": found.repeated,
        "not_compared": dict(sorted(Counter(reason for _, reason in found.not_compared).items())),
        "made_with": work.versions(LIBRARIES),
    }
    named = names(out)
    write_whole(
        {
            named["pairs"]: _lines(
                ("key", "kept", "similarity"),
                ((key, kept, "same bytes" if s is None else f"{s:.6f}") for key, kept, s in found.pairs),
            ),
            named["not_compared"]: _lines(
                ("key", "reason"), ((ascii(key)[1:-1], reason) for key, reason in found.not_compared)
            ),
            named["curve"]: _lines(
                ("threshold", "dropped", "share"),
                ((f"{t:g}", str(n), f"{n / found.images:.6f}") for t, n in found.curve),
                ",",
            ),
            named["facts"]: json.dumps(facts, indent=1, ensure_ascii=False) + "\n",
            out: "".join(f"{key}\t{REASON}\n" for key, _, _ in found.pairs),  # last: what says that the rest is there
        }
    )
    for left in folder.glob(".*.tmp"):  # of commands that were killed
        left.unlink(missing_ok=True)
    print("\n".join(_summary(found, facts, out)))
    return 0


def _described(paths, recipe_hash):
    from rfjax.duplicates import describe

    for path in paths:
        part = describe.read(path, recipe_hash)
        if part is None:
            raise RfjaxError(f"{path} has changed since it was written; give the command again")
        yield part


class Searching:
    """The lines of the search, whose size is known when its clusters are made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        say("search: the index is made")

    def began(self, count: int) -> None:
        self._count, self._began = count, self._clock()
        self._said = self._began

    def tell(self, done: int) -> None:
        now = self._clock()
        if done < self._count and now - self._said >= SAID_EVERY:
            self._said = now
            left = duration((now - self._began) * (self._count - done) / done)
            say(f"search: {done:,} of {self._count:,} images, {100 * done / self._count:.0f} %, {left} left")


def names(out: Path) -> dict[str, Path]:
    """The files beside OUT."""
    stem = out.name.removesuffix(".tsv")
    kinds = {"pairs": ".pairs.tsv", "curve": ".curve.csv", "not_compared": ".not-compared.tsv", "facts": ".json"}
    return {kind: out.with_name(stem + suffix) for kind, suffix in kinds.items()}


def curve_thresholds(threshold: float) -> list[float]:
    """Those that the curve has besides the chosen one."""
    steps = range(-STEPS_DOWN, 1 + int((1 - threshold) / STEP + 1e-9))
    return [t for step in steps if 0 < (t := round(threshold + step * STEP, 6)) <= 1]


def _check(args, out):
    for name, least in (("batch_size", 1), ("clusters", 1), ("probes", 1), ("threads", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if args.threshold is not None and not 0 < args.threshold <= 1:
        raise ConfigError(f"--threshold is {args.threshold}; it must lie in (0, 1]: 1 drops what cannot be told apart")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give a file")
    if args.drop_keys and out.absolute() == Path(args.drop_keys).absolute():
        raise ConfigError(f"--out and --drop-keys are both {out}; give two files")
    given = [o for o in ("model_size", "model_output", "mirrored") if getattr(args, o)]
    if args.descriptor == "phash" and given:
        raise ConfigError(f"--{given[0].replace('_', '-')} is for a model; give its .onnx with --descriptor")


def _as_prepare(args):
    """The arguments as `rfjax prepare` would have them, so that the same images are kept here and there."""
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    whole = parser.parse_args([args.source, "--out=", "--models="])
    for name in PASSED_ON:
        setattr(whole, name, getattr(args, name))
    return whole


def _descriptor(args):
    from rfjax.duplicates import descriptors

    if args.descriptor == "phash":
        return descriptors.Phash()
    return descriptors.Model(
        args.descriptor,
        side=args.model_size,
        mean=_three("--model-mean", args.model_mean),
        std=_three("--model-std", args.model_std),
        output=args.model_output,
        mirrored=args.mirrored,
    )


def _three(option, text):
    try:
        values = tuple(float(one) for one in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise ConfigError(f"{option} is {text!r}; it is three numbers, as 0.485,0.456,0.406")
    return values


def _lines(header, rows, separator="\t"):
    return "".join(separator.join(row) + "\n" for row in (header, *rows))


def _summary(found, facts, out):
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
