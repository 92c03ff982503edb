"""Reads a user's file that may be anything: a pipe, a device, a link to nothing, a file that is too large."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST_BYTES = 1 << 30  # of a file that is read whole; an image, a caption or a table is far smaller


class NoPlainFile(OSError):
    """The path names no file whose bytes can be read whole."""


def why_not_plain(path: str | Path) -> str:
    """Why the path names no file that can be read, such as "a pipe"; empty for a file. Links are followed.

    Never opens the file: opening a pipe waits for its writer.
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


def read_bytes(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file of at most `most` bytes. Raises `NoPlainFile`, which says why, or another `OSError`."""
    why = why_not_plain(path)
    if why:
        raise NoPlainFile(f"it is {why}")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise NoPlainFile(f"it is larger than {most:,} bytes")
    return content
