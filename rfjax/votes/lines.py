"""Formats the analysis of votes, and a study's power, as lines for the console and as CSV tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from rfjax.console import format_table, printable
from rfjax.votes.clusters import LEAST_RATERS
from rfjax.votes.power import RATES, WANTED, Design

NONE = "-"
COLUMNS = (
    "question subset of run against wins ties losses value stderr low high n raters prompts interval_method".split()
)
STRENGTH_COLUMNS = "question model run value stderr low high elo elo_low elo_high n".split()


def summary_lines(analysis: Mapping) -> list[str]:
    """The analysis for a console: raters, then each question's win rates, strengths and agreement."""
    lines = [f"study {analysis['study']}: {analysis['answers']:,} answers in {analysis['files']} file(s)"]
    if analysis["doubled"]:
        lines.append(f"note: {analysis['doubled']:,} rows repeat another row; each vote counts once")
    if analysis["replaced"]:
        lines.append(f"note: {analysis['replaced']:,} answers were changed by their rater; the latest counts")
    lines += ["", *_rater_lines(analysis)]
    for question in analysis["questions"]:
        lines += ["", *_question_lines(question)]
    return list(map(printable, lines))


def _rater_lines(analysis):
    rows, remarks = [("rater", "answers", "seconds each", "checks right", "repeats alike")], [""]
    for one in analysis["raters"]:
        seconds = NONE if one["seconds"] is None else f"{one['seconds']:.1f}"
        checks = f"{one['right']}/{one['plain']}", f"{one['same']}/{one['repeats']}"
        rows.append((one["rater"], f"{one['answers']}/{one['asked']}", seconds, *checks))
        remarks.append(_remark(one))
    table = [f"{line}  {remark}".rstrip() for line, remark in zip(format_table(rows), remarks, strict=True)]
    return [*table, f"rule: {analysis['rule']}"]


def _remark(rater):
    if rater["left_out"]:
        return f"left out: {rater['left_out']}"
    if not rater["answers"]:
        return "handed in nothing"
    return "" if rater["judged"] else "kept, but too few checks to judge"


def _question_lines(question):
    lines = [f"{question['question']}: {question['text']}"]
    if not question["votes"]:
        return [*lines, f"  {question['reason']}"]
    alpha = f"{question['alpha']:.3f}" if question["alpha"] is not None else f"none ({question['alpha_reason']})"
    lines += [
        f"  {question['votes']:,} votes of {question['raters']} raters on {question['prompts']} prompts; "
        f"{question['ties']:.0%} ties, {question['left']:.0%} for the left image; Krippendorff's alpha {alpha} over "
        f"{question['alpha_pairs']} pairs with several raters",
        f"  95 % intervals {question['interval_method']}",
    ]
    rows = [("  win rate", "against", "rate", "wins/ties/losses")]
    for row in question["win_rates"]:
        if row["subset"] == "all":
            counts = f"{row['wins']}/{row['ties']}/{row['losses']}"
            rows.append((f"  {row['run']}", row["against"], _shown(row), counts))
    lines += format_table(rows)
    if question["reason"]:
        lines.append(f"  {question['reason']}")
    for model in question["strengths"]:
        lines += _model_lines(model)
    return lines


def _model_lines(model):
    rows = [("  run", "strength", "Elo")]
    rows += [(f"  {row['run']}", _shown(row), _shown(row["elo"], ".0f")) for row in _strongest_first(model)]
    side = "" if model["side"] is None else f"; left image's advantage {_shown(model['side'])}"
    theta = "" if model["theta"] is None else f"; theta {model['theta']:.2f}"
    lines = [f"  {model['title']}{side}{theta}", *format_table(rows)]
    return lines + [f"  note: {note}" for note in model["notes"]]


def _strongest_first(model):
    return sorted(model["runs"], key=lambda row: -row["value"])


def _shown(row, form=".2f"):
    value = format(row["value"], form)
    return value if row["low"] is None else f"{value} [{row['low']:{form}}, {row['high']:{form}}]"


def win_rate_table(analysis: Mapping) -> str:
    """The win rates of all questions, categories and challenges as CSV."""
    rows = [{"question": question["question"]} | row for question in analysis["questions"] for row in _rates(question)]
    return _csv(COLUMNS, rows)


def _rates(question):
    return question["win_rates"] if question["votes"] else ()


def strength_table(analysis: Mapping) -> str:
    """The strengths of all questions and models as CSV."""
    rows = []
    for question in analysis["questions"]:
        for model in question["strengths"] if question["votes"] else ():
            for row in model["runs"]:
                elo = {"elo": row["elo"]["value"], "elo_low": row["elo"]["low"], "elo_high": row["elo"]["high"]}
                rows.append({"question": question["question"], "model": model["model"]} | row | elo)
    return _csv(STRENGTH_COLUMNS, rows)


def _csv(columns, rows):
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def power_lines(designs: Mapping[str, Mapping[str, Design]]) -> list[str]:
    """Lines with the power of each comparison that a study will make, and the assumptions behind it."""
    lines = []
    for question, comparisons in designs.items():
        lines.append(f"{question}: chance that the 95 % interval excludes one half, by the true win rate")
        rows = [("  comparison", "raters", "prompts", "votes", *(f"{rate:.2f}" for rate in RATES), f"{WANTED:.0%} at")]
        for name, design in comparisons.items():
            found = design.detectable()
            counts = map(str, (design.raters, design.prompts, design.votes))
            powers = (
                NONE if design.power(rate) != design.power(rate) else f"{design.power(rate):.2f}" for rate in RATES
            )
            rows.append((f"  {name}", *counts, *powers, NONE if found is None else f"{found:.3f}"))
        lines += format_table(rows) if len(rows) > 1 else ["  no pair is asked about it"]
    assumed = next((design for of in designs.values() for design in of.values()), None)
    if assumed is not None:
        fixed = (
            f"; with fewer than {LEAST_RATERS} raters, the power is about these raters alone"
            if assumed.fixed_raters
            else ""
        )
        lines.append(
            f"assumed: raters differ by {assumed.rater_effect:g} and prompts by {assumed.prompt_effect:g} (standard "
            f"deviations in log odds), {assumed.ties:.0%} ties between equal images (--rater-effect, --prompt-effect, "
            f"--ties){fixed}"
        )
    return list(map(printable, lines))
