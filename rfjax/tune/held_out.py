"""The rows of `held_out.jsonl`: what `watch` measures on prompts that a tuning never uses. No JAX here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from rfjax.evaluation.intervals import PERCENTILES
from rfjax.files import write_whole
from rfjax.inputs.json_files import WrongJson, parse_json

FILE = "held_out.jsonl"
RESAMPLES = 2000


class Row(TypedDict):
    step: int
    prompts: str  # held_out | held_out_pairs
    guidance_scale: float
    measure: str  # a reward's name, or diversity
    value: float
    low: float  # the ends of a 95 % interval over prompts, drawn with replacement within each task
    high: float
    images: int
    by_task: NotRequired[dict[str, list[float]]]  # each prompt's mean over its images; older files lack it


def task_mean(by_task: Mapping[str, Sequence[float]], seed: int = 0) -> tuple[float, float, float]:
    """Returns (the unweighted mean of the tasks' means, the lower end and the upper end of its 95 % interval).

    The interval is a percentile bootstrap over prompts, drawn with replacement within each task.
    """
    rng, resampled = np.random.default_rng(seed), []
    each = [np.asarray(values, np.float64) for values in by_task.values()]
    for values in each:
        resampled.append(values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1))
    low, high = np.percentile(np.mean(resampled, axis=0), PERCENTILES)
    return float(np.mean([values.mean() for values in each])), float(low), float(high)


def change(before: Row, after: Row) -> tuple[float, float, float] | None:
    """Returns (the mean change from `before` to `after`, the lower end, the upper end of its 95 % interval). All three
    are computed from the differences by prompt.

    Both rows have the same prompts and noise, so a prompt that is hard before and after adds nothing to the interval.
    Returns None if a row has no values by prompt, or if the rows differ in their tasks or numbers of prompts.
    """
    first, last = before.get("by_task"), after.get("by_task")
    if not first or not last or {t: len(v) for t, v in first.items()} != {t: len(v) for t, v in last.items()}:
        return None
    return task_mean({task: np.subtract(last[task], first[task]).tolist() for task in first})


def add(workdir: Path, rows: Sequence[Row]) -> None:
    """Adds the rows of a step, all of them or none: a step that has any row is not measured again, so its other rows
    would be missing for ever."""
    write_whole({Path(workdir) / FILE: "".join(json.dumps(row) + "\n" for row in [*read(workdir), *rows])})


def read(workdir: Path) -> list[Row]:
    """Reads the rows of a tuned run's held_out.jsonl. A line that is damaged is left out."""
    path, rows = Path(workdir) / FILE, []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                rows.append(parse_json(line, Row))
            except WrongJson:
                continue
    return rows


def table(rows: Sequence[Row], last: int) -> list[str]:
    """Lines of a table that compares each measure before tuning with the same measure after step `last`: both values
    and the change, with 95 % intervals."""
    kinds = list(dict.fromkeys((row["prompts"], row["guidance_scale"], row["measure"]) for row in rows))
    found = {(row["step"], row["prompts"], row["guidance_scale"], row["measure"]): row for row in rows}
    lines = [f"{'prompts':<15} {'guidance':>8} {'measure':<15} {'before':>22} {'after':>22} {'change':>24}"]
    for prompts, scale, measure in kinds:
        first, final = (found.get((step, prompts, scale, measure)) for step in (0, last))
        cells = [_cell(row and (row["value"], row["low"], row["high"])) for row in (first, final)]
        gain = _cell(change(first, final) if first and final else None, "+")
        lines.append(f"{prompts:<15} {scale:>8g} {measure:<15} {cells[0]:>22} {cells[1]:>22} {gain:>24}")
    return lines


def _cell(numbers: tuple[float, float, float] | None, sign: str = "") -> str:
    """Formats (number, low, high), or None as "-". With the sign "+", a positive number has a plus."""
    return "-" if numbers is None else "{:{sign}.3f} [{:{sign}.3f}, {:{sign}.3f}]".format(*numbers, sign=sign)
