"""`rfjax duplicates`: its arguments, and the order of its work."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

from rfjax.errors import ConfigError, RfjaxError
from rfjax.prepare.options import add_options
from rfjax.prepare.progress import SAID_EVERY, say
from rfjax.training.progress import format_duration

STEP, STEPS_DOWN = 0.05, 4  # of the curve: thresholds from four steps below the chosen one up to 1


def add_arguments(parser) -> None:
    add_options(parser, "source")
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
    add_options(described, "--batch-size")
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
    add_options(kept, "--filter", "--drop-keys")
    add_options(kept, "--caption-column", "--synthetic-column", "--label-column", "--class-names")
    kept.add_argument(
        "--uncaptioned",
        action="store_true",
        help="compare images without a caption, too: of a source that is to be recaptioned",
    )
    add_options(parser.add_argument_group("work"), "--shard-size", "--task", "--threads")


def run(args, overrides) -> int:
    """Describes what is not described yet and, unless it is one task of several, searches and writes what to drop."""
    from rfjax.duplicates import describe
    from rfjax.duplicates.search import faiss_module
    from rfjax.prepare import work
    from rfjax.prepare.captions import CaptionColumns
    from rfjax.prepare.reading import Reading, given, open_captioned
    from rfjax.prepare.recipe import Recipe

    out = Path(args.out)
    task = work.parse_task(args.task)
    _check(args, out)
    reading = Reading(**given(Reading, args))
    source, columns = open_captioned(reading)
    descriptor = _descriptor(args)
    faiss = faiss_module()
    recipe = Recipe(
        buckets=((descriptor.side, descriptor.side),),
        batch_size=args.batch_size,
        shard_size=args.shard_size,
        columns=CaptionColumns(original=describe.ANY) if args.uncaptioned else columns,
        filters=reading.filters(),
        dropped_keys=reading.dropped_keys(),
    )
    folder, about = out.with_name(out.name + ".descriptors"), work.about(source)

    def merge(paths, recipe_hash):
        if args.threads:
            faiss.omp_set_num_threads(args.threads)
        about_source = {**about, "location": source.location}
        return _search(args, descriptor, _described(paths, recipe_hash), about_source)

    job = work.Job(
        source=source,
        folder=folder,
        facts={"descriptor": descriptor.facts, "recipe": recipe.facts(), "source": about},
        stem="descriptors",
        to_merge="without --task",
        threads=args.threads,
        finished=lambda path, recipe_hash: describe.read(path, recipe_hash) and path,
        make=functools.partial(describe.describe_part, descriptor=descriptor, recipe=recipe),
        merge=merge,
    )
    return work.run(job, task)


def _search(args, descriptor, parts, source) -> list[str]:
    """Finds what is to be dropped, and writes the files that say so; returns the lines to print."""
    from rfjax.duplicates import removal, written

    threshold = descriptor.threshold if args.threshold is None else args.threshold
    search = Searching()
    found = removal.find(
        parts,
        threshold=threshold,
        curve=curve_thresholds(threshold),
        clusters=args.clusters,
        probes=args.probes,
        tell=search.tell,
        began=search.began,
    )
    facts = written.write(
        found, Path(args.out), source=source, descriptor=descriptor.facts, threshold=threshold, probes=args.probes
    )
    return written.summary(found, facts, Path(args.out))


def _described(paths, recipe_hash):
    """The parts that were described, one at a time."""
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
            left = format_duration((now - self._began) * (self._count - done) / done)
            say(f"search: {done:,} of {self._count:,} images, {100 * done / self._count:.0f} %, {left} left")


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
