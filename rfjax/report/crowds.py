"""Decides what the page shows if there is too much to read.

Table rows beyond a limit are folded. Only a selection of a figure's lines and of the sample sheets is shown. Names
beyond a limit are only counted. Wherever something is not shown, the page says how much, and which file has everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

ROWS = 40  # most rows of a table that are shown unfolded
LINES = 60  # most lines of a figure
SHEETS = 40  # most strips of samples under one another
NAMES = 20  # most names in a sentence
SAMPLES = ("samples", "samples_of_clips")  # the report's groups of sample sheets
Row = TypeVar("Row")


def spread(rows: Sequence[Row], most: int, cost: Callable[[Row], float]) -> list[Row]:
    """Selects at most `most` rows, spread evenly over the order by `cost`; the result is in the order of `rows`.

    The rows of least and of most cost are always selected.
    """
    if len(rows) <= most:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda place: cost(rows[place]))
    chosen = {order[int(place)] for place in np.linspace(0, len(rows) - 1, most).round()}
    return [row for place, row in enumerate(rows) if place in chosen]


def shown_of(shown: int, total: int, what: str, where: str) -> str:
    """Returns " Shown are 60 of 200 runs; all are in wide.csv.", for `what` "runs" and `where` "wide.csv"; "" if all
    are shown."""
    return "" if shown >= total else f" Shown are {shown:,} of {total:,} {what}; all are in {where}."


def names(found: Sequence[object], where: str = "report.json", between: str = ", ") -> str:
    """Joins names to one line. Names beyond the first `NAMES` are only counted, and the file `where` that has all of
    them is named."""
    listed = between.join(map(str, found[:NAMES]))
    return listed if len(found) <= NAMES else f"{listed} and {len(found) - NAMES:,} more (all in {where})"


def drawn_curves(numbers: Mapping) -> list[Mapping]:
    """Returns the runs whose curves are drawn, spread over their compute."""
    return spread(
        numbers["curves"], LINES, lambda curve: max([*curve["validation"]["flops"], *curve["train"]["flops"], 0])
    )


def drawn_levels(numbers: Mapping) -> list[Mapping]:
    """Returns the runs whose losses at each level are drawn: each depth's run of most compute, the run of least
    compute, and a selection of the other runs."""
    runs = numbers["levels"]["runs"]
    best = {run["depth"]: run["run"] for run in sorted(runs, key=lambda run: -run["flops"])[::-1]}.values()
    first = min((run["run"] for run in runs), key={run["run"]: run["flops"] for run in runs}.get, default=None)
    kept = {*best, first}
    others = [run for run in runs if run["run"] not in kept]
    kept |= {run["run"] for run in spread(others, LINES, lambda run: run["flops"])}
    return [run for run in runs if run["run"] in kept]


def drawn_sweeps(numbers: Mapping) -> list[Mapping]:
    """Returns the sweeps of the learning rate that are drawn, spread over their numbers of images."""
    return spread(numbers["learning_rates"], LINES, lambda sweep: sweep["images"])


def drawn_averages(numbers: Mapping) -> list[Mapping]:
    """Returns the runs whose losses against the width of their averages are drawn, spread over their depths."""
    return spread(numbers["average_widths"], LINES, lambda run: run["depth"])


def drawn_steps(counts: Sequence[Mapping]) -> tuple[dict[tuple, list[Mapping]], int]:
    """Selects the lines to draw in the figure of score against sampling steps. A line is a run under one sampler.
    Returns ({line: its rows of `counts`}, the number of lines before the selection)."""
    lines: dict[tuple, list] = {}
    for count in counts:
        lines.setdefault((count["run"], count["settings"], count["reference"]), []).append(count)
    return dict(spread(list(lines.items()), LINES, lambda line: (line[1][0]["depth"], line[0]))), len(lines)


def shown_sheets(numbers: Mapping) -> list[Mapping]:
    """Returns the sample sheets that the page shows, of stills and of clips: those of each depth's best run, then
    others by compute."""
    return [row for group in SAMPLES for row in _shown_rows(numbers[group]["rows"])]


def _shown_rows(rows):
    others = spread([row for row in rows if not row["best_of_depth"]], SHEETS, lambda row: row["flops"] or 0.0)
    kept = {row["png"] for row in [*others, *(row for row in rows if row["best_of_depth"])]}
    return [row for row in rows if row["png"] in kept]
