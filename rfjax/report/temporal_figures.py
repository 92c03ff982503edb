"""Draws the report's figures of temporal GenEval: scores above floors against compute, and the loss against scores."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

from rfjax.report.axes import GREEN, VERMILION, WIDTH, depth_handles, ends, log_scale, points
from rfjax.report.score_figures import task_title

COLUMNS = 4
TITLES = {
    "direction_right": "Direction right (soft)",
    "pixels_a_frame": "Pixels a frame (soft)",
    "pixels_a_frame_slow": "Pixels a frame, slow (soft)",
    "pixels_a_frame_fast": "Pixels a frame, fast (soft)",
    "frames_right": "Frames right (soft)",
    "velocity_error": "Velocity error, px a frame",
    "velocity_found": "Velocity found (share)",
    "all_moving": "All moving (strict)",
    "all_still": "All at rest (strict)",
}
# Soft measures first, since they rise first. The mean of slow and fast says less than both.
FIRST = (
    *("direction_right", "pixels_a_frame_fast", "pixels_a_frame_slow", "frames_right"),
    *("velocity_error", "velocity_found", "all_moving", "all_still"),
)
IN_PIXELS = ("pixels_a_frame", "pixels_a_frame_slow", "pixels_a_frame_fast", "velocity_error")  # not from 0 to 1
NOT_DRAWN = ("pixels_a_frame",)
AGAINST_LOSS = ("direction_right", "frames_right", "all_moving")


def item_title(item: str) -> str:
    """Returns a measure's name in a figure or table."""
    return TITLES.get(item) or f"{task_title(item)} (strict)"


def drawn_items(temporal) -> list[str]:
    """Returns the measures in the order of panels and columns, without a mean over tasks if there is only one task."""
    items = [item for item in temporal["items"] if item not in NOT_DRAWN]
    run = temporal["runs"][0]["scores"]
    tasks = [item for item in items if item not in TITLES]
    single = {
        name
        for name in ("all_moving", "all_still")
        if name in run and any(run[task]["n"] == run[name]["n"] for task in tasks if task in run)
    }
    items = [item for item in items if item not in single]
    return [*(item for item in FIRST if item in items), *(item for item in items if item not in FIRST)]


def temporal_against_compute(numbers, look):
    """Draws every measure against training FLOPs, with each point's highest floor (an error's lowest floor) and the
    score of ground truth."""
    temporal = numbers["temporal"]
    if not temporal:
        return None
    items = drawn_items(temporal)
    rows = math.ceil((len(items) + 1) / COLUMNS)
    figure = Figure(figsize=(WIDTH, 2.05 * rows))
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    flops = [run["flops"] for run in temporal["runs"]]
    for axis, item in zip(axes, items, strict=False):
        have = [run for run in temporal["runs"] if item in run["scores"]]
        if item in temporal["ceiling"]:
            axis.axhline(temporal["ceiling"][item]["value"], color=GREEN, lw=1, ls="--")
        for depth in sorted({run["depth"] for run in have}):
            own = sorted((run for run in have if run["depth"] == depth), key=lambda run: run["flops"])
            values = [run["scores"][item]["value"] for run in own]
            axis.plot([run["flops"] for run in own], values, color=look[depth][0], lw=0.6, alpha=0.5)
        floors = [(run["flops"], run["highest_floor"][item]) for run in have if item in run["highest_floor"]]
        style = {"color": VERMILION, "marker": "_", "ms": 5, "zorder": 2}
        points(axis, [(x, *ends(floor), style) for x, floor in floors])
        marks = []
        for run in have:
            colour, marker = look[run["depth"]]
            marks.append((run["flops"], *ends(run["scores"][item]), {"color": colour, "marker": marker, "ms": 4}))
        points(axis, marks)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3) if max(flops) < 20 * min(flops) else (1,), numticks=6))
        axis.xaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(9, 9)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(item_title(item))
        if item not in IN_PIXELS:
            axis.set_ylim(-0.03, 1.05)
    for axis in axes[max(0, len(items) - COLUMNS) : len(items)]:  # the lowest of each column
        axis.set_xlabel("training FLOPs")
    handles = [
        Line2D([], [], color=GREEN, ls="--", lw=1, label="ground truth"),
        Line2D([], [], color=VERMILION, marker="_", ms=5, lw=1, label="the best of its floors"),
        *depth_handles(look, temporal["runs"]),
    ]
    axes[len(items)].legend(handles=handles, loc="center", fontsize=7)
    for axis in axes[len(items) :]:
        axis.axis("off")
    return figure


def loss_against_temporal(numbers, look):
    """Draws the validation loss against temporal scores, a point for each run."""
    temporal = numbers["temporal"]
    if not temporal or len(temporal["runs"]) < 2:
        return None
    items = [item for item in AGAINST_LOSS if item in temporal["items"]]
    figure = Figure(figsize=(WIDTH, 2.6))
    for axis, item in zip(figure.subplots(1, len(items), squeeze=False)[0], items, strict=True):
        have = [run for run in temporal["runs"] if item in run["scores"]]
        marks = []
        for run in have:
            colour, marker = look[run["depth"]]
            marks.append((run["loss"], *ends(run["scores"][item]), {"color": colour, "marker": marker, "ms": 4}))
        points(axis, marks)
        log_scale(axis, "x", [run["loss"] for run in have])
        title, tallest = item_title(item), max(run["scores"][item]["high"] for run in have)
        axis.set_ylim(-0.03, max(0.2, 1.08 * tallest))
        found = {c["name"]: c for c in temporal["correlation"].get(item, {"coefficients": ()})["coefficients"]}
        if "Spearman" in found:
            title += f"\nSpearman {found['Spearman']['value']:.2f}, n = {len(have)}".replace("-", "−")
        axis.set(xlabel="validation loss (falls to the left)", title=title)
    figure.axes[0].legend(handles=depth_handles(look, temporal["runs"]), loc="upper right", fontsize=7)
    return figure
