"""Draws the ranking's figures from `rfjax.ranking.summary.ranking_numbers`."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rfjax.ranking.summary import rank_of, ranked_columns
from rfjax.report.axes import GREY, MARKERS, WIDTH, escape_dollars, log_scale, point
from rfjax.report.crowds import LINES, spread
from rfjax.results.many_runs import MANY_RUNS

# Okabe and Ito's colours without the yellow, in which a line on white cannot be seen.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
ROW = 0.135  # inches for each variant
GAP = 0.6  # rows between families
FAINT = "#c9c9c9"


def average_ranks(numbers, look=None):
    """Draws the average ranks of the `MANY_RUNS` best variants with intervals, a panel for each column of ranks.
    Variants are grouped by family: formulations that differ only in their numbers, as in `rf/lognorm(0.00,1.00)`."""
    ranking = numbers["ranking"]
    columns = ranked_columns(ranking) if ranking else []
    if not columns:
        return None
    blocks = _family_blocks(ranking)
    places, y = {}, 0.0
    for members, _ in blocks:
        places |= {variant: y + place for place, variant in enumerate(members)}
        y += len(members) + GAP
    colours = {variant: colour for members, colour in blocks for variant in members}
    figure = Figure(figsize=(WIDTH, max(2.2, ROW * y + 0.75)))
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    diverged = {row["variant"] for row in ranking["variants"] if row["diverged"]}
    for axis, column in zip(axes, columns, strict=True):
        for row in (row for row in column["ranks"] if row["variant"] in places):
            colour, at = colours[row["variant"]], places[row["variant"]]
            axis.plot([row["low"], row["high"]], [at, at], color=colour, lw=1.1, solid_capstyle="butt", zorder=2)
            fill = "white" if row["variant"] in diverged else colour
            axis.plot(row["value"], at, marker="o", ms=3.6, lw=0, color=colour, mfc=fill, zorder=3)
        n = len(column["controls"])
        axis.set(title=f"{column['name']} ({n} control{'s'[: n != 1]})", xlabel="average rank")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=2))
        axis.set_xlim(left=0.5)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        for members, _ in blocks[1:]:
            axis.axhline(places[members[0]] - (1 + GAP) / 2, color="#e4e4e4", lw=0.6, zorder=0)
    axes[0].set_yticks(list(places.values()), [escape_dollars(name) for name in places], fontsize=6.3)
    axes[0].set_ylim(y - GAP, -1)
    if diverged:
        mark = Line2D([], [], color=GREY, marker="o", mfc="white", ms=3.6, lw=0, label="diverged in a control")
        axes[-1].legend(handles=[mark], loc="upper right")
    return figure


def quality_against_steps(numbers, look=None):
    """Draws GenEval and distance against sampling steps at one guidance scale; the best of each family is coloured."""
    ranking = numbers["ranking"]
    rows = ranking["against_steps"] if ranking else []
    if len({row["steps"] for row in rows}) < 2:
        return None
    weights = "ema" if any(row["weights"] == "ema" for row in rows) else rows[0]["weights"]
    rows = [row for row in rows if row["weights"] == weights and row["seed"] == rows[0]["seed"]]
    corpora = sorted({row["corpus"] for row in rows})
    shown = _best_of_families(ranking)
    colours = dict(zip(shown, COLOURS, strict=False))
    figure = Figure(figsize=(WIDTH, 4.6))
    axes = figure.subplots(2, len(corpora), sharex=True, squeeze=False)
    steps = sorted({row["steps"] for row in rows})
    for place, corpus in enumerate(corpora):
        for axis, measure in zip(axes[:, place], ("alignment", "distance"), strict=True):
            mine = [row for row in rows if row["corpus"] == corpus]
            there = {row["variant"] for row in mine}
            others = spread(sorted(there - set(shown)), LINES, str)
            of_variant = {}
            for row in mine:
                of_variant.setdefault(row["variant"], []).append(row)
            for variant in (*others, *(variant for variant in shown[::-1] if variant in there)):
                line = of_variant[variant]
                x, y = [row["steps"] for row in line], [row[measure] for row in line]
                if variant in others:
                    axis.plot(x, y, color=FAINT, lw=0.5, zorder=1)
                    continue
                look = {"color": colours[variant], "marker": MARKERS[shown.index(variant) % len(MARKERS)], "ms": 4}
                axis.plot(x, y, color=colours[variant], lw=1.1, zorder=3)
                for row in line:
                    point(axis, row["steps"], row[measure], *row[f"{measure}_ends"], **look)
            if measure == "distance":
                marks = [row["truth"] for row in mine if row["truth"] is not None]
                log_scale(axis, "y", [row[measure] for row in mine if row[measure] > 0] + marks)
                if marks:
                    axis.axhline(sum(marks) / len(marks), color=GREY, lw=1, ls="--", zorder=2)
            log_scale(axis, "x", steps, ticks=True)
        axes[0, place].set_title(f"{escape_dollars(corpus)}, {weights} weights")
        axes[1, place].set_xlabel("sampling steps (Euler)")
    axes[0, 0].set_ylabel("GenEval, overall")
    axes[1, 0].set_ylabel("Fréchet distance")
    handles = [
        Line2D([], [], color=colours[v], marker=MARKERS[i % len(MARKERS)], ms=4, lw=1.1, label=escape_dollars(v))
        for i, v in enumerate(shown)
    ]
    if len(shown) < len(ranking["variants"]):
        handles.append(Line2D([], [], color=FAINT, lw=0.8, label="the others"))
    handles.append(Line2D([], [], color=GREY, lw=1, ls="--", label="ground truth"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, math.ceil(len(handles) / 2)))
    return figure


def _families(ranking):
    """Groups the `MANY_RUNS` best variants by family. Families and their variants are ordered by the first ranked
    column, the best first."""
    family = {row["variant"]: row["family"] for row in ranking["variants"]}
    found: dict[str, list[str]] = {}
    for row in ranked_columns(ranking)[0]["ranks"][:MANY_RUNS]:
        found.setdefault(family[row["variant"]], []).append(row["variant"])
    return list(found.values())


def _family_blocks(ranking):
    """Groups the variants for the figure. Returns (variants, colour) for each family with several members, the best
    family first, and then once for all families with one member together."""
    families = _families(ranking)
    blocks = [members for members in families if len(members) > 1]
    single = [members[0] for members in families if len(members) == 1]
    coloured = [(members, COLOURS[place % len(COLOURS)]) for place, members in enumerate(blocks)]
    return coloured + ([(single, GREY if blocks else COLOURS[0])] if single else [])


def _best_of_families(ranking):
    """Returns the best variant of each family, the best first, at most as many as there are colours."""
    columns = ranked_columns(ranking)
    best = [members[0] for members in _families(ranking)] if columns else []
    return sorted(best, key=lambda variant: rank_of(columns[0], variant)["value"])[: len(COLOURS)]
