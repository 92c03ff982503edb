"""`rfjax duplicates`: finds near-duplicate images in a source, and writes the keys of those to drop."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs.paths import as_path, as_text
from rfjax.prepare.options import add_options, check_range, source_paths
from rfjax.prepare.progress import SAID_EVERY, say
from rfjax.training.progress import format_duration

STEP, STEPS_DOWN = 0.05, 4  # the curve's thresholds go from four steps below the chosen one up to 1


def add_arguments(parser) -> None:
    add_options(parser, "source")
    out = "keys for rfjax prepare --drop-keys; pairs, curve and descriptors go beside it"
    parser.add_argument("--out", required=True, metavar="FILE.tsv", type=as_path("--out"), help=out)
    threshold = "least similarity of duplicates, in (0, 1] (default 0.9; 0.75 for a model)"
    parser.add_argument("--threshold", type=float, metavar="S", help=threshold)
    descriptor = parser.add_argument_group("descriptor")
    kinds = "a perceptual hash of 256 bits (default), or a model such as SSCD"
    named = {"metavar": "phash|MODEL.onnx", "type": as_text("--descriptor")}
    descriptor.add_argument("--descriptor", default="phash", help=kinds, **named)
    size = "side of the images that the model sees, if the model takes any size"
    descriptor.add_argument("--model-size", type=int, metavar="PIXELS", help=size)
    mean, std = (
        "mean that is subtracted from RGB in [0, 1] (default: ImageNet's); not for a model whose input is bytes",
        "standard deviation by which the result is divided (default: ImageNet's)",
    )
    descriptor.add_argument("--model-mean", metavar="R,G,B", help=mean)
    descriptor.add_argument("--model-std", metavar="R,G,B", help=std)
    descriptor.add_argument("--model-output", metavar="NAME", help="the descriptor, if the model gives several arrays")
    descriptor.add_argument(
        "--mirrored", action="store_true", help="compare mirrored images, too, as phash always does"
    )
    add_options(descriptor, "--batch-size")
    search = parser.add_argument_group("search")
    search.add_argument(
        "--clusters",
        type=int,
        metavar="N",
        help="number of clusters to sort descriptors into (default: 1 up to 50,000 images, then 2 sqrt(images))",
    )
    probes = "number of nearest clusters to search; the paper searches 1 (default 8)"
    search.add_argument("--probes", type=int, default=8, metavar="N", help=probes)
    images = parser.add_argument_group("images", "as rfjax prepare has them: what it would drop is not compared")
    add_options(images, "--filter", "--drop-keys")
    add_options(images, "--caption-column", "--synthetic-column", "--label-column", "--class-names")
    uncaptioned = "compare images without a caption, too, for a source that is to be recaptioned"
    images.add_argument("--uncaptioned", action="store_true", help=uncaptioned)
    clips = "as rfjax prepare cuts them, compared by three of their frames: give prepare the same three options"
    add_options(parser.add_argument_group("clips", clips), "--frames", "--fps", "--clips")
    add_options(parser.add_argument_group("work"), "--shard-size", "--task", "--threads")


def run(args, overrides) -> int:
    """Describes the missing parts and then, unless the command is one task of several, writes the keys to drop."""
    from rfjax.duplicates import describe
    from rfjax.duplicates.search import faiss_module
    from rfjax.prepare import given_keys, work
    from rfjax.prepare.captions import CaptionColumns
    from rfjax.prepare.reading import Reading, fields_given, open_captioned
    from rfjax.prepare.recipe import Recipe

    out = args.out
    task = work.parse_task(args.task)
    _check(args, out)
    reading = Reading(**fields_given(Reading, args))
    rule = reading.clip_rule()
    reading.require_video()
    source, columns = open_captioned(reading)
    descriptor = _descriptor(args)
    faiss = faiss_module()
    recipe = Recipe(
        buckets=((descriptor.height, descriptor.width),),
        batch_size=args.batch_size,
        shard_size=args.shard_size,
        columns=CaptionColumns(original=describe.ANY) if args.uncaptioned else columns,
        filters=reading.filters(),
        dropped_keys=reading.dropped_keys(),
        clips=rule,
    )
    source = given_keys.noticing(source, given_keys.known_before(source, {"--drop-keys": recipe.dropped_keys}, rule))
    about = work.source_facts(source)

    def merge(paths, recipe_hash):
        if args.threads:
            faiss.omp_set_num_threads(args.threads)
        return _search(args, descriptor, _read_parts(paths, recipe_hash), work.located(about, source), rule)

    job = work.Job(
        source=source,
        folder=out.with_name(out.name + ".descriptors"),
        facts={"descriptor": descriptor.facts, "recipe": recipe.facts(), "source": about},
        stem="descriptors",
        to_merge="without --task",
        threads=args.threads,
        finished=lambda path, recipe_hash: describe.read(path, recipe_hash) and path,
        make=functools.partial(describe.describe_part, descriptor=descriptor, recipe=recipe),
        merge=merge,
    )
    return work.run(job, task)


def _search(args, descriptor, parts, source, rule) -> list[str]:
    """Finds the images to drop and writes the files that list them; returns the lines to print."""
    from rfjax.duplicates import output, removal

    threshold = descriptor.threshold if args.threshold is None else args.threshold
    curve, search = curve_thresholds(threshold), Searching()
    counts = {"clusters": args.clusters, "probes": args.probes}
    found = removal.find(parts, threshold=threshold, curve=curve, **counts, tell=search.tell, began=search.began)
    about = {"source": source, "descriptor": descriptor.facts, "threshold": threshold, "probes": args.probes}
    about["clips"] = {} if rule is None else asdict(rule)
    return output.summary(found, output.write(found, args.out, **about), args.out)


def _read_parts(paths, recipe_hash):
    """Yields the parts' descriptors, reading one part at a time."""
    from rfjax.duplicates import describe

    for path in paths:
        part = describe.read(path, recipe_hash)
        if part is None:
            raise RfjaxError(f"{path} has changed since it was written; give the command again")
        yield part


class Searching:
    """Prints the progress of the search. `began` gets the number of images to compare, once the clusters are made."""

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
    """Returns the similarity thresholds at which the number of dropped images is reported as a curve. They lie `STEP`
    apart: at most four below the chosen threshold, the chosen threshold, and all above it up to 1."""
    steps = range(-STEPS_DOWN, 1 + int((1 - threshold) / STEP + 1e-9))
    return [t for step in steps if 0 < (t := round(threshold + step * STEP, 6)) <= 1]


def _check(args, out):
    from rfjax.duplicates import output
    from rfjax.outputs import check_output, is_json_with

    check_range(args, ("batch_size", "clusters", "probes", "model_size"), 1)
    check_range(args, ("threads",), 0)
    if args.threshold is not None and not 0 < args.threshold <= 1:
        raise ConfigError(f"--threshold is {args.threshold}; it must lie in (0, 1]")
    if args.drop_keys is not None and out.absolute() == args.drop_keys.absolute():
        raise ConfigError(f"--out and --drop-keys are both {out}; give two files")
    reads = [*source_paths(args.source), Path(args.descriptor)]
    reads += [path for path in (args.drop_keys, args.class_names) if path is not None]
    beside = output.names(out)
    ours = is_json_with("source", "descriptor", "threshold", "not_compared")
    for path in (out, *beside.values()):
        check_output(path, "--out", reads=reads, made_here=lambda _: ours(beside["facts"]))
    given = [name for name in ("model_size", "model_output") if getattr(args, name) is not None]
    given += ["mirrored"] if args.mirrored else []
    if args.descriptor == "phash" and given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} is read with an ONNX model alone; give the model's .onnx with --descriptor"
        )


def _descriptor(args):
    from rfjax.duplicates import descriptors

    if args.descriptor == "phash":
        return descriptors.Phash()
    mean = None if args.model_mean is None else _parse_three("--model-mean", args.model_mean)
    std = None if args.model_std is None else _parse_three("--model-std", args.model_std)
    about = {"side": args.model_size, "mean": mean, "std": std, "output": args.model_output}
    return descriptors.Model(args.descriptor, **about, mirrored=args.mirrored)


def _parse_three(option, text):
    try:
        values = tuple(float(number) for number in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise ConfigError(f"{option} is {text!r}; it must be three numbers, such as 0.485,0.456,0.406")
    return values
