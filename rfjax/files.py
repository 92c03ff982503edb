"""Writes files so that each is there whole or not at all. No JAX here."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from rfjax.errors import RfjaxError


def write_whole(contents: Mapping[Path, str | bytes]) -> None:
    """Writes files (text as UTF-8), and makes their folders, so that none is replaced unless all could be written.

    Raises `RfjaxError` naming the file that could not be written.
    """
    temporary = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():  # refused now, before another file has been replaced
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            with open(temporary[path], "xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], path)
    except OSError as error:
        reason = error.strerror or error
        raise RfjaxError(f"cannot write {path}: {reason}; check the folder and the space left") from None
    finally:
        for name in temporary.values():
            with contextlib.suppress(OSError):  # it was renamed, or never made
                name.unlink()


@contextlib.contextmanager
def folder_moved_when_whole(out: Path, *, files_of: bool = False) -> Iterator[Path]:
    """Yields a temporary folder that becomes `out` at the end, and is removed after an error.

    With `files_of`, `out` is a file: the temporary folder's files go beside it, and `out` itself comes last. Raises
    `RfjaxError` naming `out` where it could not be written.
    """
    temporary = out.absolute().with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if not files_of:
            temporary.rename(out)
        else:  # the file whose presence says that all are there comes last
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == out.name):
                path.rename(out.with_name(path.name))
    except OSError as error:
        reason = error.strerror or error
        raise RfjaxError(f"cannot write {out}: {reason}; check the folder and the space left") from error
    except RfjaxError as error:  # the message must name the user's path, not the temporary one
        raise type(error)(str(error).replace(str(temporary), str(out))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
