"""`rfjax claims`: what it prints and writes of a table and of a study, what it refuses, and the report's section."""

import json
import re

import pytest

from helpers.planted_tables import optimal_grid, training_curves
from rfjax import cli
from rfjax.laws.claims import CLAIMS
from rfjax.report.axes import looks
from rfjax.report.claims_facts import law_rows
from rfjax.report.claims_figure import claimed_laws
from rfjax.report.shapes_of_loss import level_exponents_and_collapse
from rfjax.report.write import write_report


def claims_json(path, *words):
    out = path.parent / "claims.json"
    status = cli.main(["claims", str(path), "--resamples", "100", "--out", str(out), *words])
    return status, json.loads(out.read_text()) if out.exists() else None


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(path, JSON, what was printed) of a table of planted runs without tokens."""
    path = tmp_path_factory.mktemp("claims") / "runs.csv"
    table = optimal_grid(noise=0.002).drop(columns=["image_tokens", "image_tokens_per_param"])
    table.to_csv(path, index=False)
    return path


def test_every_claim_is_printed_with_its_verdict_and_the_conventions(planted, capsys):
    """Catches a claim, a convention or a law that the console leaves out, and a JSON that says otherwise."""
    status, found = claims_json(planted, "--tokens-per-image", "256")
    said = capsys.readouterr().out
    verdicts = {row["name"]: row for row in found["verdicts"]}
    assert status == 0 and list(verdicts) == [claim.name for claim in CLAIMS]
    for row in verdicts.values():
        assert f"{row['verdict']}: {row['claim']}" in said and row["source"] in said
    assert "14 claims of published laws, tested on this table: agrees: " in said
    assert verdicts["slope_half"]["verdict"] == "agrees" and verdicts["slope_more"]["verdict"] == "contradicts"
    assert verdicts["tokens_constant"]["verdict"] == "agrees"
    assert "figures of different counts of C do not meet" in said and "an image has 256 image tokens" in said
    assert "cannot be tested: the best guidance scale falls" in said and "it needs: a results folder" in said
    for law in ("Liang et al., in-context, arXiv 2410.08184", "Abra, arXiv 2608.17286", "Chimera, arXiv 2607.28611"):
        assert re.search(f"^{law} +0", said, re.M), law
    assert found["source"]["table"] == "runs.csv" and len(found["laws"]["own"]) == 2


def test_without_tokens_the_slope_alone_is_set_beside_papers_that_count_6nd(planted, capsys):
    """An N* at a C of 6 N times images would stand beside laws whose D are tokens."""
    _, found = claims_json(planted)
    capsys.readouterr()
    own = found["laws"]["own"][1]
    assert own["count"] == "C = 6 N D, D of images, so the slope alone"
    assert (
        own["line"] is None and own["range"] is None and own["params_exponent"]["value"] == pytest.approx(0.5, abs=0.02)
    )
    verdicts = {row["name"]: row for row in found["verdicts"]}
    assert verdicts["tokens_constant"]["verdict"] == "cannot be tested"
    assert "tokens of an image (the table has no column image_tokens)" in verdicts["tokens_constant"]["decide"]


def test_checkpoints_of_a_run_are_no_runs(tmp_path, capsys):
    """Ten rows of a run were refused as ten runs of one name; fitted as runs, they would be no independent points."""
    table = training_curves(optimal_grid(noise=0.001), lambda params: 0.4 + 0 * params)
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "curves.csv", index=False)
    status, found = claims_json(tmp_path / "curves.csv")
    said = capsys.readouterr().out
    assert status == 0 and "250 rows of 25 runs: the one with the most images is a run's end" in said
    assert next(row for row in found["verdicts"] if row["name"] == "collapse")["verdict"] == "agrees"
    assert "parametric law of 25 runs" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--resamples", "10"), "--resamples is 10; 95 % intervals need at least 100"),
        (("--tokens-per-image", "0"), "--tokens-per-image is 0; it must be positive and finite"),
        (("--seed", "-1"), "--seed is -1; it must be 0 or more"),
        (("--rename", "loss"), "must be OURS=THEIRS"),
        (("--rename", "loss=nothing"), "no column 'nothing' to be renamed 'loss'"),
    ],
)
def test_bad_options_are_refused(planted, words, said, capsys):
    assert cli.main(["claims", str(planted), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_study_and_its_report_say_the_same(undrawn, study, tmp_path, capsys):
    """Catches a study whose claims are tested on other fits than its report's, and a claim or law that the page leaves
    out."""
    assert cli.main(["claims", str(study), "--resamples", "100", "--out", str(tmp_path / "c.json")]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_text())
    numbers = write_report(study, tmp_path / "report")
    assert found["verdicts"] == numbers["claims"]["verdicts"]
    verdicts = {row["name"]: row for row in found["verdicts"]}
    assert verdicts["loss_ranks_geneval"]["verdict"] == "agrees" and "prompts they share" in said
    assert verdicts["guidance_falls"]["verdict"] == verdicts["steps_fall"]["verdict"] == "cannot be tested"
    page = (tmp_path / "report" / "index.html").read_text()
    section = page[page.index("Claims of published laws") : page.index("Loss against steps</h2>")]
    assert section.count("<tr>") == 2 + len(CLAIMS) + len(law_rows(numbers["claims"]))
    assert "do not meet" in section and 'alt="Published laws' in section


def test_the_figure_with_and_without_an_optimal_size(planted, capsys):
    """The laws are drawn where the runs decide nothing, and the table's own with its interval where they do."""
    _, found = claims_json(planted, "--tokens-per-image", "256")
    capsys.readouterr()
    run = {"depth": 1, "flops": 1e19, "params": 1e8, "loss": 0.5}
    figure = claimed_laws({"claims": found, "runs": [run]}, looks([1]))
    left, right = figure.axes
    assert len(left.get_yticks()) == 9 and len(right.collections) == 2  # two counts of C, with their intervals
    own = left.lines[0].get_xdata()
    slope = found["laws"]["own"][0]["params_exponent"]
    assert list(own) == [slope["low"], slope["high"]]
    bare = found | {"laws": found["laws"] | {"own": []}}
    left, right = claimed_laws({"claims": bare, "runs": [run]}, looks([1])).axes
    assert left.get_yticklabels()[0].get_text() == "this table:\nnot decided" and not right.collections


def test_the_figure_of_levels_and_curves_has_a_panel_for_what_there_is(tmp_path, capsys):
    """Catches an empty panel, a curve in another depth's colour, and exponents that are not the JSON's."""
    table = training_curves(optimal_grid(noise=0.001), lambda params: 0.4 + 0 * params)
    table["loss@t=0.5"] = table["loss"]
    table.to_csv(tmp_path / "curves.csv", index=False)
    _, found = claims_json(tmp_path / "curves.csv")
    capsys.readouterr()
    runs = [{"run": run, "depth": depth} for depth, run in enumerate(found["collapse"]["runs"])]
    look = looks(range(len(runs)))
    left, right = level_exponents_and_collapse({"claims": found, "runs": runs}, look).axes
    ends = found["level_exponents"]["exponents"]["0.5"]
    assert list(left.lines[0].get_ydata()) == [ends["low"], ends["high"]]
    assert [line.get_color() for line in right.lines[: len(runs)]] == [look[run["depth"]][0] for run in runs]
    bare = found | {"collapse": found["collapse"] | {"curves": None}}
    assert len(level_exponents_and_collapse({"claims": bare, "runs": runs}, look).axes) == 1
    none = bare | {"level_exponents": {"exponents": {}}}
    assert level_exponents_and_collapse({"claims": none, "runs": runs}, look) is None
