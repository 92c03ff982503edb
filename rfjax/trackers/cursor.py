"""`Cursor`: how far a tracker has been fed, in a file of the run's folder, so that a kill loses nothing.

A batch is written to the cursor before it is sent, and taken out after the tracker's flush. So after a kill the very
same items are sent again, with the same values and times, whatever has become of the rows since.
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
    """What a tracker has of a run, and what it is being sent."""

    id: str  # of the run at the tracker; it survives kills and resumes
    step: int = -1  # rows up to it are sent
    records: tuple[str, ...] = ()  # evaluations that are sent
    number: int = 0  # of items that are sent
    outbox: tuple[Item, ...] | None = None  # items that are being sent
    outbox_step: int = -1
    outbox_records: tuple[str, ...] = ()

    def sending(self, batch: Batch) -> Cursor:
        """The cursor while a batch is sent."""
        return replace(self, outbox=tuple(batch.items), outbox_step=batch.step, outbox_records=tuple(batch.records))

    def sent(self) -> Cursor:
        """The cursor after the batch that it holds was sent."""
        return Cursor(
            id=self.id,
            step=self.outbox_step,
            records=(*self.records, *self.outbox_records),
            number=self.number + len(self.outbox or ()),
        )


def read_cursor(workdir: Path, tracker: str) -> Cursor:
    """The cursor of a run at a tracker. A run that the tracker has never been sent gets a new id.

    Raises `RfjaxError` for a damaged file, and names it.
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
    return Cursor(**{**held, **lists, "outbox": outbox})


def write_cursor(workdir: Path, tracker: str, cursor: Cursor) -> None:
    """Writes the file whole or not at all. Raises `RfjaxError` if it cannot be written."""
    write_whole({_path(workdir, tracker): json.dumps(asdict(cursor), allow_nan=False) + "\n"})


def _path(workdir: Path, tracker: str) -> Path:
    return workdir / FOLDER / f"{tracker}.json"
