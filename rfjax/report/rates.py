"""Makes the report's numbers, figure and section on the learning rates that were tried."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from rfjax.report.axes import GREEN, GREY, VERMILION, WIDTH, depth_handles, log_scale
from rfjax.report.crowds import drawn_sweeps, shown_of
from rfjax.report.formats import count, loss, text
from rfjax.study.rate_optimum import RateOptimum, compare_optima, find_optimum
from rfjax.study.sweep_fields import DEFAULTS, differing

SWEEP_COLUMNS = ["run", "learning_rate", "loss", "loss_stderr"]
# What tells one sweep from another, beside depth, width and number of images: column -> what an empty cell means. A
# sweep is named by those of these settings that are not the defaults.
SETTINGS = {"backbone": "mmdit", "parametrization": "standard", "optimizer": "adamw"}
# Further such columns -> how a sweep is named by them if the report's sweeps have different values.
NAMED = {"corpus": "on {}", "formulation": "{}", "batch_size": "batch size {}", "schedule": "schedule {}"}
# All of them. `settings` has the other fields of a run's config, as a JSON object.
TOLD_APART = (*SETTINGS, *NAMED, "settings")
MOST_FIELDS = 3  # of `settings` in a sweep's name
OPTIMUM = ("edge", "low", "high", "interval_note", "step")
STYLES = ("-", "--", ":", "-.")  # of the lines of the widths
PANELS = 3  # side by side in the figure


def learning_rates(points: pd.DataFrame, swept: pd.DataFrame, runs: pd.DataFrame, lost: pd.DataFrame) -> list[dict]:
    """Finds the best learning rate for each combination of size, number of images and settings (`TOLD_APART`) that was
    trained with several rates.

    `points` and `swept` are final checkpoints of the laws' and the sweeps' runs, as rows of wide.csv; `runs` is
    runs.csv, and `lost` has its rows of runs that diverged. A rate at which a run diverged is never the best.

    Each row has the rates that points and sweeps tried, the best of them, the optimum with its interval, whether the
    best rate is at an edge of those at which no run diverged, and the rates at which runs diverged.
    """
    tried = _with_settings(pd.concat([points, swept], ignore_index=True) if len(swept) else points, runs)
    lost = _with_settings(lost.assign(corpus=lost["train_corpus"]), runs)
    failed = {key: group for key, group in lost.groupby(["depth", "hidden", *TOLD_APART, "steps"])}
    sweeps = []
    for (depth, images, hidden, *settings), group in tried.groupby(["depth", "images", "hidden", *TOLD_APART]):
        keys = [(depth, hidden, *settings, steps) for steps in group["steps"].unique()]
        diverged = _diverged([failed[key] for key in keys if key in failed], group)
        losses = {rate: one["loss"].tolist() for rate, one in group.groupby("learning_rate")}
        out = {each["learning_rate"] for each in diverged}
        losses = {float(rate): values for rate, values in losses.items() if rate > 0 and rate not in out}
        if len(losses) < 2:
            continue
        found = find_optimum(losses)
        sweep = {"depth": depth, "hidden": hidden, "images": images} | dict(zip(TOLD_APART, settings, strict=True))
        sweep |= {"best": found.best, "at_edge": bool(found.edge), "optimum": found.rate}
        sweep |= {name: getattr(found, name) for name in OPTIMUM} | {"diverged": diverged}
        sweeps.append(sweep | {"runs": group.sort_values("learning_rate")[SWEEP_COLUMNS].to_dict("records")})
    return [sweep | {"named": names} for sweep, names in zip(sweeps, _names(sweeps), strict=True)]


def _with_settings(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Adds the column `settings` of runs.csv to rows of runs, and fills the empty cells of all columns that tell sweeps
    apart."""
    rows = rows.assign(**{name: rows[name].replace("", None).fillna(value) for name, value in SETTINGS.items()})
    numbers = {name: rows[name].fillna(0) for name in ("hidden", "batch_size")}
    return rows.assign(**numbers, settings=rows["run"].map(dict(zip(runs["run"], runs["settings"], strict=True))))


def _diverged(lost: Sequence[pd.DataFrame], done: pd.DataFrame) -> list[dict]:
    """Returns a row for each rate at which runs diverged: the rate, these runs, and how many runs ended at this rate.
    `done` are the final checkpoints of the same sweep."""
    rates = [] if not lost else pd.concat(lost).groupby("learning_rate")["run"].apply(list).items()
    at = done["learning_rate"].value_counts()
    return [
        {"learning_rate": float(rate), "diverged": names, "of": len({*names} - {*done["run"]}) + int(at.get(rate, 0))}
        for rate, names in rates
    ]


def _names(sweeps: Sequence[Mapping]) -> list[list[str]]:
    """Returns what to name each sweep by beside its `SETTINGS`: the columns in which the report's sweeps differ, and
    the fields in which sweeps with the same columns differ."""
    several = [name for name in NAMED if len({sweep[name] for sweep in sweeps}) > 1]
    alike: dict[tuple, list[dict]] = {}
    columns = [tuple(sweep[name] for name in (*SETTINGS, *NAMED)) for sweep in sweeps]
    fields = [json.loads(sweep["settings"] or "{}") for sweep in sweeps]
    for key, own in zip(columns, fields, strict=True):
        alike.setdefault(key, []).append(own)
    apart = {key: list(differing(group)) for key, group in alike.items()}
    found = []
    for sweep, key, own in zip(sweeps, columns, fields, strict=True):
        texts = [NAMED[name].format(sweep[name] or "unknown") for name in several]
        texts += [f"{field}={own.get(field, DEFAULTS.get(field))}" for field in apart[key][:MOST_FIELDS]]
        more = len(apart[key]) - MOST_FIELDS
        found.append(texts + ([f"{more} more settings (report.json)"] if more > 0 else []))
    return found


def agreement(sweeps: list[dict]) -> list[dict]:
    """Judges whether sizes agree on the best rate. Returns a row for each combination of number of images and settings
    (`TOLD_APART`) with which several sizes were trained."""
    groups: dict[tuple, dict[str, RateOptimum]] = {}
    names: dict[tuple, list[str]] = {}
    for each in sweeps:
        size = f"depth {each['depth']}, width {each['hidden']}"
        optimum = RateOptimum(rate=each["optimum"], best=each["best"], **{name: each[name] for name in OPTIMUM})
        key = (each["images"], *(each[name] for name in TOLD_APART))
        groups.setdefault(key, {})[size] = optimum
        names[key] = each["named"]
    found = ((key, compare_optima(optima)) for key, optima in groups.items())
    return [
        {"images": key[0], "named": names[key]} | dict(zip(TOLD_APART, key[1:], strict=True)) | vars(judged)
        for key, judged in found
        if judged.verdict
    ]


def _own_settings(sweep: Mapping) -> tuple[str, ...]:
    """Returns the sweep's `SETTINGS` that differ from the defaults, and its settings in which the report's sweeps
    differ."""
    return (*(sweep[name] for name, default in SETTINGS.items() if sweep[name] != default), *sweep["named"])


def name_of(sweep: Mapping) -> str:
    """Names a sweep of learning rates by its size, its number of images, and its settings that differ from the
    defaults or from those of other sweeps."""
    size = (f"depth {sweep['depth']}", f"width {sweep['hidden']}")
    return ", ".join([*size, *_own_settings(sweep), f"{count(sweep['images'])} images"])


def _diverged_texts(sweep: Mapping) -> list[str]:
    """Returns a text such as "at 0.0078 1 of 3 runs diverged" for each rate at which runs of the sweep diverged."""
    return [
        f"at {each['learning_rate']:.3g} {len(each['diverged'])} of {each['of']} runs diverged"
        for each in sweep["diverged"]
    ]


def edge_of(sweep: Mapping) -> tuple[str, str]:
    """Returns which edge of its grid a sweep's best rate is, such as "the largest of its grid", and what to do."""
    rates = (each["learning_rate"] for each in sweep["diverged"])
    if any((rate > sweep["best"]) == (sweep["edge"] == "largest") for rate in rates):
        return f"the {sweep['edge']} of its grid at which no run diverged", "try rates between"
    return f"the {sweep['edge']} of its grid", "widen the grid"


def shown(sweep: Mapping) -> str:
    """Says in words a sweep's optimal learning rate with its interval or, if the best rate is the smallest or largest
    that was tried, that there is no optimum. Also says at which rates runs diverged."""
    return "; ".join([_optimum_text(sweep), *_diverged_texts(sweep)])


def _optimum_text(sweep):
    if sweep["at_edge"]:
        return f"{sweep['best']:.3g}, {edge_of(sweep)[0]}: no optimum"
    if sweep["low"] is None:
        return f"{sweep['optimum']:.3g} (interval {sweep['interval_note']})"
    note = f", which {sweep['interval_note']}" if sweep["interval_note"] else ""
    return f"{sweep['optimum']:.3g} (95 % interval {sweep['low']:.3g} to {sweep['high']:.3g}{note})"


def sentences(numbers: Mapping) -> list[str]:
    """Says whether the sizes agree on the best learning rate, in a sentence for each combination of settings and number
    of images."""
    return [
        f"{', '.join([*(each[name] for name in SETTINGS), *each['named']])} at {count(each['images'])} images: "
        f"{each['sentence']}."
        for each in numbers["rate_agreement"]
    ]


def rates_section(numbers: Mapping, page: object) -> str:
    """Returns the HTML of the section on the learning rates that were tried; "" if no size has two rates."""
    rows = []
    for sweep in numbers["learning_rates"]:
        losses = "; ".join(
            [", ".join(f"{run['learning_rate']:g}: {loss(run['loss'])}" for run in sweep["runs"])]
            + _diverged_texts(sweep)
        )
        verdict = f"<b>at the edge ({text(sweep['edge'])})</b>" if sweep["at_edge"] else "inside"
        rows.append([text(name_of(sweep)), losses, f"{sweep['best']:g}", verdict, text(shown(sweep))])
    if not rows:
        return ""
    caption = (
        "Validation loss against peak learning rate. Vertical mark: the optimum of a size, which is the vertex of the "
        "parabola in log rate through the best rate and its two neighbours. Horizontal line: its 95 % interval under "
        "the noise between seeds. A best rate at the edge of its grid is no optimum. Rates at which a run diverged are "
        "left out."
    )
    caption += shown_of(len(drawn_sweeps(numbers)), len(rows), "sweeps", "the table")
    figure, header = page.drawing("learning_rates", caption), ["", "rate: loss", "best", "in the grid", "optimum"]
    said = "".join(f"<p>{text(sentence)}</p>" for sentence in sentences(numbers))
    title = "The learning rates tried, and the best of each row."
    return figure + said + page.table(header, rows, title, words=(0, 1, 4))


def learning_rate_figure(numbers, look) -> Figure | None:
    """Draws the final loss against the peak learning rate: a line for each size and number of images, and a panel for
    each combination of settings. Rates at which a run diverged are left out."""
    sweeps = drawn_sweeps(numbers)
    if not sweeps:
        return None
    panels: dict[tuple, list] = {}
    for sweep in sweeps:
        panels.setdefault(_own_settings(sweep), []).append(sweep)
    panels = dict(sorted(panels.items(), key=lambda panel: len(panel[1]), reverse=True))
    columns = min(len(panels), PANELS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 2.9 if rows == 1 else 2.2 * rows + 0.3))
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    widths = sorted({sweep["hidden"] for sweep in sweeps})
    for axis, (own, drawn) in zip(axes, panels.items(), strict=False):
        for sweep in drawn:
            _draw_sweep(axis, sweep, look[sweep["depth"]], STYLES[widths.index(sweep["hidden"]) % len(STYLES)])
        tried = [run["learning_rate"] for sweep in drawn for run in sweep["runs"]]
        log_scale(axis, "x", tried)
        if columns > 1 and max(tried) > 30 * min(tried):  # labels at 1, 2 and 5 would overlap in a narrow panel
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=12))
        if len(panels) > 1:
            axis.set_title(", ".join(own) or "standard", fontsize="medium")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    log_scale(axes[0], "y", [run["loss"] for sweep in sweeps for run in sweep["runs"]])  # all panels share it
    for axis in axes[::columns]:
        axis.set_ylabel("validation loss")
    for axis in axes[len(panels) - columns : len(panels)]:
        axis.set_xlabel("peak learning rate")
    handles = depth_handles(look, sweeps) + [
        Line2D([], [], marker="o", ms=9, mfc="none", mec=GREEN, lw=0, label="best, inside the grid"),
        Line2D([], [], marker="o", ms=9, mfc="none", mec=VERMILION, lw=0, label="best, at the grid's edge"),
    ]
    if len(widths) > 1:
        handles += [
            Line2D([], [], color=GREY, ls=STYLES[place % len(STYLES)], label=f"width {width}")
            for place, width in enumerate(widths)
        ]
    figure.legend(handles=handles, loc="outside right center")
    return figure


def _draw_sweep(axis, sweep: Mapping, look: tuple, style: str) -> None:
    """Draws a sweep's mean losses as a line, with a ring around the best rate, and the optimum with its interval."""
    colour, marker = look
    out = {each["learning_rate"] for each in sweep["diverged"]}
    rates = sorted({run["learning_rate"] for run in sweep["runs"]} - out)
    mean = [np.mean([run["loss"] for run in sweep["runs"] if run["learning_rate"] == rate]) for rate in rates]
    axis.plot(rates, mean, color=colour, marker=marker, ls=style)
    best = mean[rates.index(sweep["best"])]
    ring = VERMILION if sweep["at_edge"] else GREEN
    axis.plot(sweep["best"], best, marker="o", ms=11, mfc="none", mec=ring, lw=0)
    if not sweep["at_edge"]:
        axis.plot(sweep["optimum"], best, marker="|", ms=9, color=colour, lw=0)
        if sweep["low"] is not None:
            axis.plot([sweep["low"], sweep["high"]], [best, best], color=colour, lw=0.8)
