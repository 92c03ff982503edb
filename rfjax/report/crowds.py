"""Decides what the page shows if there is too much to read: rows are folded, a spread of the lines and sheets is shown,
names are counted.

Nothing vanishes in silence: beside what is shown, the page gives the number of what is not shown, and the file that has
everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

ROWS = 40  # of a table that stand open; the others are folded
LINES = 60  # of a figure
SHEETS = 40  # strips of samples under one another
NAMES = 20  # in a sentence
Row = TypeVar("Row")


def spread(rows: Sequence[Row], most: int, cost: Callable[[Row], float]) -> list[Row]:
    """At most `most` rows, spread evenly over the order by `cost`. The cheapest and the dearest row are always among
    them. The result is in the order of `rows`."""
    if len(rows) <= most:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda place: cost(rows[place]))
    chosen = {order[int(place)] for place in np.linspace(0, len(rows) - 1, most).round()}
    return [row for place, row in enumerate(rows) if place in chosen]


def shown_of(shown: int, total: int, what: str, where: str) -> str:
    """A sentence that says how many of the things are shown, and which file has all of them; "" if all are shown. It
    begins with a blank."""
    return "" if shown >= total else f" Shown are {shown:,} of {total:,} {what}; all are in {where}."


def names(found: Sequence[object], where: str = "report.json", between: str = ", ") -> str:
    """The names as one line. If there are more than `NAMES`, the line has the first names, the number of the other
    names, and the file that has all."""
    listed = between.join(map(str, found[:NAMES]))
    return listed if len(found) <= NAMES else f"{listed} and {len(found) - NAMES:,} more (all in {where})"


def drawn_curves(numbers: Mapping) -> list[Mapping]:
    """The runs whose curves are drawn, spread over their compute."""
    return spread(
        numbers["curves"], LINES, lambda curve: max([*curve["validation"]["flops"], *curve["train"]["flops"], 0])
    )


def drawn_levels(numbers: Mapping) -> list[Mapping]:
    """The runs whose losses at each level are drawn: the run of most compute for each depth, then a spread of the
    others."""
    runs = numbers["levels"]["runs"]
    best = {run["depth"]: run["run"] for run in sorted(runs, key=lambda run: -run["flops"])[::-1]}.values()
    first = min((run["run"] for run in runs), key={run["run"]: run["flops"] for run in runs}.get, default=None)
    kept = {*best, first}
    others = [run for run in runs if run["run"] not in kept]
    kept |= {run["run"] for run in spread(others, LINES, lambda run: run["flops"])}
    return [run for run in runs if run["run"] in kept]


def drawn_sweeps(numbers: Mapping) -> list[Mapping]:
    """The sweeps of the learning rate that are drawn."""
    return spread(numbers["learning_rates"], LINES, lambda sweep: sweep["images"])


def drawn_steps(counts: Sequence[Mapping]) -> tuple[dict[tuple, list[Mapping]], int]:
    """(the counts of sampling steps of each line that is drawn, the number of all lines)."""
    lines: dict[tuple, list] = {}
    for count in counts:
        lines.setdefault((count["run"], count["settings"], count["reference"]), []).append(count)
    return dict(spread(list(lines.items()), LINES, lambda line: (line[1][0]["depth"], line[0]))), len(lines)


def shown_sheets(numbers: Mapping) -> list[Mapping]:
    """The sample sheets on the page: the best of each depth, then others spread over compute."""
    rows = numbers["samples"]["rows"]
    others = spread([row for row in rows if not row["best_of_depth"]], SHEETS, lambda row: row["flops"] or 0.0)
    kept = {row["png"] for row in [*others, *(row for row in rows if row["best_of_depth"])]}
    return [row for row in rows if row["png"] in kept]
