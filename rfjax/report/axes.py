"""Common parts of the report's figures: style, colours and markers of depths, points, logarithmic axes.

Each depth has a marker, and a colour from an ordered, colour-blind-safe scale (viridis without its pale end). The
markers repeat after ten depths. Kinds of lines have the colours of Okabe and Ito. The legend of each figure says what
a hollow marker means.
"""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from rfjax.report.crowds import spread
from rfjax.results.many_runs import are_many

MARKERS = "osD^vPX*<>"
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
LABELLED = 8  # most depths that a legend names
WIDTH = 7.2  # inches: the text width of the page
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
    "legend.fontsize": 7.5,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "figure.dpi": 200,  # as saved: the layout measures text, which is narrower at fewer dots per inch
    "savefig.dpi": 200,
    "svg.hashsalt": "rfjax",  # so that equal numbers give equal files
    "figure.constrained_layout.use": True,
}


def looks(depths):
    """Maps each depth to its look: (colour, marker)."""
    colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.82, max(len(depths), 2)))
    return {d: (matplotlib.colors.to_hex(colours[i]), MARKERS[i % len(MARKERS)]) for i, d in enumerate(depths)}


def ends(found, value="value"):
    """Returns (`found[value]`, `found["low"]`, `found["high"]`), in the order in which `point` takes them."""
    return found[value], found["low"], found["high"]


def point(axis, x, value, low, high, *, color, marker, hollow=False, ms=5, zorder=3):
    """Draws a point, with its interval if it has one."""
    if low is not None and high is not None:
        axis.plot([x, x], [low, high], color=color, lw=1, zorder=zorder - 0.1, solid_capstyle="butt")
    axis.plot(x, value, marker=marker, color=color, mfc="white" if hollow else color, ms=ms, lw=0, zorder=zorder)


def points(axis, rows):
    """Draws points with intervals; each row is (x, value, low, high, options for the function `point`). If there are
    many, points are smaller, intervals are faint, and points that look alike are drawn by one call."""
    if not are_many(len(rows)):
        for *numbers, style in rows:
            point(axis, *numbers, **style)
        return
    alike: dict[tuple, list] = {}
    for *numbers, style in rows:
        alike.setdefault(tuple(style.items()), []).append(numbers)
    for style, own in alike.items():
        look = {"hollow": False, "ms": 5, "zorder": 3} | dict(style)
        bars = [(x, low, high) for x, _, low, high in own if low is not None and high is not None]
        if bars:
            axis.vlines(*zip(*bars, strict=True), color=look["color"], lw=0.6, alpha=0.3, zorder=look["zorder"] - 0.1)
        x, values = zip(*((x, value) for x, value, *_ in own), strict=True)
        marks = {"marker": look["marker"], "color": look["color"], "ms": 0.6 * look["ms"], "mew": 0.5, "lw": 0}
        axis.plot(x, values, mfc="white" if look["hollow"] else look["color"], zorder=look["zorder"], **marks)


def depth_handles(look, rows):
    """Returns a legend's entries for the depths of the rows: at most `LABELLED` entries, spread evenly over the
    depths."""
    depths = sorted({row["depth"] for row in rows})
    shown = spread(depths, LABELLED, float)
    labels = [f"depth {d}" for d in shown]
    if len(shown) < len(depths):
        labels[-1] += f" ({len(depths)} depths)"
    return [
        Line2D([], [], color=look[d][0], marker=look[d][1], lw=0, label=label)
        for d, label in zip(shown, labels, strict=True)
    ]


def log_scale(axes, which, values, *, ticks=False):
    """Makes x or y logarithmic, with plain decimal labels.

    With `ticks`, each value has a label. Otherwise round numbers have labels; the shorter the range, the more numbers.
    """
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    if ticks:
        axis.set_ticks(values, list(map(str, values)))
        axis.set_minor_locator(NullLocator())
        return
    span = max(values) / min(values) if values else 1.0
    subs = (1,) if span > 300 else (1, 2, 5) if span > 12 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.{3 if span > 1.3 else 4}g}"))
    axis.set_minor_formatter(NullFormatter())


def escape_dollars(name):
    """Escapes every `$` in a name for a figure, because a `$` would start a formula."""
    return name.replace("$", r"\$")


def to_bytes(figure: Figure, kind: str) -> bytes:
    """Renders the figure as "svg" or "png"; equal figures give equal bytes."""
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()
