"""Draws the figure of tuned runs: each measure before and after tuning, against the FLOPs of pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from rfjax.laws.tuned import Change, by_measure, is_loss, shifts
from rfjax.report import axes

COLUMNS = 2
LOOKS = {"before": (axes.GREY, "o"), "after": (axes.VERMILION, "s")}


def draw(tunings: Mapping[str, Sequence[Change]]) -> Figure | None:
    """Draws a panel for each method and measure, with 95 % intervals, least-squares lines and a verdict on what tuning
    changes.

    Returns None if there are no changes.
    """
    named = {
        (method if len(tunings) > 1 else "", measure): own
        for method, changes in tunings.items()
        for measure, own in by_measure(changes).items()
    }
    if not named:
        return None
    rows = -(-len(named) // COLUMNS)
    with matplotlib.rc_context(axes.STYLE):
        figure = Figure(figsize=(axes.WIDTH, 2.4 * rows))
        panels = np.atleast_1d(figure.subplots(rows, COLUMNS)).reshape(-1)
        for panel, ((method, measure), own) in zip(panels, named.items(), strict=False):
            _panel(panel, measure, f"{method}: {measure}" if method else measure, own)
        for panel in panels[len(named) :]:
            panel.set_visible(False)
        panels[0].legend()
    return figure


def _panel(panel, measure, title, changes):
    x = np.array([change.flops for change in changes])
    for end, (color, marker) in LOOKS.items():
        for number, change in enumerate(changes):
            axes.point(panel, change.flops, *getattr(change, end), color=color, marker=marker)
            if not number:
                panel.plot([], [], color=color, marker=marker, label=f"{end} tuning")
        if len(set(x)) > 1:
            values = np.array([getattr(change, end)[0] for change in changes])
            values = np.log(values) if is_loss(measure) else values
            line = np.polyval(np.polyfit(np.log10(x), values, 1), np.log10(np.sort(x)))
            panel.plot(np.sort(x), np.exp(line) if is_loss(measure) else line, color=color, lw=0.8)
    panel.set_xscale("log")
    panel.xaxis.set_minor_formatter(NullFormatter())  # its labels would meet in a panel of half a page
    if is_loss(measure):
        axes.log_scale(panel, "y", [getattr(change, end)[0] for change in changes for end in LOOKS])
    found = shifts(changes)
    title = title if len(title) < 48 else title[:45] + "..."
    panel.set_title(f"{axes.escape_dollars(title)}\n{found[0].verdict if found else 'one size'}")
    panel.set_xlabel("FLOPs of pretraining")
