"""`rfjax recaption`: captions written by a model for a source's images, kept beside it by their keys.

A folder of JSON lines, a file for each part of the source, made as `rfjax prepare` makes shards: each of one part
and of nothing else, whole or not at all, so that the same command goes on after any end. `rfjax prepare
--synthetic-captions` joins them (`rfjax.prepare.joined_captions`); the source is not touched.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rfjax.data import hashing
from rfjax.errors import ConfigError, RfjaxError
from rfjax.files import folder_moved_when_whole, write_whole
from rfjax.prepare import work
from rfjax.prepare.caption_files import FORMAT, NAME, VERSION
from rfjax.prepare.progress import say

CROPS = ("square", "none")


def add_arguments(parser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="as rfjax prepare takes it: a folder of images, .tar files, .parquet files, or tfds:NAME",
    )
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
    writing.add_argument(
        "--compute-dtype", choices=work.COMPUTE_DTYPES, default="float32", help="of the model (default float32)"
    )
    writing.add_argument(
        "--device", default="", help="PyTorch's name of it (default: cuda where there is one, else cpu)"
    )
    pictures = parser.add_argument_group("images")
    pictures.add_argument(
        "--crop",
        choices=CROPS,
        default="square",
        help="what the model sees: the centred square, as training does, or the whole image (none)",
    )
    pictures.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="COMPARISON",
        help="as rfjax prepare's: write for what holds alone",
    )
    pictures.add_argument("--drop-keys", metavar="FILE", help="as rfjax prepare's: keys of images to leave out")
    pictures.add_argument(
        "--corrupt-limit",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of a file's images, beyond which it stops (default 0.1)",
    )
    tasks = parser.add_argument_group("work")
    tasks.add_argument(
        "--shard-size",
        type=int,
        default=1024,
        metavar="N",
        help="images a file; a tar has a file of its own (default 1024)",
    )
    tasks.add_argument(
        "--task", metavar="I/N", help="make only every Nth file, from the Ith (0 to N-1): for N processes or hosts"
    )
    tasks.add_argument("--merge", action="store_true", help=f"make no file; write {NAME} for those that the tasks made")
    tasks.add_argument("--threads", type=int, default=0, metavar="N", help="that decode images (default: one a core)")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which images are shown to the model, and how."""

    crop: str
    batch_size: int
    shard_size: int
    corrupt_limit: float
    filters: tuple
    dropped_keys: Mapping[str, str]

    def __post_init__(self):
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.corrupt_limit <= 1:
            raise ConfigError(f"--corrupt-limit is {self.corrupt_limit}; it must lie in [0, 1]")

    def facts(self) -> dict:
        """For JSON; the keys to drop as their hash."""
        own = {
            "crop": self.crop,
            "batch_size": self.batch_size,
            "shard_size": self.shard_size,
            "corrupt_limit": self.corrupt_limit,
        }
        return own | {"filters": [one.text for one in self.filters], "dropped_keys": work.keys_facts(self.dropped_keys)}


def run(args) -> int:
    """Writes the files that are missing and, unless it is one task of several, captions.json."""
    from rfjax.prepare import captioner, recipe, shard
    from rfjax.prepare.filters import parse_filter
    from rfjax.prepare.sources import open_source

    own = work.parse_task(args.task)
    if args.task and args.merge:
        raise ConfigError("--task makes files and --merge the list of them all; give one of the two")
    reading = Reading(
        crop=args.crop,
        batch_size=args.batch_size,
        shard_size=args.shard_size,
        corrupt_limit=args.corrupt_limit,
        filters=tuple(parse_filter(text) for text in args.filter),
        dropped_keys=work.read_dropped_keys(args.drop_keys) if args.drop_keys else {},
    )
    writing = captioner.Writing(
        prompts=tuple(args.prompt),
        captions=args.captions,
        beams=args.beams,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
    )
    source = open_source(args.source, shard_size=args.shard_size, caption_column=None)
    folder, parts = Path(args.out), len(source.sizes)
    model = (
        None
        if args.merge
        else captioner.load(args.model, writing, compute_dtype=args.compute_dtype, device=args.device, say=say)
    )
    about = work.about(source)
    settings = {
        "version": VERSION,
        **asdict(writing),
        **reading.facts(),
        "compute_dtype": args.compute_dtype,
        "seed": args.seed,
    }
    identity = _read_identity(folder) if args.merge else model.facts
    recipe_hash = recipe.settle(folder, {"settings": settings, "source": about, "model": identity})
    identity = _read_identity(folder)  # as it stands there, so that captions.json is the same bytes either way
    names = [shard.shard_name(part, parts) for part in range(parts)]
    done = {name: finished(folder, name, recipe_hash) for name in names}
    to_make = [] if args.merge else [part for part in range(own[0], parts, own[1]) if done[names[part]] is None]
    done |= work.make_missing(
        source,
        names,
        to_make,
        lambda part, tell: make_shard(
            source,
            part,
            folder,
            reading=reading,
            recipe_hash=recipe_hash,
            model=model,
            seed=args.seed,
            threads=work.threads(args.threads),
            tell=tell,
        ),
    )
    if args.task:
        say(f"task {args.task} is done; when all are: the same command with --merge instead of --task")
        return 0
    missing = [name for name, facts in done.items() if facts is None]
    if missing:
        raise RfjaxError(
            f"{len(missing)} of {parts} files are not there, {missing[0]} first; give the command without --merge to "
            "make them"
        )
    facts = _written(folder, list(done.values()), source, about, settings, identity, args)
    print("\n".join(_summary(folder, facts)))
    return 0


def finished(folder: Path, name: str, recipe_hash: str) -> dict | None:
    """What a finished file's .json says; None where it is not there whole, or of other settings."""
    try:
        facts = json.loads((folder / f"{name}.json").read_text())
        whole = (folder / f"{name}.jsonl").stat().st_size == facts["bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return facts if whole and facts["recipe_sha256"] == recipe_hash else None


def make_shard(
    source,
    part: int,
    folder: Path,
    *,
    reading: Reading,
    recipe_hash: str,
    model,
    seed: int,
    threads: int = 4,
    tell: Callable[[float | int, int, int], None] = lambda done, kept, dropped: None,
) -> dict:
    """Writes the captions of a part's images, and returns what its .json says.

    Raises `RfjaxError` where too many images are corrupt, the model does not fit in memory, or nothing more
    can be written; then nothing of the file is left.
    """
    from rfjax.prepare.shard import check_corrupt, in_order, shard_name
    from rfjax.prepare.sources import Drop

    name = shard_name(part, len(source.sizes))
    dropped, listed, lines, seen = Counter(), [], [], set()
    counts = Counter(images=0, captions=0, empty=0)
    batch, batches = [], 0

    def write():
        nonlocal batch, batches
        draw = (
            hashing.key("recaption", seed, name, batches) % 2**63
        )  # of the place alone, so that a resumed part draws the same
        with work.in_device_memory("the model does"):
            written = model.captions([image for _, image in batch], int(draw))
        for (key, _), captions in zip(batch, written, strict=True):
            counts.update(images=1, captions=len(captions), empty=not captions)
            lines.append(json.dumps({"key": key, "captions": list(captions)}, ensure_ascii=False) + "\n")
        batch, batches = [], batches + 1

    with folder_moved_when_whole(folder / f"{name}.json", files_of=True) as inside, ThreadPoolExecutor(threads) as pool:
        for one in in_order(
            pool, lambda record: _shown(record, reading), source.records(part), reading.batch_size + threads
        ):
            key, image, done = (one.key, one, one.done) if isinstance(one, Drop) else one
            if not isinstance(image, Drop) and key in seen:
                image = Drop(key, "repeated key", "captions are found by their image's key", done)
            if isinstance(image, Drop):
                dropped[image.reason] += 1
                listed.append({"key": key, "reason": image.reason, "detail": image.detail})
                check_corrupt(dropped, len(seen), listed, reading.corrupt_limit, name)
            else:
                seen.add(key)
                batch.append((key, image))
                if len(batch) == reading.batch_size:
                    write()
            tell(done, len(seen), sum(dropped.values()))
        check_corrupt(dropped, len(seen), listed, reading.corrupt_limit, name, over=True)
        if batch:
            write()
        data = "".join(lines).encode()
        (inside / f"{name}.jsonl").write_bytes(data)
        (inside / f"{name}.dropped.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed), encoding="utf-8"
        )
        facts = {
            "name": name,
            "recipe_sha256": recipe_hash,
            "size": source.sizes[part],
            **counts,
            "dropped": dict(sorted(dropped.items())),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        (inside / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def _shown(record, reading):
    """(key, PIL image, done) of a record, or why it is left out."""
    from rfjax.prepare import images
    from rfjax.prepare.shard import CORRUPT
    from rfjax.prepare.sources import Drop

    if isinstance(record, Drop):
        return record
    if record.key in reading.dropped_keys:
        return Drop(record.key, reading.dropped_keys[record.key], "", record.done)
    try:
        whole = images.unscaled(record.image, "none") if any(one.measured for one in reading.filters) else None
        columns = record.metadata if whole is None else {**record.metadata, **images.measured(*whole.size)}
        for reason in (one.refuses(columns) for one in reading.filters):
            if reason:
                return Drop(record.key, reason, "", record.done)
        return record.key, images.unscaled(record.image, reading.crop), record.done
    except images.CorruptImage as error:
        return Drop(record.key, CORRUPT, str(error), record.done)


def _read_identity(folder):
    from rfjax.prepare import recipe

    try:
        return json.loads((folder / recipe.NAME).read_text())["model"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"no captions to merge in {folder}: {recipe.NAME} cannot be read ({error}); give the command "
            "without --merge"
        ) from None


def _written(folder, shards, source, about, settings, identity, args):
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "source": {**about, "location": source.location},
        "model": {
            **identity,
            "folder": str(Path(args.model).absolute()),
            "made_with": work.made_with(args.device, work.LIBRARIES),
        },
        "settings": settings,
        **{name: sum(shard[name] for shard in shards) for name in ("images", "captions", "empty")},
        "dropped": dict(sum((Counter(shard["dropped"]) for shard in shards), Counter())),
        "shards": [{name: shard[name] for name in ("name", "size", "images", "bytes", "sha256")} for shard in shards],
    }
    if not facts["captions"]:
        raise RfjaxError(
            f"no caption was written for {facts['images']} images of {source.location}, of which {facts['empty']} "
            "came out empty; is --model one that writes captions, with this --prompt?"
        )
    write_whole({folder / NAME: json.dumps(facts, indent=1, ensure_ascii=False) + "\n"})
    for left in folder.glob(".shard-*.tmp"):  # of commands that were killed; nobody writes any more
        shutil.rmtree(left, ignore_errors=True)
    return facts


def _summary(folder, facts):
    lines = [
        f"{folder}: {facts['captions']:,} captions of {facts['images']:,} images by {facts['model']['class']} "
        f"{facts['model']['sha256'][:12]}; {facts['empty']:,} images without one"
    ]
    if facts["dropped"]:
        lines.append(
            "dropped: "
            + ", ".join(
                f"{count:,} {reason}" for reason, count in sorted(facts["dropped"].items(), key=lambda item: -item[1])
            )
        )
    return [
        *lines,
        f"to prepare with them: rfjax prepare {facts['source']['location']} --synthetic-captions={folder} ...",
    ]
