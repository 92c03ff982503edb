"""`rfjax votes` from files to files: the analysis, the power, and the records that reach the table and the report."""

import csv
import json
import math

import pandas as pd
import pytest

from helpers import planted_study
from helpers.planted_votes import Planted, draw, keyed, population, votes_of, with_lazy_raters, write_votes
from rfjax.cli import main
from rfjax.laws import study_fits
from rfjax.report.axes import looks
from rfjax.report.html_parts import Page
from rfjax.report.preference_numbers import preference
from rfjax.report.preference_section import preference_section
from rfjax.report.sections import FIGURES
from rfjax.results import merge
from rfjax.votes.clusters import Clusters
from rfjax.votes.power import Design, designs
from rfjax.votes.strengths import wins_of

RUNS = ("depth1", "depth2", "depth3", "depth4")
SAMPLER = "euler-50-cfg5-shift3"


class Compared(Planted):
    """A planted study whose runs are those of the planted scaling study."""

    @property
    def runs(self):
        return RUNS[: len(self.strengths)]


PLANTED = Compared(strengths=(-0.9, -0.2, 0.3, 0.8), raters=7, prompts=20, share=0.6, rater_effect=0.3)


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """A scaling study whose largest runs were compared and voted on: (folder of runs, folder of the preference study,
    what the command printed)."""
    root = tmp_path_factory.mktemp("voted")
    finished = tuple(row for row in planted_study.FINISHED if row[0] in RUNS)
    planted_study.write_study(root / "runs", finished=finished, failed=False, samples=False)
    made = {
        run: {"given": run, "run": run, "step": 2000, "weights": "ema", "sampler": SAMPLER, "seed": 0, "samples": 1}
        for run in RUNS[:3]
    }
    study = keyed(PLANTED, root / "study", made=made)
    votes = votes_of(study.asked, with_lazy_raters(draw(PLANTED, 0), 1, 0), lazy=1)
    for rater in study.raters:
        own = [vote for vote in votes if vote.rater == rater]
        write_votes(root / "study/votes" / f"{rater}.csv", study.asked, own)
    return root / "runs", root / "study"


def votes_command(folder, *more):
    return main(["votes", str(folder), *map(str, more)])


def test_the_analysis_is_written_and_printed(voted, capsys):
    runs, folder = voted
    options = [f"--run={runs / run}" for run in RUNS[:3]]
    assert votes_command(folder, *options) == 0
    said = capsys.readouterr().out
    assert "left out: right in" in said and "rule: a rater is left out" in said and said.count("record: ") == 3
    analysis = json.loads((folder / "votes.json").read_text())
    assert [one["rater"] for one in analysis["raters"] if one["left_out"]] == ["r00"]
    (question,) = analysis["questions"]
    assert question["raters"] == 6 and question["prompts"] == 20 and not question["fixed_raters"]
    for model in question["strengths"]:
        found = {row["run"]: row for row in model["runs"]}
        assert sorted(found, key=lambda run: found[run]["value"]) == list(RUNS)
        assert math.isclose(sum(row["value"] for row in model["runs"]), 0, abs_tol=1e-9)
        for row in model["differences"]:
            assert row["low"] < row["value"] < row["high"] and row["value"] > 0
    with open(folder / "win_rates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    whole = [row for row in rows if (row["subset"], row["against"]) == ("all", "all others")]
    assert sum(float(row["wins"]) for row in whole) == sum(float(row["losses"]) for row in whole)
    assert sum(int(row["n"]) for row in whole) == 2 * question["votes"]
    animals = [row for row in rows if row["of"] == "Animals" and row["run"] == "depth4"]
    assert len(animals) == 4 and {row["prompts"] for row in animals} == {"10"}
    assert {row["of"] for row in rows} == {"", "Animals", "Vehicles", "Basic"}
    shown = next(row for row in whole if row["run"] == "depth4")
    counts = [int(shown[name]) for name in ("wins", "ties", "losses")]
    assert float(shown["value"]) == pytest.approx((counts[0] + counts[1] / 2) / sum(counts))
    assert len((folder / "strengths.csv").read_text().splitlines()) == 1 + 2 * 4


def test_records_reach_the_table_and_the_report(voted):
    """Catches a win rate of another run, a corpus that joins two studies, and points that votes have moved."""
    runs, folder = voted
    assert votes_command(folder, *(f"--run={runs / run}" for run in RUNS[:3])) == 0
    found = merge.collect(sorted(runs.iterdir()), folder.parent / "results")
    analysis = json.loads((folder / "votes.json").read_text())
    wide = found.wide[found.wide["corpus"] == f"votes-{analysis['study']}"].set_index("run")
    (question,) = analysis["questions"]
    rates = {
        row["run"]: row for row in question["win_rates"] if row["subset"] == "all" and row["against"] == "all others"
    }
    strengths = {row["run"]: row for row in question["strengths"][0]["runs"]}
    assert set(wide.index) == set(RUNS[:3])
    for run in RUNS[:3]:
        for name, row in (("win_rate", rates[run]), ("strength", strengths[run])):
            for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high"), ("_n", "n")):
                assert wide.loc[run, f"preference_{name}_aesthetics{suffix}"] == row[key]
    settings = study_fits.primary_settings(found)
    assert settings.corpus == "shapes" and settings.sampler == planted_study.SAMPLER
    points = study_fits.final_points(study_fits.checkpoints(found, settings))
    numbers = {"preference": preference(found, points, settings, resamples=50, seed=0)}
    of = numbers["preference"]
    assert [run["run"] for run in of["runs"]] == [run for run in points["run"] if run in RUNS[:3]]
    assert len(points) == 4 and of["questions"] == ["aesthetics"]
    for run in of["runs"]:
        assert run["win_rates"]["aesthetics"]["value"] == rates[run["run"]]["value"]
        assert run["geneval"]["value"] == float(points.set_index("run").loc[run["run"], "geneval_overall"])
    rank = {c["name"]: c for c in of["correlation"]["loss"]["aesthetics"]["coefficients"]}["Spearman"]
    assert rank["value"] == pytest.approx(-1) and rank["p"] == pytest.approx(2 / 6)
    figure = FIGURES["preference_against_scores"].draw(numbers, looks([1, 2, 3, 4]))
    assert len(figure.axes) == 2 and "Spearman −1.00, n = 3" in figure.axes[0].get_title()
    html = preference_section(numbers, Page({"preference_against_scores": "<svg/>"}, {}))
    assert "SD3" in html and "validation loss" in html and "overall GenEval" in html
    assert preference_section({"preference": None}, Page({}, {})) == ""


def test_no_votes_no_preference(voted, tmp_path):
    runs, _ = voted
    found = merge.collect([runs / "depth4"], tmp_path / "results")
    settings = study_fits.primary_settings(found)
    points = study_fits.final_points(study_fits.checkpoints(found, settings))
    assert preference(found, points, settings, resamples=50, seed=0) is None
    assert (
        isinstance(points, pd.DataFrame) and FIGURES["preference_against_scores"].draw({"preference": None}, {}) is None
    )


def test_refusals(voted, tmp_path, capsys):
    runs, folder = voted
    for words, said in (
        ([folder, f"--run={runs / 'depth4'}"], "depth4 made no side's images by key.json, which names the runs depth1"),
        ([folder, "--ties=0.3"], "--ties is assumed for --power; give --power as well"),
        ([folder, "--power", "--ties=1"], "--ties is 1; it must be at least 0, and ties below 1"),
        ([folder, "--power", f"--run={runs / 'depth1'}"], "--power reads no votes and writes no record"),
        ([tmp_path], "no file at"),
        ([folder, tmp_path / "none.csv"], "none.csv cannot be read"),
    ):
        assert votes_command(*words) == 2
        assert said in capsys.readouterr().err
    other = keyed(PLANTED, tmp_path / "other")
    (other.folder / "win_rates.csv").write_text("mine")
    write_votes(other.folder / "votes/r01.csv", other.asked, votes_of(other.asked, draw(PLANTED, 0))[-1:])
    assert votes_command(other.folder) == 2
    assert "this command did not make it" in capsys.readouterr().err
    assert (other.folder / "win_rates.csv").read_text() == "mine" and not (other.folder / "votes.json").exists()


def test_a_bad_file_among_good_ones_changes_no_result(tmp_path, capsys):
    """Catches results that are written before all files are read: a file of another study, put there by mistake."""
    study = keyed(PLANTED, tmp_path / "study")
    votes = votes_of(study.asked, draw(PLANTED, 0))
    write_votes(study.folder / "votes" / "r01.csv", study.asked, [vote for vote in votes if vote.rater == "r01"])
    assert votes_command(study.folder) == 0
    before = {path.name: path.read_bytes() for path in study.folder.iterdir() if path.is_file()}
    other = Compared(strengths=(0.1, -0.1), raters=7, prompts=20, share=0.6)
    strange = keyed(other, tmp_path / "other")
    given = votes_of(strange.asked, draw(other, 0))
    write_votes(study.folder / "votes" / "r02.csv", strange.asked, [vote for vote in given if vote.rater == "r02"])
    capsys.readouterr()
    assert votes_command(study.folder) == 2
    said = capsys.readouterr().err
    assert f"r02.csv has study '{strange.id}'; this study is {study.id}: take the file out" in said
    assert before == {path.name: path.read_bytes() for path in study.folder.iterdir() if path.is_file()}


def test_a_study_that_is_hardly_begun_says_what_it_cannot_tell(tmp_path, capsys):
    """One vote: no interval, no strengths, no agreement, and no NaN in the file."""
    study = keyed(PLANTED, tmp_path)
    vote = votes_of(study.asked, draw(PLANTED, 0))[0]
    write_votes(tmp_path / "votes/r00.csv", study.asked, [vote])
    assert votes_command(tmp_path) == 0
    said = capsys.readouterr().out
    assert "no strengths: no vote compares a run of one of these groups" in said and "handed in nothing" in said
    assert "cannot show a spread" in said and "none (no pair has the votes of two raters)" in said
    assert "NaN" not in (tmp_path / "votes.json").read_text()


def test_power_is_told_of_the_studys_own_design(voted, capsys):
    _, folder = voted
    assert votes_command(folder, "--power", "--prompt-effect=0.5") == 0
    said = capsys.readouterr().out
    assert "depth1 against depth2" in said and "prompts by 0.5" in said and "rate" in said
    found = designs(keyed(PLANTED, folder.parent / "again"))["aesthetics"]
    assert len(found) == 6
    assert found["depth1 against depth2"] == Design(raters=7, prompts=20, votes=140)


@pytest.mark.parametrize(
    ("planted", "studies", "tolerance"),
    [
        (Planted(strengths=(0.6, 0), raters=8, prompts=30, rater_effect=0.3, prompt_effect=0.8), 150, 0.12),
        *(
            pytest.param(planted, 1000, 0.04, marks=pytest.mark.full)
            for planted in (
                Planted(strengths=(0.3, 0), raters=5, prompts=50, share=1.0),
                Planted(strengths=(0.35, 0), raters=8, prompts=60, share=1.0, rater_effect=0.3, prompt_effect=0.8),
                Planted(strengths=(0.5, 0), raters=20, prompts=40, share=1.0, rater_effect=0.8, prompt_effect=0.3),
                Planted(strengths=(0.45, 0), raters=4, prompts=60, share=1.0, prompt_effect=0.8),
            )
        ),
    ],
)
def test_the_power_is_that_of_simulated_studies(planted, studies, tolerance):
    """To three standard errors of the simulated share. Catches degrees of freedom of votes, and a floor left out."""
    rate = wins_of(population(planted, votes=200_000), 0)[0].mean()
    hits = 0
    for seed in range(studies):
        votes = draw(planted, seed)
        share = Clusters(votes.rater, votes.prompt).share(wins_of(votes, 0)[0])
        hits += share.low > 0.5 or share.high < 0.5
    design = Design(
        raters=planted.raters,
        prompts=planted.prompts,
        votes=round(planted.share * planted.raters * planted.prompts),
        rater_effect=planted.rater_effect,
        prompt_effect=planted.prompt_effect,
        ties=math.tanh(planted.threshold / 2),
    )
    assert design.power(rate) == pytest.approx(hits / studies, abs=tolerance)


def test_power_has_its_limits():
    design = Design(raters=10, prompts=50, votes=300)
    assert 0.01 < design.power(0.5) < 0.06 and design.power(0.95) > 0.99
    assert design.power(design.detectable()) == pytest.approx(0.8, abs=1e-3)
    assert (
        Design(raters=3, prompts=1, votes=3).detectable() is None
        and Design(raters=5, prompts=3, votes=9).power(0.6) < 0.3
    )
