"""TensorBoard: an event file for each start of a run, in the run's folder `tensorboard`.

Only tensorboardX's file format and summaries are used, not its writer. That writer has a queue and a thread that writes
to disk; if a full disk ends the thread, whoever adds to the queue waits for ever.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from PIL import Image

from rfjax.trackers.items import Item, read_picture
from rfjax.trackers.table import About

FOLDER = "tensorboard"


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hides PyTorch while tensorboardX is imported, which halves the time of the import. tensorboardX needs PyTorch
    only to draw graphs of networks."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # makes an import of it fail
    try:
        yield
    finally:
        if absent:
            del sys.modules["torch"]


with _without_torch():
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import scalar


def why_not() -> str:
    """Returns "": TensorBoard needs no login and no server."""
    return ""


class Events:
    """A new event file, to which events are written without a queue. As a context manager, it closes the file at the
    end."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        # Viewers read a folder's files in the order of their names, so the name of a later start must sort last.
        path = folder / f"events.out.tfevents.{time.time():017.6f}.{uuid.uuid4().hex[:8]}"
        self._writer = RecordWriter(str(path))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close(True)

    def add(self, name: str, value: float | int, step: int, at: float) -> None:
        """Adds one value to a curve. `at` is in seconds since 1970."""
        self._write(Event(wall_time=at, step=step, summary=scalar(name, value)))

    def add_picture(self, name: str, png: bytes, step: int, at: float) -> None:
        """Adds a PNG, unchanged."""
        with Image.open(io.BytesIO(png)) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._write(Event(wall_time=at, step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)])))

    def flush(self) -> None:
        """Returns once the events are on disk."""
        self._writer.flush()

    def close(self, done: bool) -> None:
        self._writer.close()

    def _write(self, event) -> None:
        self._writer.write(event.SerializeToString())


class EventFile(Events):
    """The event file of one start of a run."""

    def __init__(self, about: About):
        super().__init__(about.workdir / FOLDER)
        self._workdir = about.workdir

    def send(self, items: Iterable[Item], number: int) -> None:
        for item in items:
            for name, value in item["values"].items():
                self.add(name, value, item["step"], item["time"])
            if item["picture"]:
                self.add_picture(item["label"], read_picture(self._workdir, item), item["step"], item["time"])


open_run = EventFile


def write_figures(folder: Path, figures: Mapping[str, bytes]) -> None:
    """Writes PNGs by name as one event file in `folder`, in place of the event files there.

    Raises `OSError` if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old = list(folder.glob("events.out.tfevents.*"))
    with Events(folder) as events:
        for name, png in figures.items():
            events.add_picture(name, png, 0, time.time())
    for path in old:
        path.unlink(missing_ok=True)
