"""Turns the paths that a user gives into paths of this machine, before anything is written."""

from __future__ import annotations

import re
from pathlib import Path

from rfjax.errors import ConfigError

# `gs://bucket/x`, and `gs:/bucket/x`, which is what a path library makes of it
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/", re.ASCII)


def local_path(text: str | Path, option: str) -> Path:
    """The path that the user's `text` names, with `~` made the home folder. `option` names the option or the field.

    Raises `ConfigError` for an empty text, for the URL of a bucket or a server, and for a text that no file can have as
    its name. rfjax reads and writes mounted folders only.
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
    try:
        return Path(given).expanduser()
    except RuntimeError:  # ~name of no user
        raise ConfigError(f"{option} is {given!r}, and no user of this machine has that name; give a path") from None
