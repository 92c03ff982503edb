"""Work on a source part by part: a task's own share of it, what is there already, and what made it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rfjax.errors import ConfigError, RfjaxError
from rfjax.prepare.progress import ShardProgress
from rfjax.prepare.sources import Source

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")  # of the frozen models
LIBRARIES = ("rfjax", "numpy", "pillow", "torch", "transformers", "diffusers", "array_record")  # what a manifest names


def parse_task(text: str | None) -> tuple[int, int]:
    """(I, N) of `I/N`; (0, 1) of none."""
    if text is None:
        return 0, 1
    try:
        task, count = map(int, text.split("/"))
        if not 0 <= task < count:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--task is {text!r}; it is I/N with I from 0 to N-1, as 0/8") from None
    return task, count


def about(source: Source) -> dict:
    """What a recipe says of a source: all that tells it from another."""
    return {"kind": source.kind, "listing": source.listing, "parts": len(source.sizes)}


def make_missing(
    source: Source, names: Sequence[str], missing: Sequence[int], make: Callable[[int, Callable], object]
) -> dict[str, object]:
    """What `make(part, tell)` gives of each missing part, by its name. `names` are all parts'; how far it is, is
    said."""
    progress, made = ShardProgress(sum(source.sizes[part] for part in missing)), {}
    for part in missing:
        with progress.of(names[part], source.sizes[part]):
            made[names[part]] = make(part, progress.tell)
    return made


def threads(asked: int) -> int:
    """As many as `--threads` asks for, or one a core."""
    return asked or os.cpu_count() or 1


@contextlib.contextmanager
def in_device_memory(what: str) -> Iterator[None]:
    """Says what to do where `what`, as "the models do", not fit."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise RfjaxError(
            f"{what} not fit in the device's memory: {error}; lower --batch-size, or use --compute-dtype=bfloat16"
        ) from None


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """Those that are installed: another PIL or PyTorch may round another way."""
    found = {}
    for name in libraries:
        with contextlib.suppress(PackageNotFoundError):  # run from its source, or not needed
            found[name] = version(name)
    return found


def made_with(device: str, libraries: Sequence[str]) -> dict[str, str]:
    """What a manifest names besides the models."""
    return {"python": platform.python_version(), "device": device or "default"} | versions(libraries)


def keys_facts(dropped_keys: Mapping[str, str]) -> dict:
    """For JSON: keys to drop, of which there may be millions, as their number and hash."""
    keys = json.dumps(sorted(dropped_keys.items()))
    return {"count": len(dropped_keys), "sha256": hashlib.sha256(keys.encode()).hexdigest()}


def read_dropped_keys(path: str) -> dict[str, str]:
    """Key -> reason of a file with a key on each line and, after a tab, perhaps a reason of its own."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # other ends of lines may stand in a name
        rows = [line.removesuffix("\r").partition("\t") for line in lines]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--drop-keys {path} cannot be read: {error}") from None
    return {key: reason or "listed" for key, _, reason in rows if key}
