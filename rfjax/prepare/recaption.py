"""`rfjax recaption`: captions written by a model for a source's images, kept beside it by their keys.

A folder of JSON lines, a file for each part of the source, made as `rfjax prepare` makes shards: each of one part
and of nothing else, whole or not at all, so that the same command goes on after any end. `rfjax prepare
--synthetic-captions` joins them (`rfjax.prepare.joined_captions`); the source is not touched.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path

from rfjax.prepare.options import add_options

CROPS = ("square", "none")


def add_arguments(parser) -> None:
    add_options(parser, "source")
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="the captions' folder, for rfjax prepare --synthetic-captions; the same command goes on where it was",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="a model that transformers loads as AutoModelForImageTextToText; nothing is downloaded",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="an instruction, or for BLIP and GIT the caption's beginning; given several times, each gives captions",
    )
    writing = parser.add_argument_group("writing")
    writing.add_argument(
        "--captions", type=int, default=1, metavar="N", help="of an image, under each prompt (default 1)"
    )
    writing.add_argument(
        "--beams",
        type=int,
        default=1,
        metavar="N",
        help="of the search for the likeliest captions (default 1: the likeliest token each time)",
    )
    writing.add_argument("--temperature", type=float, default=0.0, metavar="T", help="draw captions instead, by --seed")
    writing.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    writing.add_argument("--max-tokens", type=int, default=77, metavar="N", help="that a caption may have (default 77)")
    writing.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at once (default 16)")
    add_options(writing, "--compute-dtype", "--device")
    pictures = parser.add_argument_group("images")
    pictures.add_argument(
        "--crop",
        choices=CROPS,
        default="square",
        help="what the model sees: the centred square, as training does, or the whole image (none)",
    )
    add_options(pictures, "--filter", "--drop-keys", "--corrupt-limit")
    add_options(parser.add_argument_group("work"), "--shard-size", "--task", "--merge", "--threads")


def run(args, overrides) -> int:
    """Writes the parts that are missing and, unless it is one task of several, captions.json."""
    from rfjax.prepare import caption_files, captioner, part, recipe, work
    from rfjax.prepare.caption_files import Showing
    from rfjax.prepare.progress import say
    from rfjax.prepare.reading import Reading, given
    from rfjax.prepare.sources import open_source

    task = work.parse_task(args.task, args.merge)
    reading = Reading(**given(Reading, args))
    chosen = {"filters": reading.filters(), "dropped_keys": reading.dropped_keys()}
    showing = Showing(**given(Showing, args), **chosen)
    writing = captioner.Writing(prompts=tuple(args.prompt), **given(captioner.Writing, args))
    source = open_source(args.source, shard_size=args.shard_size, caption_column=None)
    folder, about = Path(args.out), work.about(source)
    model = None
    if not task.merges_only:
        model = captioner.load(args.model, writing, compute_dtype=args.compute_dtype, device=args.device, say=say)
    settings = {
        "version": caption_files.VERSION,
        **asdict(writing),
        **showing.facts(),
        "compute_dtype": args.compute_dtype,
        "seed": args.seed,
    }
    identity = recipe.read_settled(folder, "model")["model"] if model is None else model.facts

    def merge(parts, recipe_hash):
        identity = recipe.read_settled(folder, "model")["model"]  # as it stands there, so that the bytes are the same
        here = {"folder": str(Path(args.model).absolute()), "made_with": work.made_with(args.device)}
        facts = caption_files.write_list(
            folder, parts, source={**about, "location": source.location}, model=identity | here, settings=settings
        )
        return _summary(folder, facts)

    job = work.Job(
        source=source,
        folder=folder,
        facts={"settings": settings, "source": about, "model": identity},
        threads=args.threads,
        finished=functools.partial(part.finished, sizes=caption_files.sizes),
        make=functools.partial(caption_files.write_part, showing=showing, model=model, seed=args.seed),
        merge=merge,
    )
    return work.run(job, task)


def _summary(folder, facts):
    """What was written, for the console."""
    lines = [
        f"{folder}: {facts['captions']:,} captions of {facts['images']:,} images by {facts['model']['class']} "
        f"{facts['model']['sha256'][:12]}; {facts['empty']:,} images without one"
    ]
    if facts["dropped"]:
        most_first = sorted(facts["dropped"].items(), key=lambda item: -item[1])
        lines.append("dropped: " + ", ".join(f"{count:,} {reason}" for reason, count in most_first))
    where = facts["source"]["location"]
    return [*lines, f"to prepare with them: rfjax prepare {where} --synthetic-captions={folder} ..."]
