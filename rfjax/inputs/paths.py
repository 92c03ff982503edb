"""Turns the paths that a user gives into paths of this machine, before anything is written."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path

from rfjax.errors import ConfigError

# `gs://bucket/x`, and `gs:/bucket/x`, which is what a path library makes of it
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/", re.ASCII)
_LONGEST = 255  # bytes of a file's name, on every file system that is in use


def mounted_text(text: str | Path, option: str) -> str:
    """The user's path `text` as it was given, of this machine or of those that a job will run on.

    `option` names the option or the field. Raises `ConfigError` for an empty text, for the URL of a bucket or a server,
    and for a text that no file can have as its name. rfjax reads and writes mounted folders only.
    """
    given = str(text)
    if not given.strip():
        raise ConfigError(f"{option} is empty; give a path, or leave the option out (is a shell variable unset?)")
    url = _URL.match(given)
    if url:
        remedy = f"mount it and give the folder, or copy it here first ({url[1]}: is no folder of this machine)"
        raise ConfigError(f"{option} is {given!r}, a URL; rfjax reads and writes mounted folders only: {remedy}")
    if "\0" in given:
        raise ConfigError(f"{option} is {given!r}, which holds a zero byte; give a path")
    if any(len(os.fsencode(name)) > _LONGEST for name in given.split("/")):
        raise ConfigError(
            f"{option} is {given[:60]!r}..., and no file's name has more than {_LONGEST} bytes; shorten it"
        )
    return given


def local_text(text: str | Path, option: str) -> str:
    """The same of a path of this machine, with `~` made the home folder: `./shapes` stays, and is not `shapes`."""
    given = mounted_text(text, option)
    expanded = os.path.expanduser(given)
    if expanded.startswith("~"):  # ~name of no user
        raise ConfigError(f"{option} is {given!r}, and no user of this machine has that name; give a path")
    return expanded


def local_path(text: str | Path, option: str) -> Path:
    """The path that the user's `text` names, by the rules of `local_text`."""
    return Path(local_text(text, option))


def as_path(option: str) -> Callable[[str], Path]:
    """What argparse makes the value of a path's option with; `option` is its name in messages."""
    return functools.partial(local_path, option=option)


def as_text(option: str) -> Callable[[str], str]:
    """The same for an option whose value is a path or a word, such as a config's file or shipped name."""
    return functools.partial(local_text, option=option)


def as_mounted(option: str) -> Callable[[str], str]:
    """The same for an option whose value is a path of other machines; `~` is left to them."""
    return functools.partial(mounted_text, option=option)
