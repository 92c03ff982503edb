"""Turns the paths that a user gives into paths of this machine, before anything is written."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path

from rfjax.errors import ConfigError

# matches `gs://bucket/x`, and also `gs:/bucket/x`, to which pathlib shortens it
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/", re.ASCII)
_LONGEST = 255  # bytes of a file's name, on the usual file systems


def mounted_text(text: str | Path, option: str) -> str:
    """Checks the user's path `text` and returns it unchanged. The path may belong to machines that will run a job.

    `option` names the option or the field in messages. Raises `ConfigError` for an empty text, for a URL (rfjax reads
    and writes mounted folders only), and for a text that cannot be a file's name.
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
    """Checks a path of this machine as `mounted_text` does, and returns it with `~` expanded. Keeps the `./` of
    `./shapes`. Also raises `ConfigError` for the `~name` of no user."""
    given = mounted_text(text, option)
    expanded = os.path.expanduser(given)
    if expanded.startswith("~"):  # ~name of no user
        raise ConfigError(f"{option} is {given!r}, and no user of this machine has that name; give a path")
    return expanded


def local_path(text: str | Path, option: str) -> Path:
    """Returns the user's `text` as a path, checked by `local_text`."""
    return Path(local_text(text, option))


def as_path(option: str) -> Callable[[str], Path]:
    """Returns the argparse type of an option that is a path of this machine; `option` is its name in messages."""
    return functools.partial(local_path, option=option)


def as_text(option: str) -> Callable[[str], str]:
    """Returns the argparse type of an option that is a path of this machine or a word, such as a config's file or its
    shipped name. `option` is its name in messages."""
    return functools.partial(local_text, option=option)


def as_mounted(option: str) -> Callable[[str], str]:
    """Returns the argparse type of an option that is a path on other machines: `~` is not expanded. `option` is its
    name in messages."""
    return functools.partial(mounted_text, option=option)
