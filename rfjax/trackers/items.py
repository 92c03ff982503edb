"""Reads from a run's folder the items that are sent to trackers.

Only final items are sent: the rows up to the newest complete checkpoint, and the evaluation records up to that
checkpoint. A resumed run starts from there and does not write these rows again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

from rfjax.errors import RfjaxError
from rfjax.evaluation.records import read_records, record_name
from rfjax.inputs.files import why_not_plain
from rfjax.inputs.json_files import parse_json
from rfjax.training.checkpoint import steps_saved
from rfjax.training.metrics import CURVE, DIAGNOSTICS
from rfjax.training.run_folder import read_status

BATCH = 200  # about how many items are sent between two saves of the cursor


class Item(TypedDict):
    """A row of the curve or an evaluation record, as plain JSON: the values of one step, and at most one picture."""

    step: int
    values: dict[str, float | int]
    picture: str | None  # a PNG, as a path from the run's folder; trackers show it as `label`
    label: str
    time: float  # seconds since 1970 when the item was read; it stays the same if the item is sent again


class Batch(NamedTuple):
    """Items in the order of their steps, and what the cursor gets once the items have been sent."""

    items: list[Item]
    step: int  # the cursor's step after this batch
    records: list[str]  # the names of the evaluation records among the items


class Final(NamedTuple):
    """The part of a run's folder that will not change any more."""

    step: float  # rows and records up to this step are final; infinite for a run that diverged, which never goes on
    records: frozenset[str]  # file names of the evaluation records in the folder


def final_of(workdir: Path) -> Final:
    """Returns which part of the run's folder will not change any more and may be sent to trackers now. The result
    differs from an earlier one if there is something new to send."""
    records = frozenset(path.name for path in (workdir / "evaluations").glob("*.json"))
    if read_status(workdir)["state"] == "diverged":
        return Final(math.inf, records)
    return Final(max(steps_saved(workdir), default=-1), records)


def next_batch(workdir: Path, final: Final, step: int, records: Collection[str]) -> Batch:
    """Returns the next items to send: about `BATCH` items that are final and not sent yet.

    The rows up to `step` and the `records` have been sent already. A batch holds all rows of a step or none. Raises
    `RfjaxError` for a damaged record.
    """
    found: list[tuple[int, str, Item]] = []  # (step, name of the record or "", item)
    for row in _rows(workdir):
        if step < row["step"] <= final.step:
            found.append((row["step"], "", _item(row["step"], values_of_row(row))))
    if final.records - set(records):
        for record in read_records(workdir):
            name = record_name(record["key"])
            if name not in records and 0 <= record["key"]["step"] <= final.step:
                found.append((record["key"]["step"], name, _item_of_record(record)))
    found.sort(key=lambda each: each[:2])
    end = min(BATCH, len(found))
    while 0 < end < len(found) and found[end][0] == found[end - 1][0]:
        end += 1
    found = found[:end]
    last = max((at for at, name, _ in found if not name), default=step)
    kept = [item for _, _, item in found if item["values"] or item["picture"]]
    return Batch(kept, last, [name for _, name, _ in found if name])


class _Step(TypedDict):
    step: int


def _rows(workdir: Path) -> Iterator[dict]:
    """Yields the rows of the curve and of the diagnostics. Lines that are no rows, such as a last line that is not
    complete yet, are left out."""
    for name in (DIAGNOSTICS, CURVE):
        if why_not_plain(workdir / name):
            continue
        for line in (workdir / name).read_bytes().split(b"\n"):
            try:
                parse_json(line.decode(), _Step)
            except ValueError:
                continue
            row = json.loads(line)
            if name == DIAGNOSTICS:  # texts are no values, and the curve has the loss
                row = {key: value for key, value in row.items() if not isinstance(value, str) and key != "loss"}
            yield row


def values_of_row(row: Mapping) -> dict[str, float | int]:
    """Returns a row's numbers by name: `loss`, `loss_by_t/0.5`, `group_norms/blocks`, ... Nulls and the step are left
    out."""
    values = {}
    for name, value in row.items():
        if isinstance(value, list):
            value = {f"{index / len(value):.1f}": each for index, each in enumerate(value)}
        for key, each in (value if isinstance(value, dict) else {"": value}).items():
            if each is not None and name != "step":
                values[f"{name}/{key}".rstrip("/")] = each
    return values


def _item_of_record(record: Mapping) -> Item:
    """Returns an evaluation record as an item. The name of a value holds the record's evaluation, weights and settings
    (corpus, sampler, grid, a seed other than 0), the metric and the item of the metric."""
    key = record["key"]
    settings = [key[name] for name in ("corpus", "sampler", "grid") if key[name] != "-"]
    settings += [f"seed {key['seed']}"] if key["seed"] else []
    label = "/".join((key["evaluation"], key["weights"], " ".join(settings)))
    named = ((f"{label}/{value['metric']}/{value['item']}", value["value"]) for value in record["values"])
    return _item(key["step"], {k: v for k, v in named if v is not None}, record["extra"].get("png"), label)


def _item(step: int, values: dict[str, float | int], picture: str | None = None, label: str = "") -> Item:
    return {"step": step, "values": values, "picture": picture, "label": label, "time": time.time()}


def read_picture(workdir: Path, item: Item) -> bytes:
    """Returns the PNG of an item. Raises `RfjaxError` if it cannot be read."""
    path = workdir / str(item["picture"])
    try:
        return path.read_bytes()
    except OSError as error:
        raise RfjaxError(f"cannot read the picture {path}: {error.strerror or error}") from None
