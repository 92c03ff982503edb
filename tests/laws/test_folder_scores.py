"""Scores that `rfjax score` attached, against the loss: in the report and in `rfjax fit`, beside the embedded
GenEval."""

import html
import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from helpers import planted_study
from rfjax.laws import correlation, fit_source, study_fits
from rfjax.report import fit_answers, scores
from rfjax.report.html_parts import Page
from rfjax.report.score_sections import correlation_section
from rfjax.report.sections import FIGURES
from rfjax.report.write import summary_lines, write_report
from rfjax.results import merge

SAMPLER = "euler-50-cfg5-shift3"
RUNS = [run for run, *_ in planted_study.FINISHED]
# Not in the order of the losses, so that it cannot be taken for the embedded score.
OFFICIAL = dict(zip(RUNS, (0.31, 0.12, 0.22, 0.45, 0.40, 0.52, 0.58), strict=True))
PROMPTS = 10  # of each task


def by_prompt(run):
    """[task, correct, 4] of prompts whose fractions scatter about the run's planted score."""
    rng = np.random.default_rng(RUNS.index(run))
    return [[task, int(rng.binomial(4, OFFICIAL[run])), 4] for task in planted_study.TASKS for _ in range(PROMPTS)]


def attach(
    root, run, *, evaluation="geneval_official", corpus="geneval", sampler=SAMPLER, seed=0, prompts=True, score=None
):
    steps = next(steps for name, _, steps, _ in planted_study.FINISHED if name == run)
    values = planted_study.score_values("geneval", OFFICIAL[run] if score is None else score)
    extra = {"prompt_scores": by_prompt(run)} if prompts else {}
    planted_study.put(
        root / run,
        run,
        steps,
        evaluation,
        values,
        extra=extra,
        corpus=corpus,
        weights="ema",
        sampler=sampler,
        seed=seed,
    )


def numbers_of(root):
    """What the report has of scores, without its fits of laws."""
    found = merge.collect(sorted((root / "runs").iterdir()), root / "results")
    settings = study_fits.primary_settings(found)
    points = study_fits.final_points(study_fits.checkpoints(found, settings))
    options = {"resamples": 50, "seed": 0}
    return {
        "geneval": scores.geneval(found, points, settings),
        "correlation": scores.correlations(found, points, settings, **options),
        "folder_scores": scores.folder_correlations(found, points, settings, **options),
        "score_levels": [],
    }


def section_of(numbers):
    """The report's section, and the figures that it has."""
    look = {depth: ("#000000", "o") for depth in (1, 2, 3, 4)}
    drawn = {
        name: "<svg/>"
        for name in ("loss_against_geneval", "loss_against_geneval_official")
        if FIGURES[name].draw(numbers, look)
    }
    return html.unescape(correlation_section(numbers, Page(drawn, {}))), set(drawn)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(folder, numbers without official scores, numbers with them for all runs)."""
    root = tmp_path_factory.mktemp("study")
    planted_study.write_study(root / "runs", samples=False, failed=False)
    before = numbers_of(root)
    for run in RUNS:
        attach(root / "runs", run)
    return root, before, numbers_of(root)


def test_the_official_score_is_correlated_beside_the_embedded_one(study):
    """Catches another score's column, corpus or sampler taken for it, and one that changes the embedded numbers."""
    root, before, numbers = study
    assert (
        before["folder_scores"] == []
        and numbers["correlation"] == before["correlation"]
        and numbers["geneval"] == before["geneval"]
    )
    (one,) = numbers["folder_scores"]
    assert (one["evaluation"], one["corpus"], one["sampler"], one["without"], one["missing_prompts"]) == (
        "geneval_official",
        "geneval",
        SAMPLER,
        [],
        "",
    )
    losses = {run["run"]: run["loss"] for run in numbers["geneval"]["runs"]}
    assert {run["run"]: run["loss"] for run in one["runs"]} == losses
    found = one["correlation"]["overall"]
    values = {c["name"]: c["value"] for c in found["coefficients"]}
    overall = {run: planted_study.score_values("geneval", OFFICIAL[run])[0].value for run in RUNS}
    pairs = np.array([[losses[run], overall[run]] for run in RUNS]).T
    assert values["Spearman"] == pytest.approx(stats.spearmanr(*pairs).statistic, abs=1e-12)
    assert values["Pearson"] == pytest.approx(stats.pearsonr(*pairs).statistic, abs=1e-9)
    assert values["Kendall"] == pytest.approx(stats.kendalltau(*pairs).statistic, abs=1e-12)
    embedded = {c["name"]: c["value"] for c in numbers["correlation"]["overall"]["coefficients"]}
    assert abs(values["Spearman"] - embedded["Spearman"]) > 0.05
    page, drawn = section_of(numbers)
    assert (
        "overall official GenEval over 7 runs" in page
        and "overall GenEval by the corpus's own detector over 7 runs" in page
    )
    assert drawn == {"loss_against_geneval", "loss_against_geneval_official"}
    assert "own detector" not in section_of(before)[0] and section_of(before)[1] == {"loss_against_geneval"}


def test_its_intervals_redraw_its_own_prompts(study):
    """The bootstrap done again from what was planted. Catches the embedded prompts drawn in its place."""
    _, _, numbers = study
    (one,) = numbers["folder_scores"]
    found = one["correlation"]["overall"]
    assert found["interval_method"].startswith("two-level bootstrap over 7 runs and over the prompts they share")
    order = [run["run"] for run in one["runs"]]
    counts = [by_prompt(run) for run in order]
    redrawn = correlation.redraw_prompts(
        [task for task, *_ in counts[0]],
        np.array([[c for _, c, _ in rows] for rows in counts], float),
        np.full((7, 60), 4.0),
        resamples=50,
        seed=0,
    )
    losses, scores = [run["loss"] for run in one["runs"]], [run["scores"]["overall"]["value"] for run in one["runs"]]
    again = correlation.correlate(losses, scores, redrawn=redrawn["overall"], resamples=50, seed=0)
    assert [(c.low, c.high) for c in again.coefficients] == [(c["low"], c["high"]) for c in found["coefficients"]]


def test_fit_correlates_the_official_column_as_the_report_does(study):
    root, _, numbers = study
    source = fit_source.read_source(
        root, rename={}, flops_per_param_image=None, curves=False, largest_losses=0, max_loss=None
    )
    reported = {
        "geneval_official_overall": numbers["folder_scores"][0]["correlation"],
        "overall": numbers["correlation"],
    }
    for metric, expected in reported.items():
        _, content = fit_answers._metric(
            SimpleNamespace(resamples=50, seed=0), source, fit_answers._scores(source, metric), metric
        )
        assert content["correlation"]["interval_method"] == expected["overall"]["interval_method"]
        assert content["correlation"]["coefficients"] == expected["overall"]["coefficients"]


def test_what_is_missing_is_said(tmp_path):
    """A run without a score, one with another sampler, one without results by prompt. Catches runs dropped without a
    word, scores of two samplers mixed, and one-level intervals that pass for two-level ones."""
    planted_study.write_study(tmp_path / "runs", samples=False, failed=False)
    for run in RUNS[:-2]:
        attach(tmp_path / "runs", run, prompts=run != "depth2")
    attach(tmp_path / "runs", RUNS[-2], sampler="euler-20-cfg4-shift1")
    numbers = numbers_of(tmp_path)
    (one,) = numbers["folder_scores"]
    assert (one["without"], one["others"], one["correlation"]["overall"]["n"]) == ([RUNS[-1]], [RUNS[-2]], 5)
    assert one["correlation"]["overall"]["interval_method"].startswith("bootstrap over 5 runs")
    page, _ = section_of(numbers)
    assert "prompts.csv has no results by prompt of depth2" in page
    assert (
        f"Official GenEval: {RUNS[-1]} were not scored by it" in page
        and f"{RUNS[-2]} were scored with another sampler" in page
    )


def test_a_score_under_the_losses_own_corpus_and_sampler_is_not_the_embedded_one(study, tmp_path):
    """`rfjax score --corpus shapes` with the sampler and seed of the embedded GenEval: the two would share every key
    but the evaluation's name. Catches prompts of both in one pivot, and tasks called official_counting."""
    planted_study.write_study(tmp_path / "runs", samples=False, failed=False)
    before = study[1]  # the same study
    for run in RUNS:
        attach(tmp_path / "runs", run, corpus="shapes", sampler=planted_study.SAMPLER, seed=0)
        attach(tmp_path / "runs", run, evaluation="geneval_hf_mask2former", score=0.9 - OFFICIAL[run])
    after = numbers_of(tmp_path)
    assert after["geneval"] == before["geneval"] and after["correlation"] == before["correlation"]
    official, other = after["folder_scores"]
    assert (official["corpus"], other["evaluation"]) == ("shapes", "geneval_hf_mask2former")
    assert "two-level" in official["correlation"]["overall"]["interval_method"]
    signs = [
        next(c["value"] for c in one["correlation"]["overall"]["coefficients"] if c["name"] == "Spearman")
        for one in (official, other)
    ]
    assert signs[0] == pytest.approx(-signs[1])


@pytest.mark.full
def test_a_study_with_official_scores_alone_shows_them(tmp_path):
    """The whole report, as of a prepared corpus, whose photographs the embedded detectors do not know."""
    planted_study.write_study(tmp_path / "runs", samples=False, failed=False)
    for path in (tmp_path / "runs").rglob("evaluations/*.json"):
        if json.loads(path.read_text())["key"]["evaluation"].startswith("geneval"):
            path.unlink()
    for run in RUNS:
        attach(tmp_path / "runs", run)
    merge.collect(sorted((tmp_path / "runs").iterdir()), tmp_path / "results")
    numbers = write_report(tmp_path / "results", tmp_path / "report", resamples=100)
    assert numbers["correlation"] == {} and numbers["folder_scores"][0]["correlation"]["overall"]["n"] == 7
    page = (tmp_path / "report/index.html").read_text()
    assert "Loss against GenEval" in page and "overall official GenEval over 7 runs" in page
    assert "Loss against official GenEval over 7 runs (two-sided, exact over all 5,040 orders): Spearman" in page
    assert (tmp_path / "report/figures/loss_against_geneval_official.svg").exists()
    assert any(line.startswith("loss against official GenEval over 7 runs") for line in summary_lines(numbers))
