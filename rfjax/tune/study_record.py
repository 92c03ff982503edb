"""Writes the files of a tuned study: the comparison as JSON, and the figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rfjax.files import write_whole
from rfjax.laws.tuned import Change, as_plain
from rfjax.report.axes import to_bytes
from rfjax.report.tuned_figure import draw

FILE = "tuned.json"


def write(workdir: Path, changes: Sequence[Change]) -> Path:
    """Writes the comparison to `tuned.json` in a folder, and its figure beside it. Returns the path of `tuned.json`."""
    found = {"schema": 1} | as_plain(changes)
    contents: dict[Path, str | bytes] = {workdir / FILE: json.dumps(found, indent=1) + "\n"}
    figure = draw({"": changes})
    if figure is not None:
        contents |= {workdir / f"tuned.{kind}": to_bytes(figure, kind) for kind in ("svg", "png")}
    write_whole(contents)
    return workdir / FILE
