"""`rfjax recaption`: a model writes captions for a source's images or clips, stored under the keys of these items.

The result is a folder with a file of JSON lines for each part of the source. Each file depends on one part alone and is
written completely or not at all, so the same command resumes the work. `rfjax prepare --synthetic-captions` joins the
captions to the source (`rfjax.prepare.joined_captions`); the source itself is not changed.
"""

from __future__ import annotations

import functools
from dataclasses import asdict

from rfjax.errors import ConfigError
from rfjax.inputs.paths import as_path
from rfjax.prepare.options import add_options, check_range, source_paths
from rfjax.prepare.part import list_counts

CROPS = ("square", "none")


def add_arguments(parser) -> None:
    add_options(parser, "source")
    out = "folder for the captions, for rfjax prepare --synthetic-captions; the same command resumes its work"
    parser.add_argument("--out", required=True, metavar="DIR", type=as_path("--out"), help=out)
    model = "a model that transformers loads as AutoModelForImageTextToText; nothing is downloaded"
    parser.add_argument("--model", required=True, metavar="DIR", type=as_path("--model"), help=model)
    prompt = "an instruction, or the caption's beginning (BLIP, GIT); repeatable: each gives captions"
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help=prompt)
    writing = parser.add_argument_group("writing")
    writing.add_argument(
        "--captions", type=int, default=1, metavar="N", help="captions for each image and prompt (default 1)"
    )
    writing.add_argument("--beams", type=int, default=1, metavar="N", help="width of the beam search (default 1)")
    writing.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="draw captions at this temperature; --seed decides the draws (default: beam search)",
    )
    writing.add_argument("--seed", type=int, default=0, help="decides the draws (default 0)")
    writing.add_argument(
        "--max-tokens", type=int, default=77, metavar="N", help="most tokens of a caption (default 77)"
    )
    writing.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="images that the model sees at once (default 16)"
    )
    add_options(writing, "--compute-dtype", "--device")
    pictures = parser.add_argument_group("images")
    crop = "what the model sees: the centred square (default), as training does, or the whole image (none)"
    pictures.add_argument("--crop", choices=CROPS, default="square", help=crop)
    add_options(pictures, "--filter", "--drop-keys", "--corrupt-limit")
    clips = parser.add_argument_group("clips", "as rfjax prepare cuts them: give it the same three options")
    add_options(clips, "--frames", "--fps", "--clips")
    shown = "frames of a clip that the model sees, evenly spread (default 1, the middle frame); several need a model "
    shown += "with a chat template"
    clips.add_argument("--shown-frames", type=int, metavar="N", help=shown)
    add_options(parser.add_argument_group("work"), "--shard-size", "--task", "--merge", "--threads")


def run(args, overrides) -> int:
    """Writes the missing parts (none with --merge) and then, unless --task is given, captions.json; returns 0."""
    from rfjax.prepare import caption_files, captioner, given_keys, libraries, part, recipe, work
    from rfjax.prepare.caption_files import Showing
    from rfjax.prepare.clips import frames_shown
    from rfjax.prepare.progress import say
    from rfjax.prepare.reading import Reading, fields_given
    from rfjax.prepare.sources import CLIPS, IMAGES, open_source

    check_range(args, ("threads",), 0)
    reads = [*source_paths(args.source), args.model]
    work.check_folder(args.out, reads, own="captions.json")
    task = work.parse_task(args.task, args.merge)
    reading = Reading(**fields_given(Reading, args))
    if not task.merges_only:
        reading.require_video()
    rule = reading.clip_rule()
    chosen = {"filters": reading.filters(), "dropped_keys": reading.dropped_keys(), "clips": rule}
    chosen["shown_frames"] = ()
    if rule is not None:
        chosen["shown_frames"] = tuple(frames_shown(rule, 1 if args.shown_frames is None else args.shown_frames))
    elif args.shown_frames is not None:
        raise ConfigError(f"--shown-frames is {args.shown_frames}, and is for clips; give --frames, too")
    showing = Showing(**fields_given(Showing, args) | chosen)
    writing = captioner.Writing(prompts=tuple(args.prompt), **fields_given(captioner.Writing, args))
    suffixes = IMAGES if rule is None else CLIPS
    source = open_source(args.source, shard_size=args.shard_size, caption_column=None, suffixes=suffixes)
    source = given_keys.noticing(source, given_keys.known_before(source, {"--drop-keys": showing.dropped_keys}, rule))
    folder, about = args.out, work.source_facts(source)
    model = None
    if not task.merges_only:
        place = {"compute_dtype": args.compute_dtype, "device": args.device or ""}
        model = captioner.load(args.model, writing, pictures=len(showing.shown_frames) or 1, **place, say=say)
    settings = {"version": caption_files.VERSION, **asdict(writing), **showing.facts()}
    settings |= {"compute_dtype": args.compute_dtype, "seed": args.seed}
    identity = recipe.read_recipe(folder, "model")["model"] if model is None else model.facts

    def merge(parts, recipe_hash):
        used = recipe.read_recipe(folder, "model")["model"]  # read back, so that the bytes do not depend on --merge
        used |= {"folder": str(args.model.absolute()), "made_with": libraries.surroundings(args.device or "")}
        names = [facts["name"] for facts in parts]
        late = {"--drop-keys": given_keys.known_after(source, folder, names, showing.dropped_keys, rule)}
        given_keys.say_unmet(late)
        said = {"source": work.located(about, given_keys.noticing(source, late)), "model": used, "settings": settings}
        return _summary(folder, caption_files.write_list(folder, parts, **said))

    job = work.Job(
        source=source,
        folder=folder,
        facts={"settings": settings, "source": about, "model": identity},
        threads=args.threads,
        finished=functools.partial(part.read_finished, shape=caption_files.PartJson, sizes=caption_files.sizes),
        make=functools.partial(caption_files.write_part, showing=showing, model=model, seed=args.seed),
        merge=merge,
    )
    return work.run(job, task)


def _summary(folder, facts):
    """Returns lines for the console."""
    what = "clips" if "clips" in facts["settings"] else "images"
    counts = f"{facts['captions']:,} captions of {facts['images']:,} {what}"
    model, where = f"{facts['model']['class']} {facts['model']['sha256'][:12]}", facts["source"]["location"]
    lines = [f"{folder}: {counts} by {model}; {facts['empty']:,} {what} without one"]
    if facts["dropped"]:
        lines.append(f"dropped: {list_counts(facts['dropped'])}")
    return [*lines, f"to prepare with them: rfjax prepare {where} --synthetic-captions={folder} ..."]
