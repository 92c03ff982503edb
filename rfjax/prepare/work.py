"""Work on a source part by part: a task's share of it, what is there already, the rest made, and all of it merged."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rfjax.errors import ConfigError, RfjaxError
from rfjax.prepare import recipe
from rfjax.prepare.part import part_name
from rfjax.prepare.progress import ShardProgress, say
from rfjax.prepare.sources import Source

LIBRARIES = ("rfjax", "numpy", "pillow", "torch", "transformers", "diffusers", "array_record")  # what a manifest names


@dataclass(frozen=True)
class Task:
    """Which parts a command makes: every `count`-th from the `number`-th, or none where it only merges."""

    text: str | None = None  # as --task gives it; then another command merges
    number: int = 0
    count: int = 1
    merges_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a verb makes of a source: for each part what is known of its files, in a folder, and then one whole."""

    source: Source
    folder: Path
    facts: Mapping[str, object]  # what decides the bytes, for recipe.json
    stem: str = "shard"  # the parts are stem-00000-of-00002 and so on
    files: str = "files"  # what messages call the parts
    to_merge: str = "with --merge instead of --task"
    threads: int = 0  # 0: one a core
    finished: Callable  # (folder / name, recipe's hash) -> what is known of a part that is there; None: to be made
    make: Callable  # (source, part, folder / name, *, recipe_hash, threads, tell) -> the same of a part made now
    merge: Callable[[Sequence, str], Sequence[str]]  # (what is known of all parts, recipe's hash) -> lines to print


def parse_task(text: str | None, merge: bool = False) -> Task:
    """The task of --task=I/N and --merge; the whole work without either. `ConfigError` for anything else."""
    if text is None:
        return Task(merges_only=merge)
    if merge:
        raise ConfigError("--task makes a share of the files, and --merge what tells of all; give one of the two")
    try:
        number, count = map(int, text.split("/"))
        if not 0 <= number < count:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--task is {text!r}; it is I/N with I from 0 to N-1, as 0/8") from None
    return Task(text, number, count)


def run(job: Job, task: Task) -> int:
    """Makes the parts that are missing and, unless it is one task of several, merges them all.

    Raises `ConfigError` where the folder is another recipe's, and `RfjaxError` where a part to be merged is missing.
    """
    sizes = job.source.sizes
    recipe_hash = recipe.settle(job.folder, job.facts)
    names = [part_name(job.stem, part, len(sizes)) for part in range(len(sizes))]
    found = [job.finished(job.folder / name, recipe_hash) for name in names]
    mine = [] if task.merges_only else range(task.number, len(sizes), task.count)
    missing = [part for part in mine if found[part] is None]
    progress = ShardProgress(sum(sizes[part] for part in missing))
    how = {"recipe_hash": recipe_hash, "threads": job.threads or os.cpu_count() or 1, "tell": progress.tell}
    for part in missing:
        with progress.of(names[part], sizes[part]), _in_device_memory():
            found[part] = job.make(job.source, part, job.folder / names[part], **how)
    if task.text:
        say(f"task {task.text} is done; when all are: the same command {job.to_merge}")
        return 0
    absent = [name for name, facts in zip(names, found, strict=True) if facts is None]
    if absent:
        raise RfjaxError(
            f"{len(absent)} of {len(names)} {job.files} are not there, {absent[0]} first; give the command without "
            "--merge to make them"
        )
    lines = job.merge(found, recipe_hash)
    for left in job.folder.glob(f".{job.stem}-*.tmp"):  # of commands that were killed; nobody writes any more
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    print("\n".join(lines))
    return 0


def about(source: Source) -> dict:
    """What a recipe says of a source: all that tells it from another."""
    return {"kind": source.kind, "listing": source.listing, "parts": len(source.sizes)}


@contextlib.contextmanager
def _in_device_memory() -> Iterator[None]:
    """Says what to do where the models do not fit."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise RfjaxError(
            f"the models do not fit in the device's memory: {error}; lower --batch-size, or use "
            "--compute-dtype=bfloat16"
        ) from None


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """Those that are installed: another PIL or PyTorch may round another way."""
    found = {}
    for name in libraries:
        with contextlib.suppress(PackageNotFoundError):  # run from its source, or not needed
            found[name] = version(name)
    return found


def made_with(device: str) -> dict[str, str]:
    """What a manifest names besides the models."""
    return {"python": platform.python_version(), "device": device or "default"} | versions(LIBRARIES)
