"""Draws the compute-optimal frontier of the parametric law: loss, size and images against compute."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rfjax.report.axes import BLUE, GREY, VERMILION, WIDTH, depth_handles, log_scale, points

PANELS = (("loss", "validation loss"), ("params", "parameters"), ("images", "training images"))


def optimal_frontier(numbers, look):
    """Draws the frontier with its interval and all runs, in a panel each for loss, size and images. A run is hollow if
    another learning rate is better at its size.

    Returns None if the runs do not determine a frontier.
    """
    band, analysis = numbers["optimal_band"], numbers["analysis"]
    if band is None:
        return None
    runs = [run for run in numbers["runs"] if run["loss"] is not None]
    figure = Figure(figsize=(WIDTH, 2.9))
    for axis, (name, label) in zip(figure.subplots(1, 3), PANELS, strict=True):
        if band[name]["low"][0] is not None:
            axis.fill_between(band["flops"], band[name]["low"], band[name]["high"], color=BLUE, alpha=0.22, lw=0)
        axis.plot(band["flops"], band[name]["value"], color=BLUE, zorder=2)
        rows = []
        for run in runs:
            colour, marker = look[run["depth"]]
            style = {"color": colour, "marker": marker, "hollow": not run["best_rate"], "zorder": 4}
            rows.append((run["flops"], run[name], None, None, style))
        points(axis, rows)
        axis.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel=label)
        axis.axvline(analysis["optimal_frontier"]["runs_flops"][1], color=GREY, lw=0.8, ls=":")
        if name == "loss":
            if numbers["band"]:
                axis.plot(numbers["band"]["flops"], numbers["band"]["law"]["loss"], color=VERMILION, ls="--", lw=1)
            log_scale(axis, "y", [run["loss"] for run in runs])
    handles = [Line2D([], [], color=BLUE, label="optimal, parametric law")]
    handles.append(matplotlib.patches.Patch(color=BLUE, alpha=0.28, lw=0, label="95 % interval"))
    if numbers["band"]:
        label = f"law of compute ({analysis['headline']})"
        handles.append(Line2D([], [], color=VERMILION, ls="--", lw=1, label=label))
    handles.append(Line2D([], [], color=GREY, lw=0.8, ls=":", label="largest run"))
    if not all(run["best_rate"] for run in runs):
        handles.append(Line2D([], [], color=GREY, marker="o", mfc="white", lw=0, label="another rate is better"))
    figure.legend(handles=depth_handles(look, runs) + handles, loc="outside lower center", ncols=4)
    return figure
