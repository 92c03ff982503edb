"""Writes the training curve as TensorBoard events, in the thread that trains.

tensorboardX's own writer has a thread and a queue. If that thread ends, because the disk is full or the clock was set
back by weeks, the queue fills and training waits for ever. So only tensorboardX's file format and summaries are used.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path


@contextlib.contextmanager
def _without_torch():
    """Hides PyTorch from tensorboardX, which imports it for graphs that rfjax does not draw. This halves the start."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # makes an import of it fail
    try:
        yield
    finally:
        if absent:
            del sys.modules["torch"]


with _without_torch():
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar


class Events:
    """An event file in a folder, from `step` on. Unwritable events are dropped; metrics.jsonl has the curve, too."""

    def __init__(self, folder: Path, step: int):
        self._writer = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))
            # This makes viewers hide what an interrupted run had written beyond the step.
            self._write(step + 1, session_log=SessionLog(status=SessionLog.START))
        except (OSError, ValueError):
            self._lose()

    def add(self, name: str, value: float | int, step: int) -> None:
        """Adds one value to a curve."""
        self._write(step, summary=scalar(name, value))

    def flush(self) -> None:
        self._call(lambda: self._writer.flush())

    def close(self) -> None:
        self._call(lambda: self._writer.close())
        self._writer = None

    def _write(self, step, **content):
        self._call(lambda: self._writer.write_event(Event(wall_time=time.time(), step=step, **content)))

    def _call(self, write):
        if self._writer is None:
            return
        try:
            write()
        except (OSError, ValueError):  # ValueError: a file that is closed
            self._lose()

    def _lose(self):
        self._writer = None
