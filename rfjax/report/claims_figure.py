"""Draws published laws beside the law of the user's own table: the optimal size and its exponent."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rfjax.report.axes import BLUE, GREEN, GREY, ORANGE, VERMILION, WIDTH, depth_handles, point

OWN_COLOURS = (BLUE, "#56B4E9")  # in the table's own FLOPs, in C = 6 N D
COLOURS = (VERMILION, VERMILION, ORANGE, GREEN, GREEN, GREY, GREY)
LINES = ("--", ":", "--", "--", ":", "--", "--")


def claimed_laws(numbers, look):
    """Draws published laws of the optimal size N*(C) and the table's own law: their exponents, and N* against compute
    C.

    Each law is drawn over the range of its own runs, with its own count of C. The table's runs are points. If the table
    does not determine an optimal size, no line is drawn for it.
    """
    laws = numbers["claims"]["laws"]
    own, published = laws["own"], laws["published"]
    runs = [run for run in numbers["runs"] if run["loss"] is not None]
    figure = Figure(figsize=(WIDTH, 3.6))
    left, right = figure.subplots(1, 2)
    _slopes(left, own, published)
    for one, colour in _with_colours(own):
        line = one["line"]
        if line is None:
            continue
        if line["low"][0] is not None:
            right.fill_between(line["flops"], line["low"], line["high"], color=colour, alpha=0.25, lw=0)
        right.plot(line["flops"], line["value"], color=colour)
    for run in runs:
        colour, marker = look[run["depth"]]
        point(right, run["flops"], run["params"], None, None, color=colour, marker=marker, ms=4, zorder=4)
    handles = [
        Line2D([], [], color=colour, label=f"N*, {one['count']}") for one, colour in _with_colours(own) if one["line"]
    ]
    if own:
        handles.append(matplotlib.patches.Patch(color=BLUE, alpha=0.28, lw=0, label="95 % interval"))
    for law, colour, style in zip(published, COLOURS, LINES, strict=True):
        if law["line"] is not None:
            right.plot(law["line"]["flops"], law["line"]["params"], color=colour, ls=style)
            handles.append(Line2D([], [], color=colour, ls=style, label=law["name"]))
    right.set(xscale="log", yscale="log", xlabel="C, as each counts it", ylabel="parameters")
    figure.legend(handles=depth_handles(look, runs) + handles, loc="outside lower center", ncols=4)
    return figure


def _slopes(axis, own, published):
    """Draws the exponents a of N* ~ C^a, one in each row: first the table's with its interval, then the papers'."""
    rows = [  # how C is counted is too long for the margin: its start is shown here, and the whole in the legend
        (f"this table,\n{one['count'].partition(',')[0]}", one["params_exponent"], colour, "o")
        for one, colour in _with_colours(own)
    ]
    if not own:
        rows = [("this table:\nnot decided", None, BLUE, "o")]
    place_of_line = len(rows) - 0.5
    rows += [
        (law["name"].replace(", ", ",\n", 1), {"value": law["params_exponent"], "low": None, "high": None}, colour, "D")
        for law, colour in zip(published, COLOURS, strict=True)
    ]
    for place, (_, slope, colour, marker) in enumerate(rows):
        if slope is None:
            continue
        if slope["low"] is not None:
            axis.plot([slope["low"], slope["high"]], [place, place], color=colour, lw=2, solid_capstyle="butt")
        axis.plot(slope["value"], place, marker=marker, color=colour, ms=5, lw=0)
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axis.axhline(place_of_line, color=GREY, lw=0.6)
    axis.set(xlabel="a of N* ~ C$^a$", ylim=(len(rows) - 0.5, -0.5))


def _with_colours(own):
    return zip(own, OWN_COLOURS, strict=False)
