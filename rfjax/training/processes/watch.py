"""A watch over progress. It ends a run that stands still for too long, and says what the run was doing.

A hung file system raises no error, and neither does a collective whose other side is stuck. The watch is a thread,
which runs on while the main thread waits.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rfjax.errors import Preempted


@dataclass
class _Progress:
    at: float = field(default_factory=time.monotonic)
    doing: list[str] = field(default_factory=lambda: ["training"])


_progress = _Progress()


def beat() -> None:
    """Notes progress: a step or a batch is done."""
    _progress.at = time.monotonic()


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Names the present work for the watch's message. Its beginning and its end count as progress."""
    _progress.doing.append(what)
    beat()
    try:
        yield
    finally:
        _progress.doing.pop()
        beat()


@contextlib.contextmanager
def over(seconds: float, name: str, remedy: str) -> Iterator[None]:
    """In this context, the process is ended if `beat` is not called for `seconds`; 0 never ends it. The message begins
    with `name` and ends with `remedy`."""
    if not seconds:
        yield
        return
    done = threading.Event()

    def look():
        while not done.wait(min(5.0, seconds / 4)):
            idle = time.monotonic() - _progress.at
            if idle > seconds:
                _end(f"{name}: no progress for {idle:.0f} s while {_progress.doing[-1]}; {remedy}")

    beat()
    thread = threading.Thread(target=look, daemon=True, name="rfjax-progress")
    thread.start()
    try:
        yield
    finally:
        done.set()


def _end(message: str) -> None:
    """Ends the process at once, because an orderly end could hang as well. The files on disk are whole, and the run
    can be resumed."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os.write(2, f"rfjax: {message}\n".encode())
    os._exit(Preempted.exit_status)
