"""Draws the report's figures of scores: tasks against depth, held-out pairs, loss against score, sampling steps."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rfjax.report.axes import BLUE, GREEN, GREY, ORANGE, VERMILION, WIDTH, depth_handles, ends, log_scale, point, points
from rfjax.report.crowds import drawn_steps
from rfjax.results.many_runs import are_many

TASK_TITLES = {
    "overall": "Overall",
    "single_object": "Single object",
    "two_object": "Two objects",
    "counting": "Counting",
    "colors": "Colours",
    "position": "Position",
    "color_attr": "Colour attribution",
}


def task_title(item: str) -> str:
    """Returns a task's name in a figure or table."""
    return TASK_TITLES.get(item, item.replace("_", " ").capitalize())


def geneval_against_depth(numbers, look):
    """Draws each task's score against depth, between the detector's ceiling and the floors."""
    geneval = numbers["geneval"]
    if not geneval["runs"]:
        return None
    items, columns = geneval["items"], 4
    rows = math.ceil((len(items) + 1) / columns)
    figure = Figure(figsize=(WIDTH, 1.95 * rows))
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    best = [run for run in geneval["runs"] if run["best_of_depth"]]
    for axis, item in zip(axes, items, strict=False):
        ceiling = geneval["ceiling"].get(item)
        if ceiling:
            axis.axhline(ceiling["value"], color=GREEN, lw=1, ls="--")
        for floor, colour, ls in (("shuffled", VERMILION, "-."), ("null", GREY, ":")):
            floors = {run["depth"]: run["floors"][floor][item] for run in best if item in run["floors"].get(floor, {})}
            if floors:
                x, found = list(floors), floors.values()
                axis.plot(x, [e["value"] for e in found], color=colour, lw=1, ls=ls)
                low, high = ([e["value"] if e[end] is None else e[end] for e in found] for end in ("low", "high"))
                axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        values = [run["scores"][item]["value"] for run in best]
        axis.plot([run["depth"] for run in best], values, color="#999999", lw=0.8)
        marks = []
        for run in geneval["runs"]:
            colour, marker = look[run["depth"]]
            score, style = run["scores"][item], {"color": colour, "marker": marker}
            if score["value"] is None:
                continue
            if run["best_of_depth"]:
                marks.append((run["depth"], *ends(score), style | {"ms": 4.5}))
            else:
                marks.append(
                    (run["depth"], score["value"], None, None, style | {"hollow": True, "ms": 3.5, "zorder": 2})
                )
        points(axis, marks)
        axis.set_title(task_title(item), fontweight="bold" if item == "overall" else "normal")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.set_ylim(-0.03, 1.05)
    for place in range(0, len(items), columns):
        axes[place].set_ylabel("GenEval")
    for axis in axes[max(0, len(items) - columns) : len(items)]:
        axis.tick_params(labelbottom=True)
    for axis in axes[columns * (rows - 1) : len(items)]:
        axis.set_xlabel("depth")
    handles = [
        Line2D([], [], color=GREEN, ls="--", lw=1, label="detector's ceiling"),
        Line2D([], [], color=GREY, marker="o", ms=4.5, lw=0.8, label="best run, 95 % interval"),
        Line2D([], [], color=GREY, marker="o", mfc="white", ms=3.5, lw=0, label="other runs"),
        Line2D([], [], color=VERMILION, ls="-.", lw=1, label="floor: other prompts"),
        Line2D([], [], color=GREY, ls=":", lw=1, label="floor: null condition"),
    ]
    axes[len(items)].legend(handles=handles, loc="center", fontsize=7)
    for axis in axes[len(items) :]:
        axis.axis("off")
    return figure


def held_out_pairs(numbers, look):
    """Draws scores of prompts with and without held-out pairs: by depth, and by task at the largest depth."""
    runs = [run for run in numbers["geneval"]["runs"] if run["best_of_depth"] and _has_pairs(run, "overall")]
    if not runs:
        return None
    figure = Figure(figsize=(WIDTH, 2.7))
    left, right = figure.subplots(1, 2, sharey=True)
    kinds = (("seen", BLUE, "o", False), ("held_out", ORANGE, "s", True))
    for kind, colour, marker, hollow in kinds:
        shift = -0.06 if kind == "seen" else 0.06
        estimates = [run[kind]["overall"] for run in runs]
        left.plot([run["depth"] + shift for run in runs], [e["value"] for e in estimates], color=colour, lw=0.8)
        for run, e in zip(runs, estimates, strict=True):
            point(left, run["depth"] + shift, *ends(e), color=colour, marker=marker, hollow=hollow)
    largest = runs[-1]
    items = [item for item in numbers["geneval"]["items"] if _has_pairs(largest, item)]
    for place, item in enumerate(items):
        for kind, colour, marker, hollow in kinds:
            at = place + (-0.1 if kind == "seen" else 0.1)
            point(right, at, *ends(largest[kind][item]), color=colour, marker=marker, hollow=hollow)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="depth", ylabel="GenEval", title="Overall")
    right.set_title(f"Per task, depth {largest['depth']}")
    right.set_xticks(range(len(items)), [task_title(item).replace(" ", "\n", 1) for item in items], fontsize=7)
    right.grid(axis="x", visible=False)
    left.set_ylim(bottom=min(0, left.get_ylim()[0]))
    handles = [
        Line2D([], [], color=BLUE, marker="o", lw=0.8, label="seen pairs"),
        Line2D([], [], color=ORANGE, marker="s", mfc="white", lw=0.8, label="held-out pairs"),
    ]
    left.legend(handles=handles, loc="upper left")
    return figure


def loss_against_geneval(numbers, look):
    """Draws the final loss against overall GenEval, one point per run."""
    return _draw_loss_against(numbers["geneval"]["runs"], numbers["correlation"], "GenEval, overall", look)


def draw_against(evaluation):
    """Returns the function that draws the final loss against a score of `rfjax score`, given its evaluation's name."""

    def draw(numbers, look):
        for found in numbers["folder_scores"]:
            if found["evaluation"] == evaluation:
                return _draw_loss_against(found["runs"], found["correlation"], f"{found['title']}, overall", look)
        return None

    return draw


def _draw_loss_against(runs, correlation, label, look):
    runs = [run for run in runs if run["scores"].get("overall", {}).get("value") is not None]
    if len(runs) < 2:
        return None
    figure = Figure(figsize=(WIDTH * 0.62, 3.0))
    axis = figure.subplots()
    many, bars = are_many(len(runs)), {}
    rows = []
    for run in runs:
        colour, marker = look[run["depth"]]
        score = run["scores"]["overall"]
        rows.append((run["loss"], *ends(score), {"color": colour, "marker": marker, "zorder": 3}))
        if run["loss_low"] is not None and many:
            bars.setdefault(colour, []).append((score["value"], run["loss_low"], run["loss_high"]))
        elif run["loss_low"] is not None:
            axis.plot([run["loss_low"], run["loss_high"]], [score["value"]] * 2, color=colour, lw=1)
    for colour, own in bars.items():
        axis.hlines(*zip(*own, strict=True), color=colour, lw=0.6, alpha=0.3)
    points(axis, rows)
    log_scale(axis, "x", [run["loss"] for run in runs])
    axis.set(xlabel="validation loss (falls to the left)", ylabel=label)
    axis.legend(handles=depth_handles(look, runs), loc="upper right")
    found = {c["name"]: c for c in correlation.get("overall", {"coefficients": []})["coefficients"]}
    if "Spearman" in found:
        rank = found["Spearman"]
        p = f"p = {rank['p']:.2g}" if rank["p"] else "p below 1e-300"
        text = f"Spearman {rank['value']:.2f}, {p}, n = {len(runs)}".replace("-", "−")
        axis.text(0.03, 0.04, text, transform=axis.transAxes, fontsize=7.5, color=GREY)
    return figure


# Quantities drawn against the sampling steps: (column, the interval's columns, label, factor).
STEP_PANELS = (
    ("score", ("score_low", "score_high"), "GenEval, overall", 1),
    ("drop", ("drop_low", "drop_high"), "drop from the most steps (%)", 100),
    ("path_length", ("", ""), "path length", 1),
)


def score_against_steps(numbers, look):
    """Draws the score, its drop and the path length against sampling steps: a line for each run under one sampler, or
    for a selection if there are many. Returns None if no run was sampled with several numbers of steps."""
    counts = [count for count in numbers["sampling_steps"] if count["depth"] in look]
    if not counts:
        return None
    lines = drawn_steps(counts)[0]
    figure = Figure(figsize=(WIDTH, 2.5))
    for axis, (name, bounds, label, factor) in zip(figure.subplots(1, len(STEP_PANELS)), STEP_PANELS, strict=True):
        for line in lines.values():
            shown = [count for count in line if count[name] is not None]
            colour, marker = look[line[0]["depth"]]
            axis.plot([c["steps"] for c in shown], [factor * c[name] for c in shown], color=colour, lw=0.8)
            for count in shown:
                low, high = (None if count.get(end) is None else factor * count[end] for end in bounds)
                point(axis, count["steps"], factor * count[name], low, high, color=colour, marker=marker, ms=4.5)
        log_scale(axis, "x", sorted({count["steps"] for count in counts}), ticks=True)
        axis.set(xlabel="sampling steps", ylabel=label)
    figure.axes[0].legend(handles=depth_handles(look, counts), loc="lower right")
    return figure


def _has_pairs(run, item):
    return all((run[kind].get(item) or {}).get("value") is not None for kind in ("seen", "held_out"))
