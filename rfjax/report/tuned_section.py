"""The report's section on tuned runs: the law of pretraining before and after tuning, and which of its parts tuning
changes.

No tuned run enters a law of pretraining (`limits.ROLES`). The numbers are computed by `rfjax.laws.tuned` from changes
that the caller has read, because the runs that were tuned may lie in another folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rfjax.laws.tuned import FEWEST_SIZES, Change, as_plain, is_loss
from rfjax.report.formats import NONE, count, interval, power, sentence, text
from rfjax.report.tuned_figure import draw

FEW = 5  # sizes below which an interval of a slope is wide


def tuned_numbers(tunings: Mapping[str, Sequence[Change]]) -> dict | None:
    """Returns the report's numbers on tuning: {method: each run's changes of the measures, and their fits over sizes
    (`Shift`)}; None if no run was tuned."""
    return {method: as_plain(changes) for method, changes in tunings.items() if changes} or None


def before_and_after(numbers, look):
    """Draws each measure before tuning and after."""
    found = numbers["tuned"] or {}
    return draw({method: list(map(_change, one["changes"])) for method, one in found.items()})


def _change(row):
    return Change(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})


def tuned_section(numbers, page):
    """Returns the HTML of the section: the figure, a table of the laws before and after tuning, and a table of the
    runs; "" if no run was tuned."""
    found = numbers["tuned"]
    if not found:
        return ""
    drawn = page.drawing(
        "before_and_after_tuning",
        "Measures of the runs before they were tuned and after, against the FLOPs of their pretraining, with 95 % "
        "intervals and least-squares lines. Tuned runs enter no law of pretraining.",
    )
    return drawn + _laws(found, page) + _runs(found, page)


def _laws(found, page):
    header = ["method", "measure", "sizes", "slope before", "slope after", "change", "change of slope", "what moves"]
    rows = []
    for method, one in found.items():
        for shift in one["shifts"]:
            slopes = [_estimate(shift[end], shift[f"slope_{end}"]) for end in ("before", "after")]
            changed = [_estimate(shift[name]) for name in ("mean_change", "slope_change")]
            unit = "log loss" if is_loss(shift["measure"]) else shift["measure"]
            rows.append([text(method), text(unit), str(shift["sizes"]), *slopes, *changed, text(shift["verdict"])])
    few = min((shift["sizes"] for one in found.values() for shift in one["shifts"]), default=0)
    caption = (
        "Slopes are per factor of 10 in pretraining FLOPs; the change is at the mean of the sizes. 95 % intervals are "
        "from the scatter of the runs about a line (Student's t, two degrees of freedom fewer than runs), so they "
        f"need {FEWEST_SIZES} sizes."
    )
    if few < FEW:
        caption += f" {few} sizes say little about a slope: where nothing is shown to move, a change may be missed."
    return page.table(header, rows, caption, words=(0, 1, 7))


def _runs(found, page):
    header = ["method", "run", "params", "FLOPs", "measure", "before", "after"]
    rows = [
        [text(method), text(row["run"]), count(row["params"]), power(row["flops"]), text(row["measure"])]
        + [_estimate(row[end]) for end in ("before", "after")]
        for method, one in found.items()
        for row in one["changes"]
    ]
    return page.table(header, rows, "Each run before it was tuned, and after, with 95 % intervals.", words=(0, 1, 4))


def _estimate(found, alone=None):
    """Formats `found`, which is (value, low, high). If it is None, the value `alone` is shown without an interval."""
    return (NONE if alone is None else interval(alone, None, None, ".3f")) if found is None else interval(*found, ".3f")


def tuned_lines(found: Mapping | None) -> list[str]:
    """Returns a line for the console on each method and measure: what tuning by this method changes in the law."""
    return [
        f"tuned by {method}: {shift['measure']} over {shift['sizes']} sizes: {shift['verdict']}"
        for method, one in (found or {}).items()
        for shift in one["shifts"]
    ]


def tuned_sentences(found: Mapping | None) -> list[str]:
    """Returns the lines of `tuned_lines` as sentences for the findings, safe for HTML."""
    return list(map(sentence, tuned_lines(found)))
