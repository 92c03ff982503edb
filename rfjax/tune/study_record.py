"""Writes the files of a tuned study: the comparison as JSON, and the figure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rfjax.files import write_whole
from rfjax.report.axes import to_bytes
from rfjax.tune.figure import draw
from rfjax.tune.study import Change, shifts

FILE = "tuned.json"


def write(workdir: Path, changes: Sequence[Change]) -> Path:
    """Writes the comparison to `tuned.json` in a folder, and its figure beside it."""
    found = {
        "schema": 1,
        "changes": [dataclasses.asdict(change) for change in changes],
        "shifts": [{**dataclasses.asdict(shift), "verdict": shift.verdict} for shift in shifts(changes)],
    }
    contents: dict[Path, str | bytes] = {workdir / FILE: json.dumps(found, indent=1) + "\n"}
    figure = draw(changes)
    if figure is not None:
        contents |= {workdir / f"tuned.{kind}": to_bytes(figure, kind) for kind in ("svg", "png")}
    write_whole(contents)
    return workdir / FILE
