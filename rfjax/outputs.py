"""Checks, before any work, that a command may write its outputs.

No command overwrites what it reads, nor a file or a folder that it did not make.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs.files import read_bytes, why_not_plain

# file name -> the kind of folder that has it
KINDS = {
    "run.json": "the folder of a run",
    "manifest.json": "a prepared corpus",
    "captions.json": "a folder of captions",
    "table.json": "a results table",
    "generation.json": "a folder of sampled images",
    "model_index.json": "a folder of models",
    "study.json": "a preference study",
}
_SPARE = 40  # characters by which a temporary file's name is longer than the output's
_SHOWN = 1 << 26  # the largest file, in bytes, that is read to tell who made it; a larger file counts as a user's
NOT_OURS = "is there, and this command did not make it; give another name, or remove it"


def check_output(
    path: Path, option: str, *, reads: Iterable[Path] = (), made_here: Callable[[Path], bool] = lambda path: False
) -> None:
    """Raises `ConfigError` if a command must not, or cannot, write the file `path`. `option` is the option that
    gave the path, as messages name it.

    `reads` are the files and folders that the command reads. `made_here(path)` tells, from an existing file's content,
    whether an earlier call of the same command made it.
    """
    check_place(path, option)
    if not (path.exists() or path.is_symlink()):
        return
    _check_unread(path, option, reads)
    why = why_not_plain(path)
    if why:
        raise ConfigError(f"{option} {path} is {why}; give the name of a file")
    if not made_here(path):
        raise ConfigError(f"{option} {path} {NOT_OURS}")


def check_output_folder(
    folder: Path,
    option: str,
    *,
    reads: Iterable[Path] = (),
    own: Collection[str] = (),
    files: Iterable[str] = (),
    made_here: Callable[[Path], bool] = lambda folder: False,
) -> None:
    """Raises `ConfigError` if a command must not, or cannot, write into `folder`; arguments as in `check_output`.

    Refuses a folder that has one of the files in `KINDS`, unless the file's name is in `own`. Refuses a folder that
    already has one of the `files` that the command writes, unless `made_here(folder)`.
    """
    check_place(folder, option)
    if not (folder.exists() or folder.is_symlink()):
        return
    if not folder.is_dir():
        raise ConfigError(f"{option} {folder} is {why_not_plain(folder) or 'a file'}; give the name of a folder")
    _check_unread(folder, option, reads)
    for name, what in KINDS.items():
        if name not in own and (folder / name).exists():
            raise ConfigError(f"{option} {folder} is {what} (it has {name}); give another folder")
    there = next((name for name in files if (folder / name).exists()), None)
    if there is not None and not made_here(folder):
        raise ConfigError(f"{option}: {folder / there} {NOT_OURS}")


def is_json_with(*keys: str) -> Callable[[Path], bool]:
    """Returns a function that tests whether a file is a JSON object with these keys, by which a command recognises its
    own earlier output."""

    def made_here(path: Path) -> bool:
        try:
            value = json.loads(read_bytes(path, _SHOWN))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(value, dict) and set(keys) <= value.keys()

    return made_here


def holds(*marks: str) -> Callable[[Path], bool]:
    """Returns a function that tests whether a file contains one of these texts, with which a command marks its
    outputs."""

    def made_here(path: Path) -> bool:
        try:
            content = read_bytes(path, _SHOWN)
        except OSError:
            return False
        return any(mark.encode() in content for mark in marks)

    return made_here


def open_to_append(path: Path, doing: str = "write") -> io.TextIOWrapper:
    """Opens a text file to append lines to it; creates it if there is none.

    Raises `RfjaxError`, naming the path, if it cannot be opened, or is a folder, a pipe or a dangling link. The message
    says "cannot", then `doing`.
    """
    reason = why_not_plain(path)
    if reason in ("", "not there"):
        try:
            return open(path, "a", buffering=1)
        except OSError as error:
            reason = error.strerror or str(error)
            raise RfjaxError(f"cannot {doing} {path}: {reason}; check the folder and the space left") from None
    raise RfjaxError(f"cannot {doing} {path}: it is {reason}; remove it")


def check_place(path: Path, option: str) -> None:
    """Raises `ConfigError` if `path` has too long a name, or if its folder cannot be made or written."""
    if len(os.fsencode(path.name)) > 255 - _SPARE:
        raise ConfigError(f"{option} {path.name[:60]}... is too long a name; give one of at most {255 - _SPARE} bytes")
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise ConfigError(f"{option} {path} cannot be written: {above} is no folder; give another path")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path} cannot be written: {above} is read-only for you; give another path")


def _check_unread(path: Path, option: str, reads: Iterable[Path]) -> None:
    for read in reads:
        if read.exists() and path.exists() and read.samefile(path):
            raise ConfigError(f"{option} {path} is what this command reads; give another name")
