"""Writing files so that each is there whole or not at all. No JAX here."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from rfjax.errors import RfjaxError


def write_whole(contents: Mapping[Path, str | bytes]) -> None:
    """Writes files (text as UTF-8) so that none is replaced unless all could be written.

    Folders are made. Raises `RfjaxError` naming the file that could not be written.
    """
    temporary = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():  # found out now, not after another file has been replaced
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
            try:
                name.unlink()
            except OSError:  # renamed, or never made
                pass
