"""Processes a source part by part: a task makes the parts that it still lacks, and a last step merges all parts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rfjax.console import printable
from rfjax.errors import ConfigError, RfjaxError
from rfjax.files import remove_left_behind
from rfjax.inputs.walk import describe
from rfjax.outputs import check_output_folder
from rfjax.prepare import recipe
from rfjax.prepare.part import part_name
from rfjax.prepare.progress import ShardProgress, say
from rfjax.prepare.sources import Source


@dataclass(frozen=True)
class Task:
    """Which parts a command makes: every `count`-th, starting with part `number`, or none if it only merges."""

    text: str | None = None  # the value of --task; if given, another command merges
    number: int = 0
    count: int = 1
    merges_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a verb makes from a source: files for each part, in one folder, and one result merged from all parts."""

    source: Source
    folder: Path
    facts: Mapping[str, object]  # the content of recipe.json: all that decides the bytes
    stem: str = "shard"  # parts are named stem-00000-of-00002 and so on
    files: str = "files"  # what messages call the parts
    to_merge: str = "with --merge instead of --task"
    threads: int = 0  # 0: one a core
    finished: Callable  # (folder / name, recipe's hash) -> facts of a finished part, or None if it must be made
    make: Callable  # (source, part, folder / name, *, recipe_hash, threads, tell) -> facts of the part it made
    merge: Callable[[Sequence, str], Sequence[str]]  # (facts of all parts, recipe's hash) -> lines to print


def parse_task(text: str | None, merge: bool = False) -> Task:
    """Reads the values of --task=I/N and --merge; if neither is given, the task is all parts. Raises `ConfigError` for
    any other form of --task, and if both are given."""
    if text is None:
        return Task(merges_only=merge)
    if merge:
        raise ConfigError(f"--task={text} makes a share of the parts, and --merge makes no part; give one of the two")
    try:
        number, count = map(int, text.split("/"))
        if not 0 <= number < count:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--task is {text!r}; it must be I/N with I from 0 to N-1, such as 0/8") from None
    return Task(text, number, count)


def check_folder(folder: Path, reads: Sequence[Path], *, own: str) -> None:
    """Raises `ConfigError` if the folder of --out lies in a folder that the command reads, if it holds another
    command's results, or if it has files that this command would overwrite but no recipe.json.

    `own` is the file that the command writes last, such as manifest.json. recipe.json is written first, so it marks a
    folder that an earlier command began.
    """
    inside = next((read for read in reads if read.is_dir() and read.resolve() in folder.resolve().parents), None)
    if inside is not None:
        remedy = "its files would be listed as the source's; give a folder beside it"
        raise ConfigError(f"--out {folder} lies inside {inside}, which this command reads: {remedy}")
    parts = [path.name for path in folder.glob(f"{Job.stem}-*-of-*")] if folder.is_dir() else []
    begun = lambda folder: (folder / recipe.NAME).is_file()  # noqa: E731
    check_output_folder(folder, "--out", reads=reads, own=(own,), files=(own, *parts), made_here=begun)


def run(job: Job, task: Task) -> int:
    """Makes the task's missing parts. Then, unless --task is given, merges all parts and prints the lines that
    `job.merge` returns. Returns 0.

    Raises `ConfigError` if the folder has another recipe, and `RfjaxError` if a part to merge is missing.
    """
    sizes = job.source.sizes
    say_passed_over(job.source)
    recipe_hash = recipe.claim(job.folder, job.facts)
    names = [part_name(job.stem, part, len(sizes)) for part in range(len(sizes))]
    found = [job.finished(job.folder / name, recipe_hash) for name in names]
    share = [] if task.merges_only else range(task.number, len(sizes), task.count)
    missing = [part for part in share if found[part] is None]
    progress = ShardProgress(sum(sizes[part] for part in missing))
    how = {"recipe_hash": recipe_hash, "threads": job.threads or os.cpu_count() or 1, "tell": progress.tell}
    for part in missing:
        with progress.of(names[part], sizes[part]), _explain_lack_of_memory():
            found[part] = job.make(job.source, part, job.folder / names[part], **how)
    if task.text:
        say(f"task {task.text} is done; when all are: the same command {job.to_merge}")
        return 0
    absent = [name for name, facts in zip(names, found, strict=True) if facts is None]
    if absent:
        lack = f"{len(absent)} of {len(names)} {job.files} are not there, {absent[0]} first"
        raise RfjaxError(f"{lack}; give the command without --merge to make them")
    lines = job.merge(found, recipe_hash)
    for line in remove_left_behind(job.folder):
        say(line)
    print("\n".join(map(printable, lines)))
    return 0


def located(facts: Mapping, source: Source) -> dict:
    """Returns what a finished manifest or captions.json says about its source: `facts` (from `source_facts`), where
    the source is, and how much of it was not read or may be a mistake."""
    counted = {name: counts for name in ("passed_over", "noticed") if (counts := counted_names(source, name))}
    return {**facts, "location": source.location, **counted}


def source_facts(source: Source) -> dict:
    """Returns what a recipe says about a source: all that distinguishes it from another source."""
    return {"kind": source.kind, "listing": source.listing, "parts": len(source.sizes)}


def counted_names(source: Source, name: str) -> dict[str, int]:
    """Counts by reason what was not read of a source (`name` "passed_over") or may be a mistake ("noticed")."""
    return {reason: len(names) for reason, names in getattr(source, name).items()}


def say_passed_over(source: Source) -> None:
    """Prints what is not read of a source, or may be a mistake: for each reason a line with the number of files and a
    few of their names."""
    for line in describe(source.passed_over):
        say(f"not read: {line}")
    for line in describe(source.noticed, most=5):
        say(f"noticed: {line}")


@contextlib.contextmanager
def _explain_lack_of_memory() -> Iterator[None]:
    """Turns a lack of memory, on the device or the machine, into an `RfjaxError` that names the remedy."""
    try:
        yield
    except MemoryError:
        remedy = "lower --threads or --batch-size, or end other programs; then give the same command again"
        raise RfjaxError(f"memory ran out while images were decoded; {remedy}") from None
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        remedy = "lower --batch-size, or use --compute-dtype=bfloat16"
        raise RfjaxError(f"the models do not fit in the device's memory: {error}; {remedy}") from None
