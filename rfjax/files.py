"""Writes files so that each is either complete or absent. No JAX here."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from rfjax.errors import RfjaxError


def write_whole(contents: Mapping[Path, str | bytes]) -> None:
    """Writes files (text as UTF-8) and makes their folders. No file is replaced unless all could be written.

    Raises `RfjaxError`, naming the file that could not be written.
    """
    temporary = {path: path.with_name(_temporary_name(path)) for path in contents}
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
    """Yields a temporary folder, which is renamed to `out` at the end, or removed after an error.

    With `files_of`, `out` is a file: the files in the temporary folder are moved into `out`'s folder, and `out` last.
    Raises `RfjaxError`, naming `out`, if it could not be written.
    """
    temporary = out.absolute().with_name(_temporary_name(out))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if not files_of:
            temporary.rename(out)
        else:  # `out` comes last: its presence means that all files are there
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == out.name):
                path.rename(out.with_name(path.name))
    except OSError as error:
        reason = error.strerror or error
        raise RfjaxError(f"cannot write {out}: {reason}; check the folder and the space left") from error
    except RfjaxError as error:  # the message must name the user's path, not the temporary one
        raise type(error)(str(error).replace(str(temporary), str(out))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")


def _temporary_name(path):
    """Returns a hidden name for a file beside `path`, with the machine and the process that write it."""
    return f".{path.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"


@functools.cache
def _machine() -> str:
    """Returns eight hex digits that differ between machines, reboots and containers. These digits and a process id
    together identify one process."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def remove_left_behind(folder: Path) -> list[str]:
    """Removes this module's temporary files and folders whose process is dead; returns a line for each.

    Files of another machine may be in use, so they stay, and their line says so.
    """
    lines = []
    try:
        found = sorted(path for path in folder.absolute().iterdir() if _TEMPORARY.fullmatch(path.name))
    except OSError:  # there is no such folder yet
        return lines
    for path in found:
        match = _TEMPORARY.fullmatch(path.name)
        if path.is_symlink():
            continue
        if match["machine"] != _machine():
            lines.append(f"{path} is of another machine, or from before a restart: remove it if nothing writes it")
        elif not _is_alive(int(match["pid"])):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            lines.append(f"removed {path}, which a process that was killed had left")
    return lines


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's process
        return True
    return True
