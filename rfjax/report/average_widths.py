"""Makes the report's numbers, figure and section on the widths of power-function averages (`rfjax eval --average`)."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from rfjax.laws.study_fits import Settings
from rfjax.report.axes import GREEN, VERMILION, WIDTH, depth_handles
from rfjax.report.crowds import drawn_averages, shown_of
from rfjax.report.formats import loss, text
from rfjax.results.results_folder import Results, rows_where
from rfjax.study.rate_optimum import find_optimum
from rfjax.weight_names import width_of


def average_widths(results: Results, points: pd.DataFrame, settings: Settings) -> list[dict]:
    """Returns a row for each run that was measured with two or more widths.

    A row has validation losses at the run's final checkpoint: the loss of each width (`losses`), of the ordinary
    average (`ema`) and of the raw weights (`raw`). The last two are None if they were not measured. `best` is the width
    of lowest loss, and `edge` says whether it is the smallest or largest measured ("" if neither). `optimum` is the
    vertex of the parabola in log width through `best` and its two neighbours; at an edge it is `best`.
    """
    wanted = {"corpus": settings.corpus, "grid": settings.grid, "evaluation_seed": settings.grid_seed}
    rows = rows_where(results.long, evaluation="validation", metric="loss", item="mean", final=1, **wanted)
    depths, found = points.set_index("run")["depth"], []
    for run, group in rows.groupby("run"):
        values = dict(zip(group["weights"], group["value"], strict=True))
        widths = {width_of(name): value for name, value in values.items() if width_of(name) is not None and value > 0}
        if len(widths) < 2 or run not in depths.index:
            continue
        best = find_optimum({width: [value] for width, value in widths.items()})
        found.append(
            {
                "run": run,
                "depth": int(depths[run]),
                "losses": [{"width": width, "loss": widths[width]} for width in sorted(widths)],
                "ema": values.get("ema"),
                "raw": values.get("raw"),
                "best": best.best,
                "best_loss": widths[best.best],
                "edge": best.edge,
                "optimum": best.rate,
            }
        )
    return found


def averages_section(numbers: Mapping, page: object) -> str:
    """Returns the HTML of the section on the widths that were measured; "" if no run has two."""
    found, rows = numbers["average_widths"], []
    for each in found:
        tried = ", ".join(f"{one['width']:g}: {loss(one['loss'])}" for one in each["losses"])
        best = f"{each['optimum']:.3g}"
        if each["edge"]:
            best = f"<b>{each['best']:g}, the {each['edge']} measured</b>: no optimum"
        others = [loss(each[name]) for name in ("ema", "raw")]
        rows.append([text(each["run"]), tried, best, loss(each["best_loss"]), *others])
    if not rows:
        return ""
    caption = (
        "Validation loss of averages made after training, in per cent above the run's lowest, against their width "
        "(sigma_rel: the standard deviation of the average's weights over steps, as a share of the run). A ring marks "
        "the best width. Each run has one training seed, so an optimum has no interval."
    )
    caption += shown_of(len(drawn_averages(numbers)), len(rows), "runs", "the table")
    header = ["run", "width: loss", "optimum", "lowest loss", "loss of the ordinary average", "of the raw weights"]
    title = "The widths of averages measured, and the best of each run."
    return page.drawing("average_widths", caption) + page.table(header, rows, title, words=(0, 1, 2))


def average_widths_figure(numbers: Mapping, look: Mapping) -> Figure | None:
    """Draws the losses of each run's averages, in per cent above the run's lowest, against the width of the average.
    Returns None if no run has two widths."""
    drawn = drawn_averages(numbers)
    if not drawn:
        return None
    figure = Figure(figsize=(WIDTH, 2.6))
    axis = figure.subplots()
    for each in drawn:
        colour, marker = look[each["depth"]]
        over = [100 * (one["loss"] / each["best_loss"] - 1) for one in each["losses"]]
        axis.plot([one["width"] for one in each["losses"]], over, color=colour, marker=marker)
        axis.plot(each["best"], 0.0, marker="o", ms=11, mfc="none", mec=VERMILION if each["edge"] else GREEN, lw=0)
    axis.set(xlabel="width of the average (sigma_rel)", ylabel="loss over the run's best, %")
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    figure.legend(handles=depth_handles(look, drawn), loc="outside right center")
    return figure
