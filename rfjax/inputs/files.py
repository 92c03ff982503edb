"""Reads a user's file, and refuses what only looks like one: a pipe, a device, a dangling link, a file too large."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST_BYTES = 1 << 30  # largest file that is read whole; an image, a caption or a table is far smaller


class NoPlainFile(OSError):
    """Raised for a path that is not a regular file, or whose file is too large to be read whole."""


def why_not_plain(path: str | Path) -> str:
    """Returns what the path is instead of a regular file, such as "a pipe" or "not there"; "" for a file.

    Follows links. Never opens the file, since opening a pipe waits for its writer.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "a link to nothing" if os.path.islink(path) else "not there"
    except OSError as error:
        return "a loop of links" if os.path.islink(path) else (error.strerror or str(error)).lower()
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "")


def is_absent(path: str | Path) -> bool:
    """Whether nothing is at the path, not even a dangling link. False if that cannot be found out."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def read_bytes(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """Returns a file's bytes. Raises `NoPlainFile` (not a file, or more than `most` bytes) or another `OSError`."""
    why = why_not_plain(path)
    if why:
        raise NoPlainFile(f"it is {why}")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise NoPlainFile(f"it is larger than {most:,} bytes")
    return content
