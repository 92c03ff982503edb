"""Puts the board (the JSON of all claims with their verdicts) into words: lines for the console, rows for the page."""

from __future__ import annotations

from collections.abc import Mapping

from rfjax.laws.verdicts import VERDICTS
from rfjax.report.fit_facts import Fact
from rfjax.report.formats import NONE, count, estimate, minus, power

NOTHING = 1e-6  # a number of smaller size is written as 0
LAW_HEADER = ("law", "N* ~ C^a", "D* ~ C^b", "L ~ C^c", "floor", "C of its runs", "C is", "D is")


def summary(board: Mapping) -> str:
    """Returns one line with the number of claims that have each verdict."""
    verdicts = [verdict["verdict"] for verdict in board["verdicts"]]
    counts = {name: verdicts.count(name) for name in VERDICTS}
    shown = ", ".join(f"{name}: {number}" for name, number in counts.items())
    return f"{len(verdicts)} claims of published laws, tested on this table: {shown}"


def found_words(verdict: Mapping) -> str:
    """Returns the quantity that a verdict rests on, with value, interval and method; "" if nothing was measured."""
    found = verdict["found"]
    if not found:
        return ""
    method = f" ({verdict['method']})" if verdict["method"] else ""
    return f"{verdict['quantity']}: {estimate(found, number)}{method}"


def decide_words(verdict: Mapping) -> str:
    """Returns what would decide an undecided claim, or what the test of an untested claim needs; "" for a decided
    claim."""
    if not verdict["decide"]:
        return ""
    return f"{'it needs' if verdict['verdict'] == VERDICTS[-1] else 'would decide it'}: {verdict['decide']}"


def number(value: float) -> str:
    """Formats a number of a verdict: from 0.05 to 100 with three decimals, otherwise with three significant digits. A
    number whose absolute value is below `NOTHING` is written as 0."""
    if abs(value) < NOTHING:
        return "0"
    return minus(f"{value:.3f}") if 0.05 <= abs(value) < 100 else power(value)


def verdict_fact(verdict: Mapping) -> list[str]:
    """Returns the lines on one claim: verdict and claim, who makes the claim, what was found, what would decide an
    undecided claim, the rule of the verdict, and notes. A line without content is left out."""
    lines = [f"{verdict['verdict']}: {verdict['claim']}", verdict["source"], found_words(verdict)]
    lines += [decide_words(verdict), f"rule: {verdict['rule']}", *verdict["notes"]]
    return [line for line in lines if line]


def facts(board: Mapping) -> list[Fact]:
    """Puts the board (all claims with their verdicts) into lines for the console, without the table of laws: a
    summary, the claims, grouped by verdict, and the conventions."""
    ordered = sorted(board["verdicts"], key=lambda verdict: VERDICTS.index(verdict["verdict"]))
    rules = list(board["which_runs"].values())
    reason = [f"no optimal size of this table: {board['own_reason']}"] if board["own_reason"] else []
    return [[summary(board), *rules, *reason], *map(verdict_fact, ordered), ["conventions", *board["conventions"]]]


def law_rows(board: Mapping) -> list[tuple[str, ...]]:
    """Returns the rows under `LAW_HEADER`: the user's own table (a row for each count of C), then published laws."""
    rows = [
        (
            "this table",
            estimate(own["params_exponent"], ".3f"),
            estimate(own["images_exponent"], ".3f"),
            _negative(own["loss_exponent"]),
            estimate(own["offset"], ".4f"),
            _range(own["range"]),
            own["count"],
            "images",
        )
        for own in board["laws"]["own"]
    ]
    for law in board["laws"]["published"]:
        powers = [NONE if law[f"{n}_exponent"] is None else minus(f"{law[f'{n}_exponent']:.4f}") for n in _POWERS]
        floor = NONE if law["offset"] is None else f"{law['offset']:g}"
        name = f"{law['name']}, arXiv {law['arxiv']}"
        rows.append((name, *powers, floor, _range(law["range"]), law["count"], law["tokens_are"] or NONE))
    return rows


_POWERS = ("params", "tokens", "loss")


def _negative(found):
    """Formats the exponent -g of a loss that falls as C^-g, with its interval; `found` is the estimate of g."""
    ends = {"value": -found["value"], "low": found["high"], "high": found["low"]}
    return estimate(ends | {name: end and -end for name, end in ends.items() if name != "value"}, ".3f")


def _range(flops):
    return f"{power(flops[0], 2)} to {power(flops[1], 2)}" if flops else NONE


def at_words(board: Mapping) -> list[str]:
    """States the compute-optimal size of the user's own table, at the middle of its runs' compute, in one sentence for
    each way to count C."""
    return [
        f"this table, {own['count']}: optimal at {power(own['at']['flops'])} FLOPs are "
        f"{estimate(own['at']['params'], count)} parameters and {estimate(own['at']['images'], count)} images"
        for own in board["laws"]["own"]
        if own["at"]
    ]
