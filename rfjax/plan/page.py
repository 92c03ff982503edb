"""Renders the content of a plan's JSON as an HTML page in the report's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Template

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rfjax.mesh_axes import LAYOUT
from rfjax.plan.roofline import limits_of
from rfjax.report.axes import BLUE, GREEN, GREY, ORANGE, STYLE, VERMILION, WIDTH, log_scale, to_bytes
from rfjax.report.formats import NONE, amount, count, power, text
from rfjax.report.html_parts import Captions, picture
from rfjax.report.page import PAGE
from rfjax.report.page import STYLE as PAGE_STYLE
from rfjax.training.chips import GIB

MARKS = {"compute": (BLUE, "o"), "memory": (ORANGE, "s"), "links": (VERMILION, "D"), "network": (GREEN, "^")}


def _draw(content: Mapping) -> Figure:
    """Draws each point's step time by each limit, and compares the memory that the point needs with a device's."""
    points = content["points"]
    names, places = [point["point"] for point in points], range(len(points))
    marks = {name: MARKS[name] for name in limits_of(content["slices"])}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.3 + 0.32 * len(points)))
        left, right = figure.subplots(1, 2, sharey=True)
        for place, point in zip(places, points, strict=True):
            if point["limits"]:
                for name, (colour, marker) in marks.items():
                    left.plot(1e3 * point["limits"][name], place, marker=marker, color=colour, lw=0)
            if point["peak_bytes"] is not None:
                colour = GREY if point["fits"] else VERMILION
                right.barh(place, point["peak_bytes"] / GIB, height=0.55, color=colour)
            if point["estimate"]:
                state = [point["estimate"]["state_bytes"] / GIB] * 2
                right.plot(state, [place - 0.275, place + 0.275], color="white", lw=1.2)
        right.axvline(content["hbm_bytes"] / GIB, color="black", lw=1)
        times = [1e3 * point["limits"][name] for point in points if point["limits"] for name in marks]
        log_scale(left, "x", times)
        left.set_yticks(list(places), names)
        left.invert_yaxis()
        left.set_xlabel("milliseconds of a step by each limit")
        right.set_xlabel(f"GiB of a device; the line marks all {content['hbm_bytes'] / GIB:.2f}")
        handles = [
            Line2D([], [], color=colour, marker=marker, lw=0, label=name) for name, (colour, marker) in marks.items()
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(marks))
        figure.draw_without_rendering()
    return figure


def _cells(point: Mapping, names: Sequence[str]) -> tuple[str, ...]:
    estimated, limits, spent = point["estimate"], point["limits"], point["cost"]
    train = point["config"]["train"]
    mesh = "×".join(map(str, estimated["mesh"].values())) if estimated else NONE
    gib = lambda number: NONE if number is None else f"{number / GIB:.2f}"  # noqa: E731
    layout = f"{mesh}, {text(train['remat'])}, {train['accumulate']}"
    memory = (gib(estimated and estimated["state_bytes"]), gib(point["peak_bytes"]))
    row = (text(point["point"]), count(point["size"]["params"]), power(point["size"]["flops"]), layout, *memory)
    row += ("yes" if point["fits"] else "<b>no</b>",)
    if limits is None:
        return row + (NONE,) * (len(names) + len(SPENT))
    times = {name: amount(1e3 * limits[name]) for name in names}
    slowest = max(times, key=limits.get)
    times[slowest] = f"<b>{times[slowest]}</b>"
    money = NONE if spent["money"] is None else amount(spent["money"])
    return row + (*times.values(), amount(spent["days"], 1), amount(spent["chip_hours"]), money)


HEADER = ("point", "parameters", "training FLOPs", "layout", "state", "peak", "fits")
SPENT = ("days", "chip-hours", "cost")
CAPTION = (
    "Memory is in GiB per device: the state alone, and the peak of the whole step. {times} are the "
    "least milliseconds of a step by each limit, the slowest bold. Days, chip-hours and cost are at the slowest limit, "
    "as if the other limits overlapped with it completely. Real steps take longer. A layout is {layout}, what is "
    "recomputed, and microbatches."
)


def render(content: Mapping, title: str, notes: Sequence[str]) -> str:
    """Returns a plan's HTML. `content` is what its JSON holds; `notes` are the lines under the console's table."""
    captions = Captions()
    figure = picture(to_bytes(_draw(content), "svg"), "image/svg+xml", "Limits of a step and memory of each point")
    caption = "The limits of a step, and a device's memory: the state up to the white mark, then working memory."
    listed = "".join(f"<li>{text(note)}</li>" for note in notes)
    names = limits_of(content["slices"])
    times = f"{', '.join(names[:-1])} and {names[-1]}".capitalize()
    described = CAPTION.format(times=times, layout=LAYOUT.replace(" x ", " × "))
    cells = [_cells(point, names) for point in content["points"]]
    rows = captions.table((*HEADER, *names, *SPENT), cells, described, words=(0, 3))
    source = f"Peaks and links of the chip: {text(content['source'])}."
    return Template(PAGE).substitute(
        title=text(f"Plan: {content['study']} on {content['target']}"),
        style=PAGE_STYLE,
        subtitle=text(title),
        body=f"{captions.figure(figure, caption)}{rows}<section><h2>Notes</h2><ul>{listed}</ul></section>",
        footer=f"Made by rfjax plan. {source} Every number is in the JSON beside this page.",
    )
