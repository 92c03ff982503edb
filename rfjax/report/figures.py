"""Draws the report's figures of the loss from its numbers (`rfjax.report.numbers`)."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rfjax.evaluation.intervals import STANDARD_ERRORS
from rfjax.report.axes import (
    BLUE,
    GREY,
    VERMILION,
    WIDTH,
    depth_handles,
    ends,
    escape_dollars,
    log_scale,
    point,
    points,
)
from rfjax.report.crowds import drawn_curves, drawn_levels

ASIDE = 0.93  # a prediction is drawn at this many times its run's compute, to be seen beside the run
NAME = 24  # letters of a run's name that fit on an axis


def loss_against_compute(numbers, look):
    """Draws final losses against training FLOPs, with the fitted law and its intervals; below, the residuals."""
    runs = [run for run in numbers["runs"] if run["loss"] is not None]
    if not runs:
        return None
    band, analysis = numbers["band"], numbers["analysis"]
    figure = Figure(figsize=(WIDTH, 4.7 if band else 3.6))
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1)) if band else [figure.subplots()]
    top, handles = axes[0], []
    curves = [curve["validation"] for curve in drawn_curves(numbers) if len(curve["validation"]["flops"]) > 1]
    for curve in curves:
        top.plot(curve["flops"], curve["loss"], color="#bbbbbb", lw=0.8, marker=".", ms=3, zorder=1)
    if curves:
        handles.append(Line2D([], [], color="#bbbbbb", lw=0.8, marker=".", ms=4, label="before annealing (not fitted)"))
    if band:
        law = band["law"]
        top.fill_between(band["flops"], law["new_run_low"], law["new_run_high"], color=BLUE, alpha=0.10, lw=0)
        top.fill_between(band["flops"], law["low"], law["high"], color=BLUE, alpha=0.22, lw=0)
        top.plot(band["flops"], law["loss"], color=BLUE, zorder=2)
        fitted = analysis["fits"][analysis["headline"]]
        handles.append(Line2D([], [], color=BLUE, label=f"fitted law ({fitted['law']}), n = {fitted['n']}"))
        handles.append(matplotlib.patches.Patch(color=BLUE, alpha=0.28, lw=0, label="95 % band of the law"))
        handles.append(matplotlib.patches.Patch(color=BLUE, alpha=0.12, lw=0, label="95 % band of a new run"))
        offset = fitted["parameters"].get("E")
        if offset and offset["value"] > 0:
            top.axhline(offset["value"], color=BLUE, lw=0.8, ls=":")
            handles.append(Line2D([], [], color=BLUE, lw=0.8, ls=":", label=f"E = {offset['value']:.4f}"))
    held = analysis["held_out"]
    if held and band:
        top.plot(band["flops"], band["held_out"]["loss"], color=VERMILION, ls="--", lw=1, zorder=2)
        for prediction in held["predictions"]:
            at = prediction["flops"] * ASIDE
            point(
                top,
                at,
                *ends(prediction, "predicted"),
                color=VERMILION,
                hollow=True,
                ms=4,
                marker=_marker(held, prediction),
            )
        handles.append(Line2D([], [], color=VERMILION, ls="--", lw=1, label=f"law without depth {held['depth']}"))
        label = "its prediction, 95 % interval"
        handles.append(Line2D([], [], color=VERMILION, marker="D", mfc="white", ms=4, lw=0, label=label))
        if any(prediction["law"] != held["fit"]["law"] for prediction in held["predictions"]):
            label = f"by params and images without depth {held['depth']}"
            handles.append(Line2D([], [], color=VERMILION, marker="s", mfc="white", ms=4, lw=0, label=label))
    rows = []
    for run in runs:
        colour, marker = look[run["depth"]]
        style = {"color": colour, "marker": marker, "hollow": not run["frontier"], "zorder": 4}
        rows.append((run["flops"], run["loss"], run["loss_low"], run["loss_high"], style))
    points(top, rows)
    top.set_ylabel("validation loss")
    log_scale(top, "y", [run["loss"] for run in runs])
    handles = depth_handles(look, runs) + handles
    if not all(run["frontier"] for run in runs):
        label = "not on the frontier (not fitted)"
        handles.append(Line2D([], [], color=GREY, marker="o", mfc="white", lw=0, label=label))
    top.legend(handles=handles, loc="upper right", ncols=2)
    if band:
        _draw_residuals(axes[1], numbers, runs, look)
    axes[-1].set(xlabel="training FLOPs (2 per multiply-accumulate, 3× forward)", xscale="log")
    return figure


def _marker(held, prediction):
    """Returns the marker with which a held-out prediction is drawn: a diamond for the law of compute, a square for the
    parametric law."""
    return "D" if prediction["law"] == held["fit"]["law"] else "s"


def _draw_residuals(axes, numbers, runs, look):
    """Draws the frontier runs, the intervals and the predictions as deviations from the fitted law in per cent."""
    band, held = numbers["band"], numbers["analysis"]["held_out"]
    law = np.array(band["law"]["loss"])

    def percent(flops, loss):
        at = np.exp(np.interp(np.log(flops), np.log(band["flops"]), np.log(law)))
        return 100 * (np.array(loss) / at - 1)

    for low, high, alpha in (("new_run_low", "new_run_high", 0.10), ("low", "high", 0.22)):
        lower, upper = (percent(band["flops"], band["law"][end]) for end in (low, high))
        axes.fill_between(band["flops"], lower, upper, color=BLUE, alpha=alpha, lw=0)
    axes.axhline(0, color=BLUE, lw=1)
    shown, rows = [], []
    for run in (run for run in runs if run["frontier"]):
        colour, marker = look[run["depth"]]
        value = percent(run["flops"], run["loss"])
        style = {"color": colour, "marker": marker, "ms": 4.5, "zorder": 4}
        rows.append((run["flops"], value, None, None, style))
        shown.append(value)
    points(axes, rows)
    for prediction in held["predictions"] if held else ():
        values = [percent(prediction["flops"], value) for value in ends(prediction, "predicted")]
        point(
            axes,
            prediction["flops"] * ASIDE,
            *values,
            color=VERMILION,
            hollow=True,
            ms=4,
            marker=_marker(held, prediction),
        )
        shown += values
    reach = 1.25 * max(abs(value) for value in shown) + 1e-3  # all points must lie in the panel; the band need not
    axes.set(ylim=(-reach, reach), ylabel="above law (%)")


def loss_against_steps(numbers, look):
    """Draws training and validation loss against steps and against FLOPs."""
    curves = drawn_curves(numbers)
    if not any(len(curve["train"]["step"]) > 1 or len(curve["validation"]["step"]) > 1 for curve in curves):
        return None
    figure = Figure(figsize=(WIDTH, 2.9))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, x in zip(axes, ("step", "flops"), strict=True):
        shown = []
        for curve in curves:
            colour, marker = look[curve["depth"]]
            train, validation = curve["train"], curve["validation"]
            steps = [(at, loss) for at, loss in zip(train[x], train["loss"], strict=True) if at and loss]
            if steps:
                axis.plot(*zip(*steps, strict=True), color=colour, lw=0.8, alpha=0.65)
            lw = 0.9 if len(validation[x]) > 1 else 0
            axis.plot(validation[x], validation["loss"], color=colour, lw=lw, marker=marker, ms=4.5, zorder=3)
            shown += [loss for _, loss in steps] + validation["loss"]
        log_scale(axis, "y", shown)
    axes[0].set(xlabel="step", ylabel="loss")
    axes[1].set(xscale="log", xlabel="training FLOPs")
    handles = depth_handles(look, curves) + [
        Line2D([], [], color=GREY, lw=0.8, label="training"),
        Line2D([], [], color=GREY, marker="o", lw=0, ms=4.5, label="validation"),
    ]
    axes[0].legend(handles=handles, ncols=2)
    return figure


def loss_per_level(numbers, look):
    """Draws the loss at each level of t, as it is and relative to the run of least compute."""
    levels, runs = numbers["levels"], drawn_levels(numbers)
    if not levels["t"] or not runs:
        return None
    figure = Figure(figsize=(WIDTH, 2.8))
    left, right = figure.subplots(1, 2)
    first = min(runs, key=lambda run: run["flops"])
    best = {run["depth"]: run for run in sorted(runs, key=lambda run: -run["flops"])[::-1]}
    t, averaged = np.array(levels["t"]), np.array(levels["averaged"])
    for run in runs:
        colour, marker = look[run["depth"]]
        faint = best[run["depth"]] is not run
        loss = np.array(run["loss"], float)
        style = {"color": colour, "lw": 0.7 if faint else 1.2, "ls": ":" if faint else "-", "ms": 4}
        left.plot(t, loss, zorder=2 if faint else 3, **style)
        if not faint:
            bars = STANDARD_ERRORS * np.array(run["stderr"], float)
            left.errorbar(t, loss, bars, fmt="none", ecolor=colour, elinewidth=0.8)
            left.plot(t[averaged], loss[averaged], marker=marker, color=colour, lw=0, ms=4, zorder=4)
            left.plot(t[~averaged], loss[~averaged], marker=marker, color=colour, mfc="white", lw=0, ms=4, zorder=4)
        if run is not first:
            right.plot(t, loss / np.array(first["loss"], float), marker=None if faint else marker, **style)
    right.axhline(1, color=look[first["depth"]][0], lw=1)
    log_scale(left, "y", [loss for run in runs for loss in run["loss"] if loss])
    name = first["run"] if len(first["run"]) <= NAME else first["run"][: NAME - 1] + "…"
    for axis, label in ((left, "validation loss at t"), (right, f"relative to {escape_dollars(name)}")):
        axis.set(xlabel="t  (0: data, 1: noise)", xlim=(-0.02, 1.02), ylabel=label)
    handles = depth_handles(look, runs)
    if any(best[run["depth"]] is not run for run in runs):
        handles.append(Line2D([], [], color=GREY, lw=0.8, ls=":", label="less compute"))
    if not averaged.all():
        handles.append(Line2D([], [], color=GREY, marker="o", mfc="white", lw=0, ms=4, label="not in the mean"))
    left.legend(handles=handles, ncols=2)
    return figure
