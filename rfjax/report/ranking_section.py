"""Writes the section that ranks variants, and the ranking's lines on the console."""

from __future__ import annotations

from rfjax.ranking.summary import rank_of, ranked_columns
from rfjax.report.crowds import LINES, shown_of
from rfjax.report.formats import NONE, columns, estimate, p_value, text
from rfjax.results.many_runs import MANY_RUNS

NAMED = 5  # a line names this many controls or variants, and counts the rest


def ranking_section(numbers, page):
    """Returns the HTML of the section: the ranks, their figures, and the runs that were not ranked; "" if fewer than
    two variants were measured."""
    ranking = numbers["ranking"]
    if not ranking:
        return ""
    ranked, count = ranked_columns(ranking), len(ranking["variants"])
    parts = [
        f"<p>{ranking_sentence(ranking)}</p>",
        _ranks_table(ranking, ranked, page) if ranked else "",
        page.drawing(
            "average_ranks",
            "Average rank of every variant, over all controls and over those of 5 and of 50 sampling steps at guidance "
            "5, grouped by family (formulations that differ in their numbers alone). Lines: 95 % intervals by a joint "
            "bootstrap over prompts. Every number is in tables/ranking_complete.csv."
            + shown_of(min(count, MANY_RUNS), count, "variants, the best", "that table"),
        ),
        page.drawing(
            "quality_against_steps",
            "GenEval and the Fréchet distance from real images against sampling steps, at guidance 5. In colour: the "
            "best of each family. Dashed: the distance of as many ground-truth pictures of the same prompts. Bars: "
            "95 % intervals over prompts."
            + (f" Of the other variants {LINES} are drawn; all are in report.json." if count > 2 * LINES else ""),
        ),
        _paper_table(ranking, page),
    ]
    gaps = "".join(f"<li>{text(line)}.</li>" for line in unranked_lines(ranking))
    return "".join(parts) + (f"<ul class=warn>{gaps}</ul>" if gaps else "")


def ranking_sentence(ranking) -> str:
    """Returns a sentence, safe HTML, that names the variant with the best average rank or says why there is none."""
    column, *_ = ranked_columns(ranking) or ranking["columns"]
    if not column["ranks"]:
        return f"No ranking: {text(column['reason'])}."
    best = column["ranks"][0]
    return (
        f"Of {len(column['ranks'])} variants under {len(column['controls'])} controls, <i>{text(best['variant'])}</i> "
        f"has the best average rank, {estimate(best)}; it comes first in {100 * best['first']:.0f} % of the resamples "
        "of prompts."
    )


def ranking_lines(ranking) -> list[str]:
    """Returns lines for the console: a short table of ranks, with the two best variants of each family in each column,
    the correlations with the paper's ranks, and the runs that were not ranked."""
    shown = ranked_columns(ranking)
    if not shown:
        return [f"no ranking: {ranking['columns'][0]['reason']}", *unranked_lines(ranking)]
    rows = [("variant", *(column["name"] for column in shown))]
    rows += [(variant, *(estimate(rank_of(column, variant)) for column in shown)) for variant in ranking["shown"]]
    under = f"{len(shown[0]['ranks'])} variants under {len(shown[0]['controls'])} controls"
    lines = [f"average ranks of {under} (95 % intervals over prompts):", *(f"    {line}" for line in columns(rows))]
    for paper in ranking["paper"]["columns"]:
        if paper["spearman"]:
            rank = f"Spearman {estimate(paper['spearman'])} over {paper['n']} variants, p = {p_value(paper['p'])}"
            lines.append(f"with the paper's ranks, {paper['name']}: {rank}")
    return lines + unranked_lines(ranking)


def unranked_lines(ranking):
    """Returns lines on the runs that were not ranked and the controls that do not count.

    Controls that lack the same variants share a line.
    """
    alike: dict[tuple, list[str]] = {}
    for control, variants in ranking["missing"].items():
        alike.setdefault(tuple(variants), []).append(control)
    lines = list(ranking["notes"])
    for variants, controls in alike.items():
        verb = "does" if len(controls) == 1 else "do"
        lines.append(f"{_names(controls, '; ')} {verb} not count: no record of {_names(variants, ', ')}")
    return lines


def _names(names, between):
    shown = between.join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def _ranks_table(ranking, ranked, page):
    facts = {fact["variant"]: fact for fact in ranking["variants"]}
    with_paper = any(facts[variant]["paper"] for variant in ranking["shown"])
    best = {column["name"]: min(row["value"] for row in column["ranks"]) for column in ranked}
    rows = []
    for variant in ranking["shown"]:
        cells = []
        for column in ranked:
            rank = rank_of(column, variant)
            value, _, ends = estimate(rank).partition(" ")
            value = f"<b>{value}</b>" if rank["value"] == best[column["name"]] else value
            cells.append(f"{value} <small>{ends}</small>")
        theirs = facts[variant]["paper"]
        cells += [NONE if theirs is None else " · ".join(f"{value:.2f}" for value in theirs)] if with_paper else []
        rows.append([text(variant) + ("<sup>†</sup>" if facts[variant]["diverged"] else ""), *cells])
    heads = [f"{text(c['name'])}<br><small>{len(c['controls'])} controls</small>" for c in ranked]
    if with_paper:
        heads.append(f"the paper's<br><small>{' · '.join(text(c['name']) for c in ranking['columns'])}</small>")
    caption = (
        "Average ranks: under each control (corpus, weights, sampler) the variants that no other beats in both "
        "GenEval and distance get rank 1 and are removed; of the others, those that no other beats get rank 2, and so "
        "on. The table has the two best variants of each family in each column. Brackets: 95 % intervals by a "
        "bootstrap over prompts, with the same resamples for all variants and controls of a corpus; another seed of "
        "training would move ranks too."
    )
    if any(facts[variant]["diverged"] for variant in ranking["shown"]):
        caption += " †: diverged in a control, where its rank is the one after the last."
    if with_paper:
        caption += f" The paper's: {text(ranking['paper']['source'])}, with other models, data and measures."
    return page.table([text(ranking["named_by"]), *heads], rows, caption)


def _paper_table(ranking, page):
    rows = [
        [text(c["name"]), str(c["n"]), estimate(c["spearman"]), estimate(c["kendall"]), p_value(c["p"])]
        for c in ranking["paper"]["columns"]
        if c["spearman"]
    ]
    if not rows:
        return ""
    return page.table(
        ["controls", "variants", "Spearman", "Kendall τ", "p"],
        rows,
        "These ranks against the paper's, over the variants that its table 1 prints (the best of each family, so the "
        "range is narrower than among all). Brackets: 95 % of the resamples of prompts. p: two-sided, of Spearman's "
        "coefficient, by permutation.",
    )
