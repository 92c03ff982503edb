"""Stores how far a tracker has been fed, in a file of the run's folder, so that a kill loses nothing.

A batch is written to the cursor before it is sent, and removed after the tracker has flushed it. So after a kill the
same items are sent again with the same values and times, even if the run's rows have changed since.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypedDict

from rfjax.files import write_whole
from rfjax.inputs.json_files import read_json
from rfjax.trackers.items import Batch, Item

FOLDER = "trackers"


class _CursorFile(TypedDict):
    id: str
    step: int
    records: list[str]
    number: int
    outbox: list[Item] | None
    outbox_step: int
    outbox_records: list[str]


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """How much of a run a tracker has received, and the items that are being sent to it."""

    id: str  # the run's id at the tracker; kills and resumes do not change it
    step: int = -1  # rows up to this step have been sent
    records: tuple[str, ...] = ()  # names of evaluation records that have been sent
    number: int = 0  # number of items that have been sent
    outbox: tuple[Item, ...] | None = None  # items that are being sent
    outbox_step: int = -1  # `step` once the outbox has been sent
    outbox_records: tuple[str, ...] = ()  # names of the records in the outbox

    def sending(self, batch: Batch) -> Cursor:
        """Returns the cursor to store before a batch is sent: this one, with the batch as its outbox."""
        return replace(self, outbox=tuple(batch.items), outbox_step=batch.step, outbox_records=tuple(batch.records))

    def sent(self) -> Cursor:
        """Returns the cursor to store once its outbox has been sent."""
        return Cursor(
            id=self.id,
            step=self.outbox_step,
            records=(*self.records, *self.outbox_records),
            number=self.number + len(self.outbox or ()),
        )


def read_cursor(workdir: Path, tracker: str) -> Cursor:
    """Reads the cursor of a run at a tracker. A run that was never sent to the tracker gets a new id.

    Raises `RfjaxError`, naming the cursor's file, if the file is damaged.
    """
    path = _path(workdir, tracker)
    try:
        held = read_json(
            path, _CursorFile, remedy="remove it; the tracker is then sent the whole run again as a new one"
        )
    except FileNotFoundError:
        return Cursor(id=uuid.uuid4().hex[:16])
    outbox = None if held["outbox"] is None else tuple(held["outbox"])
    lists = {name: tuple(held[name]) for name in ("records", "outbox_records")}
    known = {name: held[name] for name in _CursorFile.__annotations__}  # a newer version may have written more
    return Cursor(**{**known, **lists, "outbox": outbox})


def write_cursor(workdir: Path, tracker: str, cursor: Cursor) -> None:
    """Writes the cursor's file, whole or not at all. Raises `RfjaxError` if it cannot be written."""
    write_whole({_path(workdir, tracker): json.dumps(asdict(cursor), allow_nan=False) + "\n"})


def _path(workdir: Path, tracker: str) -> Path:
    return workdir / FOLDER / f"{tracker}.json"
