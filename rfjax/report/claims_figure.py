"""Draws published laws beside the table's own: the power of compute by which the optimal size grows, and the size."""

from __future__ import annotations

from matplotlib.figure import Figure

from rfjax.report.axes import BLUE, GREEN, GREY, ORANGE, VERMILION, WIDTH

OWN_COLOURS = (BLUE, "#56B4E9")
COLOURS = (VERMILION, ORANGE, GREEN, "#CC79A7", "#8a6d00", GREY, GREY)


def claimed_laws(numbers, look):
    """Draw the slopes of N* with the table's own, and N* against compute, each law over its own range and count of C.

    None where the runs decide no optimal size: there is nothing of the table to set beside the laws.
    """
    laws = numbers["claims"]["laws"]
    own = laws["own"]
    if not own:
        return None
    figure = Figure(figsize=(WIDTH, 3.5))
    left, right = figure.subplots(1, 2, width_ratios=(1.05, 1))
    rows = [
        ("this table, " + one["count"], one["params_exponent"], colour)
        for one, colour in zip(own, OWN_COLOURS, strict=False)
    ]
    rows += [
        (law["name"], {"value": law["params_exponent"], "low": None, "high": None}, colour)
        for law, colour in zip(laws["published"], COLOURS, strict=True)
    ]
    for place, (_, slope, colour) in enumerate(rows):
        if slope["low"] is not None:
            left.plot([slope["low"], slope["high"]], [place, place], color=colour, lw=2, solid_capstyle="butt")
        left.plot(slope["value"], place, marker="o" if place < len(own) else "D", color=colour, ms=5, lw=0)
    left.set_yticks(range(len(rows)), [_wrapped(name) for name, _, _ in rows])
    left.set(xlabel="a of N* ~ C$^a$", ylim=(len(rows) - 0.5, -0.5))
    left.axhline(len(own) - 0.5, color=GREY, lw=0.6)
    for one, colour in zip(own, OWN_COLOURS, strict=False):
        line = one["line"]
        if line["low"][0] is not None:
            right.fill_between(line["flops"], line["low"], line["high"], color=colour, alpha=0.25, lw=0)
        right.plot(line["flops"], line["value"], color=colour)
    for law, colour in zip(laws["published"], COLOURS, strict=True):
        if law["line"] is not None:
            right.plot(law["line"]["flops"], law["line"]["params"], color=colour, ls="--")
    right.set(xscale="log", yscale="log", xlabel="C, as each counts it", ylabel="optimal parameters N*")
    return figure


def _wrapped(name):
    """A long name over two lines, broken at a comma."""
    return name.replace(", ", ",\n", 1) if len(name) > 24 else name
