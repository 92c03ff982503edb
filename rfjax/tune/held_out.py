"""The rows of `held_out.jsonl`: what `watch` measures on prompts that a tuning never uses. No JAX here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from rfjax.files import write_whole
from rfjax.inputs.json_files import WrongJson, parse_json

FILE = "held_out.jsonl"


class Row(TypedDict):
    step: int
    prompts: str  # held_out | held_out_pairs
    guidance_scale: float
    measure: str  # a reward's name, or diversity
    value: float
    low: float  # the ends of a 95 % interval over prompts, drawn with replacement within each task
    high: float
    images: int


def add(workdir: Path, rows: Sequence[Row]) -> None:
    """Adds the rows of a step, all of them or none: a step of which some rows are missing would never be measured
    again."""
    write_whole({Path(workdir) / FILE: "".join(json.dumps(row) + "\n" for row in [*read(workdir), *rows])})


def read(workdir: Path) -> list[Row]:
    """The rows of a tuned run. A line that is damaged is left out."""
    path, rows = Path(workdir) / FILE, []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                rows.append(parse_json(line, Row))
            except WrongJson:
                continue
    return rows


def table(rows: Sequence[Row], last: int) -> list[str]:
    """Lines that compare the first step with the last: before and after, with intervals."""
    kinds = list(dict.fromkeys((row["prompts"], row["guidance_scale"], row["measure"]) for row in rows))
    found = {(row["step"], row["prompts"], row["guidance_scale"], row["measure"]): row for row in rows}
    lines = [f"{'prompts':<15} {'guidance':>8} {'measure':<15} {'before':>22} {'after':>22}"]
    for prompts, scale, measure in kinds:
        cells = [_cell(found.get((step, prompts, scale, measure))) for step in (0, last)]
        lines.append(f"{prompts:<15} {scale:>8g} {measure:<15} {cells[0]:>22} {cells[1]:>22}")
    return lines


def _cell(row: Row | None) -> str:
    return "-" if row is None else f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
