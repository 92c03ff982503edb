"""Draws how the loss falls: its exponent at each level of t, and the collapsed training curves.

A collapsed curve is (loss − E) over its value at the end of training, against the share of training that is done.
"""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rfjax.report.axes import BLUE, GREY, WIDTH, depth_handles, log_scale, point


def level_exponents_and_collapse(numbers, look):
    """Draws the exponents on the left and the collapsed curves on the right; returns None if there is neither.

    Without exponents, or without curves of three compute-optimal sizes, there is one panel.
    """
    levels, curves = numbers["claims"]["level_exponents"]["exponents"], numbers["claims"]["collapse"]["curves"]
    panels = [draw for draw, has in ((_exponents, any(levels.values())), (_collapse, curves)) if has]
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH, 2.9))
    for axis, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axis, numbers, look)
    return figure


def _exponents(axis, numbers, look):
    for t, b in numbers["claims"]["level_exponents"]["exponents"].items():
        if b:
            point(axis, float(t), b["value"], b["low"], b["high"], color=BLUE, marker="o")
    axis.set(xlabel="level of t", ylabel="b of loss ~ C$^{-b}$, no floor", xlim=(0, 1))


def _collapse(axis, numbers, look):
    found, depths = numbers["claims"]["collapse"], {run["run"]: run["depth"] for run in numbers["runs"]}
    for run, curve in zip(found["runs"], found["curves"], strict=True):
        colour, marker = look[depths[run]]
        axis.plot(found["shares"], curve, color=colour, marker=marker, ms=4)
    axis.axhline(1, color=GREY, lw=0.6)
    axis.set(xlabel="share of training", ylabel="(loss − E) over its end value")
    log_scale(axis, "y", [value for curve in found["curves"] for value in curve])
    rows = [{"depth": depths[run]} for run in found["runs"]]
    axis.legend(handles=depth_handles(look, rows) + [Line2D([], [], color=GREY, lw=0.6, label="the end")])
