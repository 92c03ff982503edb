"""The ranking in tables, report and terminal, against what was planted."""

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from helpers.planted_ranking import write_variant
from rfjax.ranking import paper
from rfjax.ranking.measures import family_of
from rfjax.ranking.tables import latex
from rfjax.report import page
from rfjax.report import write as report
from rfjax.report.axes import to_bytes
from rfjax.report.ranking_section import unranked_lines
from rfjax.results import merge

# Ours in the paper's order but for one exchange; one that the paper does not print; and one with a name to be escaped.
OURS = [
    "rf/lognorm(1.00,0.60)",
    "rf/lognorm(0.00,1.00)",
    *list(paper.AVERAGE_RANKS)[2:],
    "eps/cos",
    "rf/mode(0.38)",
    "a_b & 50%<i>$x$",
]


def quality(place):
    return lambda corpus, weights, steps, guidance: (0.8 - 0.03 * place, 2.0 + place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranking")
    folders = []
    for place, name in enumerate(OURS):
        folders += write_variant(root, name, quality(place), scatter=0.05, loss=0.1 + 0.01 * place)
    merge.collect(folders, root / "results")
    return root


@pytest.fixture(scope="module")
def numbers(folder):
    return report.write_report(folder / "results", folder / "report", resamples=20)


def test_the_short_table_has_the_two_best_of_each_family_and_every_single_variant(numbers):
    """Would catch families told apart by their numbers, or the two best of all in place of each column's."""
    ranking = numbers["ranking"]
    assert ranking["shown"] == [
        name
        for name in OURS
        if name not in ("rf/lognorm(0.50,0.60)", "rf/lognorm(0.50,1.00)", "edm(-1.20,1.20)", "rf/mode(0.38)")
    ]
    assert family_of("rf/lognorm(0.00,1.00)") == "rf/lognorm" and family_of("edm/rf") == "edm/rf"


def test_the_tables_hold_the_ranks(folder, numbers):
    """Would catch a column's ranks under another's name, and rows in another order than the first column's."""
    rows = list(csv.DictReader(io.StringIO((folder / "report/tables/ranking_complete.csv").read_text())))
    assert [row["variant"] for row in rows] == OURS
    for place, row in enumerate(rows):
        assert [float(row[name]) for name in ("all", "5 steps", "50 steps")] == [place + 1.0] * 3
        assert float(row["all low"]) <= place + 1 <= float(row["all high"])
    assert [rows[0][f"paper {name}"] for name in ("all", "5 steps", "50 steps")] == ["2.08", "3.5", "2.0"]
    assert rows[-1]["paper all"] == ""
    short = list(csv.DictReader(io.StringIO((folder / "report/tables/ranking.csv").read_text())))
    assert [row["variant"] for row in short] == numbers["ranking"]["shown"]


def test_latex_is_escaped_and_the_best_is_bold(folder):
    text = (folder / "report/tables/ranking_complete.tex").read_text()
    assert r"a\_b \& 50\%\textless{}i\textgreater{}\$x\$ & 19.00" in text
    assert text.count(r"\textbf{1.00}") == 3 and text.count("\\\\\n") == len(OURS) + 1
    assert r"\toprule" in text and r"\midrule" in text and r"\bottomrule" in text
    assert {
        line.count("&") - line.count(r"\&")
        for line in text.splitlines()
        if line.endswith(r"\\") and "multicolumn" not in line
    } == {6}
    assert latex("\\{}~^#") == r"\textbackslash{}\{\}\textasciitilde{}\textasciicircum{}\#"


def test_the_papers_order_is_compared_over_the_variants_that_it_prints(numbers):
    """Against scipy's coefficients. Would catch variants left in that the paper does not print, and columns
    compared with another of the paper's."""
    found = {one["name"]: one for one in numbers["ranking"]["paper"]["columns"]}
    for place, name in enumerate(("all", "5 steps", "50 steps")):
        theirs = [ranks[place] for variant, ranks in paper.AVERAGE_RANKS.items()]
        ours = [OURS.index(variant) for variant in paper.AVERAGE_RANKS]
        assert found[name]["n"] == 16
        assert found[name]["spearman"]["value"] == pytest.approx(stats.spearmanr(theirs, ours).statistic)
        assert found[name]["kendall"]["value"] == pytest.approx(stats.kendalltau(theirs, ours).statistic)
        assert found[name]["p"] < 0.01
    assert found["all"]["spearman"]["value"] > 0.99


def test_the_papers_table_is_as_published():
    """Sums that the published table has: every "all" is of 24 controls, and the others of 4."""
    values = np.array(list(paper.AVERAGE_RANKS.values()))
    assert len(values) == 16
    np.testing.assert_allclose(np.round(values[:, 0] * 24) / 24, values[:, 0], atol=0.006)
    np.testing.assert_array_equal(values[:, 1:] * 4 % 1, 0)
    assert (np.diff(values[:, 0]) > 0).all()


def test_the_page_shows_it_and_escapes_names(folder, numbers):
    shown = (folder / "report/index.html").read_text()
    assert "Ranking of variants" in shown and "<i>$x$" not in shown and "a_b &amp; 50%&lt;i&gt;$x$" in shown
    assert "Of 19 variants under 24 controls, <i>rf/lognorm(1.00,0.60)</i> has the best average rank" in shown
    for name in ("average_ranks", "quality_against_steps"):
        assert (folder / f"report/figures/{name}.svg").stat().st_size > 10_000
    read = json.loads((folder / "report/report.json").read_text())
    kept = read["ranking"]
    # No number reaches the page by another way than report.json.
    svgs = {name: to_bytes(figure, "svg") for name, figure in page.draw(read).items()}
    assert page.render(read, svgs, {}) == shown
    assert kept == numbers["ranking"] and len(kept["against_steps"]) == 19 * 2 * 2 * 4
    lines = report.summary_lines(numbers)
    assert any(line.startswith("    rf/lognorm(1.00,0.60)  1.00") for line in lines)
    assert any(line.startswith("with the paper's ranks, all: Spearman 1.00") for line in lines)


def test_runs_of_one_size_on_two_corpora_are_all_shown_and_no_law_is_sought(folder, numbers):
    """Catches runs of the corpus that has fewer counted as not finished, or left out of the FLOPs; two corpora
    taken for two versions of the data; and curves or laws over runs that differ in nothing but what they are."""
    assert numbers["totals"]["finished"] == numbers["totals"]["runs"] == 2 * len(OURS)
    assert numbers["totals"]["flops"] == 2 * len(OURS) * 1e12
    losses = {run["id"]: run["loss"] for run in numbers["runs"]}
    assert losses["digits-rf_lognorm(0.00,1.00)"] == pytest.approx(losses["shapes-rf_lognorm(0.00,1.00)"] + 0.5)
    shown = (folder / "report/index.html").read_text()
    assert (
        "38 of 38 runs finished on the corpora <i>shapes, digits</i>" in shown
        or "38 of 38 runs finished on the corpora <i>digits, shapes</i>" in shown
    )
    assert "versions of the data" not in shown and "&ensp;Loss against compute" not in shown and "No law" not in shown
    for corpus in ("shapes", "digits"):
        assert f"On {corpus} the lowest validation loss of 19 runs is" in shown
    assert shown.index("Ranking of variants") < shown.index("What ran")
    assert {path.stem for path in (folder / "report/figures").iterdir()} == {"average_ranks", "quality_against_steps"}
    assert not any("law" in line for line in report.summary_lines(numbers))


def test_gaps_are_told(tmp_path):
    folders = write_variant(tmp_path, "rf", quality(0)) + write_variant(
        tmp_path, "v/cos", quality(1), skip={("shapes", "raw", 25, 5.0)}
    )
    merge.collect(folders, tmp_path / "results")
    report.write_report(tmp_path / "results", tmp_path / "report", resamples=20)
    stale = tmp_path / "report/figures/loss_against_compute.svg"  # of an earlier report
    stale.write_text("<svg/>")
    numbers = report.write_report(tmp_path / "results", tmp_path / "report", resamples=20)
    assert not stale.exists()
    said = "shapes, raw, euler-25-cfg5-shift1-10x4 does not count: no record of v/cos"
    assert said in report.summary_lines(numbers) and said in (tmp_path / "report/index.html").read_text()
    # Controls that lack the same are told together, and long lists are cut.
    told = unranked_lines({"notes": ["n"], "missing": {f"c{i}": ["a"] for i in range(7)} | {"d": list("abcdefgh")}})
    assert told == [
        "n",
        "c0; c1; c2; c3; c4 and 2 more do not count: no record of a",
        "d does not count: no record of a, b, c, d, e and 3 more",
    ]
    # With nothing complete there is no table, and the reason.
    folders = write_variant(tmp_path / "b", "rf", quality(0), corpora=("shapes",)) + write_variant(
        tmp_path / "b", "v/cos", quality(1), corpora=("digits",)
    )
    merge.collect(folders, tmp_path / "b/results")
    numbers = report.write_report(tmp_path / "b/results", tmp_path / "b/report", resamples=20)
    assert "no ranking: no control that this column averages has a record of every variant" in report.summary_lines(
        numbers
    )
    assert not list((tmp_path / "b/report/tables").glob("*")) and "average_ranks" not in {
        p.stem for p in (tmp_path / "b/report/figures").iterdir()
    }
