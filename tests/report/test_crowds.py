"""What the page does with more than can be read: it folds, spreads and counts, and loses nothing in silence."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from rfjax.report import axes, crowds, fit_facts
from rfjax.report.crowds import LINES, NAMES, ROWS, names, shown_of, spread
from rfjax.report.formats import p_value
from rfjax.report.html_parts import Captions, bullets
from rfjax.results.many_runs import MANY_RUNS


def test_rows_beyond_the_open_ones_are_folded_and_none_is_lost():
    """A row at the fold shown twice or not at all, or a count of what is open in place of what is folded."""
    cells = [[f"run{i:03d}", str(i)] for i in range(ROWS + 57)]
    page = Captions().table(["run", "n"], cells, "Every run.")
    assert re.findall(r"run\d{3}", page) == [row[0] for row in cells]
    opened, folded = page.split("<details>")
    assert opened.count("<tr>") == ROWS + 1 and folded.count("<tr>") == 57 + 1  # each with the header
    assert f"<summary>57 more of {ROWS + 57} rows</summary>" in folded
    assert "<details>" not in Captions().table(["run", "n"], cells[:ROWS], "")
    lines = bullets([f"line {i}" for i in range(ROWS + 2)], "findings")
    assert "2 more of 42 lines" in lines and lines.count("<li>") == ROWS + 2 and lines.count("<ul class=findings>") == 2


def test_lines_are_spread_over_the_cost_and_keep_their_order():
    """The first of a list, which are the smallest runs, would hide what the largest do."""
    rng = np.random.default_rng(0)
    rows = [{"run": i, "flops": cost} for i, cost in enumerate(rng.permutation(1000.0 ** np.linspace(0, 1, 500)))]
    shown = spread(rows, LINES, lambda row: row["flops"])
    costs = sorted(row["flops"] for row in rows)
    assert len(shown) == LINES and [row["run"] for row in shown] == sorted(row["run"] for row in shown)
    assert {costs[0], costs[-1]} <= {row["flops"] for row in shown}
    places = np.array([costs.index(row["flops"]) for row in sorted(shown, key=lambda row: row["flops"])])
    assert np.diff(places).max() <= 9  # 499 / 59
    assert spread(rows[:LINES], LINES, lambda row: row["flops"]) == rows[:LINES]


def test_what_is_not_shown_is_counted_beside_what_is():
    """A figure of 60 lines under a caption that says "every run"."""
    assert shown_of(60, 1000, "runs", "wide.csv") == " Shown are 60 of 1,000 runs; all are in wide.csv."
    assert shown_of(7, 7, "runs", "wide.csv") == ""
    assert names(["a", "b"]) == "a, b"
    many = names([f"r{i}" for i in range(NAMES + 3)], "runs.csv")
    assert many.endswith(f"r{NAMES - 1} and 3 more (all in runs.csv)")


def test_the_largest_run_of_each_depth_is_among_the_drawn_levels():
    """The caption calls the solid lines the runs of most compute: spreading alone would draw others."""
    rng = np.random.default_rng(1)
    runs = [{"run": f"r{i}", "depth": 1 + i % 12, "flops": float(f)} for i, f in enumerate(rng.uniform(1, 9, 400))]
    drawn = crowds.drawn_levels({"levels": {"runs": runs}})
    for depth in range(1, 13):
        assert max((r for r in runs if r["depth"] == depth), key=lambda r: r["flops"]) in drawn
    assert min(runs, key=lambda r: r["flops"]) in drawn and len(drawn) <= LINES + 13


@pytest.mark.parametrize("count", [MANY_RUNS, MANY_RUNS + 1])
def test_points_are_all_drawn_whether_one_by_one_or_together(count):
    """Points of one look that overwrite those of another, or an interval that belongs to the next point."""
    axis = Figure().subplots()
    styles = [{"color": "#0072B2", "marker": "o"}, {"color": "#D55E00", "marker": "s", "hollow": True}]
    rows = [(i, 2.0 * i, 2.0 * i - 1 if i % 2 else None, 2.0 * i + 1, styles[i % 2]) for i in range(count)]
    axes.points(axis, rows)
    marked = [line for line in axis.lines if line.get_marker() not in ("None", None)]
    found = sorted((float(x), float(y)) for line in marked for x, y in zip(*line.get_data(), strict=True))
    assert found == [(i, 2.0 * i) for i in range(count)]
    bars = [line.get_xydata() for line in axis.lines if line not in marked]
    bars += [path.vertices for collection in axis.collections for path in collection.get_paths()]
    assert sorted((bar[0][0], bar[0][1], bar[1][1]) for bar in bars) == [
        (i, 2.0 * i - 1, 2.0 * i + 1) for i in range(1, count, 2)
    ]
    assert (len(marked) == 2) == (count > MANY_RUNS)


def test_a_legend_names_no_more_depths_than_can_be_read():
    """Forty depths fill a figure with their legend; the last entry says how many there are."""
    look = axes.looks(list(range(40)))
    handles = axes.depth_handles(look, [{"depth": d} for d in range(40)])
    assert len(handles) == axes.LABELLED and handles[-1].get_label() == "depth 39 (40 depths)"
    assert [h.get_label() for h in axes.depth_handles(look, [{"depth": 3}])] == ["depth 3"]


def test_sentences_say_that_runs_were_left_out_in_folds():
    """Folds called "each run left out in turn"."""
    left = {"rms_relative_error": 0.01, "relative_errors": {}, "reason": "", "folds": 50}
    assert fit_facts._held_out_errors({"leave_one_out": left}) == "runs left out in 50 folds: rms error 1.00 %"
    of_law = {"shared_runs_rms": 0.01, "reason": ""}
    found = {"laws": {"a": of_law, "b": of_law}, "preferred": "a", "preferred_share": None, "shared_runs": ["r"]}
    assert fit_facts.comparison_facts(found | {"folds": 50})[0][0].startswith(
        "by the error of runs left out in 50 folds"
    )
    assert fit_facts.comparison_facts(found)[0][0].startswith("by leave-one-out error")


def test_a_p_below_what_a_float_holds_is_not_0():
    """Student's t of 1,000 runs underflows, and p = 0 is never true."""
    assert p_value(0.0) == "below 1\u00a0×\u00a010⁻³⁰⁰" and p_value(2e-5) == "2.0\u00a0×\u00a010⁻⁵"
