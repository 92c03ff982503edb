"""Stores the scores of images, row by row, so that the same command resumes stopped work. No torch here.

OUT/settings.json   what the rows depend on: hashes of the weights, the options
OUT/rows.jsonl      one line per image
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

from tqdm import tqdm

from rfjax.console import printable
from rfjax.errors import ConfigError, RfjaxError
from rfjax.files import write_whole
from rfjax.inputs.json_files import parse_json, read_json
from rfjax.outputs import is_json_with
from rfjax.training.progress import format_duration

SCHEMA = 1
EVERY_SECONDS = 30.0  # between lines of progress, if there is no terminal

FILES = ("rows.jsonl", "settings.json", "features.npz", "results.jsonl", "results.summary.json")


def made_here(folder: Path) -> bool:
    """Whether `rfjax score` made the files in a folder: it has a settings.json with a schema."""
    return is_json_with("schema")(folder / "settings.json")


class Row(TypedDict):
    """The keys that every row has."""

    image: str


class Rows:
    """A context manager with the rows in a folder, by the image's name. Only one process at a time may hold it.

    `settings` are plain values; `shape` is the TypedDict of a row. Raises `ConfigError` if the folder's rows were made
    with other settings, or if another process holds the folder.
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, object], shape: type = Row):
        self.folder, self.settings, self._shape = Path(folder), {"schema": SCHEMA, **settings}, shape
        self._path = self.folder / "rows.jsonl"
        self._done: dict[str, dict] = {}
        self._file = None

    def __enter__(self) -> Rows:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a+b")  # held until __exit__
        except OSError as error:
            raise RfjaxError(f"cannot write {self._path}: {error.strerror or error}; check the folder") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check_settings()
            self._read()
        except BlockingIOError:
            self._file.close()
            raise ConfigError(f"another process is scoring into {self.folder}; wait, or give another --out") from None
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_):
        self._file.close()

    def _check_settings(self):
        path = self.folder / "settings.json"
        if not path.exists():
            write_whole({path: json.dumps(self.settings, indent=1) + "\n"})
            return
        before = read_json(path, remedy="remove its folder and score again", error=ConfigError)
        now = json.loads(json.dumps(self.settings))
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                other = f"{before.get(name)!r}, and this is {now.get(name)!r}"
                raise ConfigError(f"{self.folder} was begun with {name} {other}; give another --out, or remove it")

    def _read(self):
        """Reads the rows, and removes a last line that a killed process left unfinished."""
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = parse_json(line, self._shape)
                self._done[row["image"]] = row
            except ValueError as error:
                where = f"{self._path}:{number}"
                raise ConfigError(f"{where} is damaged ({error}); remove the line, to score its image again") from None
        if len(whole) < len(content):
            self._file.truncate(len(whole))

    def get(self, image: str) -> dict | None:
        """Returns an image's row, or None if the image has not been scored."""
        return self._done.get(image)

    def add(self, rows: Iterable[Mapping]) -> None:
        """Appends rows, each with an `image`, and flushes them to the disk."""
        rows = [dict(row) for row in rows]
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            reason = error.strerror or error
            remedy = "check the folder and the space left, then run the command again"
            raise RfjaxError(f"cannot write {self._path}: {reason}; {remedy}") from None
        self._done.update((row["image"], row) for row in rows)


class Bar:
    """A context manager that shows the images done and the time left: a bar on a terminal, else a line every 30 s."""

    def __init__(self, name: str, done: int, total: int):
        self._name, self._first, self._done, self._total = name, done, done, total
        self._began = self._said = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=name, unit="image", dynamic_ncols=True)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def found_done(self, images: int) -> None:
        """Counts `images` images as done that an earlier command scored. They do not enter the speed from which the
        time left is predicted."""
        self._first += images
        self._done += images
        if self._bar is not None:
            self._bar.initial += images
            self._bar.update(images)

    def more(self, images: int) -> None:
        self._done += images
        if self._bar is not None:
            self._bar.update(images)
            return
        now = time.monotonic()
        if now - self._said >= EVERY_SECONDS or self._done == self._total:
            rate = (self._done - self._first) / max(now - self._began, 1e-9)
            left = format_duration((self._total - self._done) / rate)
            text = f"{self._name}: {self._done}/{self._total} images, {rate:.3g} images/s, {left} left"
            print(printable(text), file=sys.stderr, flush=True)
            self._said = now
