"""Sampling steps: drops paired by prompt, and a real run measured at several counts."""

import re

import numpy as np
import pandas as pd
import pytest

from helpers import planted_study
from rfjax.laws.step_efficiency import step_counts
from rfjax.report.axes import looks
from rfjax.report.score_figures import score_against_steps
from rfjax.report.write import write_report
from rfjax.results import merge, results_folder

pytestmark = pytest.mark.usefixtures("quick_compilation")

COUNTS = {2: (0.30, 12.0, 0.4), 10: (0.42, 13.0, 0.1), 50: (0.45, 13.5, 0.0)}  # score, length, distance


def add_records(folder, run, step, seed=0):
    """Records of three counts of steps: at two, every prompt loses an image where it can."""
    rng = np.random.default_rng(seed)
    right = rng.binomial(4, 0.5, 60)
    for steps, (_, length, distance) in COUNTS.items():
        correct = np.maximum(right - (steps == 2), 0)
        score = float((correct.reshape(6, 10) / 4).mean())
        values = [planted_study.value("sampling", item, score, 0.02, 240) for item in ("overall", *planted_study.TASKS)]
        values += [
            planted_study.value("sampling_path_length", "mean", length, 0.1, 240),
            planted_study.value("sampling_distance", "mean", distance, 0.01, 240),
        ]
        scores = [[planted_study.TASKS[i // 10], int(count), 4] for i, count in enumerate(correct)]
        planted_study.put(
            folder,
            run,
            step,
            "sampling_steps",
            values,
            images=1,
            flops=1.0,
            weights="ema",
            sampler=f"euler-{steps}-cfg4-shift1-10x4-of50",
            extra={"prompt_scores": scores},
        )
    return right


@pytest.fixture
def measured(tmp_path):
    folders = planted_study.write_study(tmp_path / "runs", samples=False)
    right = add_records(tmp_path / "runs" / "depth4", "depth4", 2000)
    return merge.collect(folders, tmp_path / "results"), right


def test_drops_are_paired_by_prompt(measured):
    """Unpaired, the interval of no drop at ten steps would have a width; paired it has none. Without
    the task means, prompts of unequal tasks would weigh otherwise."""
    found, right = measured
    counts = {one.steps: one for one in step_counts(found.long, found.prompts)}
    assert set(counts) == {2, 10, 50} and all(one.depth == 4 and one.reference == 50 for one in counts.values())
    assert (counts[10].drop, counts[10].drop_low, counts[10].drop_high) == (0, 0, 0)
    lost = 1 - np.maximum(right - 1, 0).sum() / right.sum()
    assert counts[2].drop == pytest.approx(lost) and counts[2].drop_low < lost < counts[2].drop_high
    assert counts[2].path_length == 12.0 and counts[2].distance == 0.4


def test_the_report_has_a_section_and_the_study_is_otherwise_the_same(undrawn, measured, tmp_path):
    """More samplers in the table must not become the study's own scores."""
    found, _ = measured
    numbers = write_report(found.folder, tmp_path / "report", resamples=100)
    assert [one["steps"] for one in numbers["sampling_steps"]] == [2, 10, 50]
    assert numbers["settings"]["sampler"] == planted_study.SAMPLER and numbers["correlation"]["overall"]["n"] == 7
    assert "Sampling with fewer steps" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.full
def test_the_report_sets_depths_side_by_side_as_table_6(undrawn, tmp_path):
    """A row for each run and a column for each count. A drop under the wrong heading, or of another run,
    reads as well as the right one: each cell is computed here from the planted prompts."""
    folders = planted_study.write_study(tmp_path / "runs", samples=False)
    right = {
        run: add_records(tmp_path / "runs" / run, run, 2000, seed=seed) for seed, run in enumerate(("depth2", "depth4"))
    }
    merge.collect(folders, tmp_path / "results")
    numbers = write_report(tmp_path / "results", tmp_path / "report", resamples=100)
    html = (tmp_path / "report" / "index.html").read_text()
    start = html.index("<table", html.index("Sampling with fewer steps"))
    rows = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        for row in html[start : html.index("</table>", start)].split("<tr>")[1:]
    ]
    assert [cells[1:] for cells in rows][0] == ["validation loss", "2/50", "10/50", "path length"]
    losses = {run["run"]: run["loss"] for run in numbers["runs"]}
    for cells, (run, correct) in zip(rows[1:], right.items(), strict=True):
        lost = 1 - np.maximum(correct - 1, 0).sum() / correct.sum()
        assert f"<small>{run}<br>euler-cfg4-shift1-10x4</small>" in cells[0] and cells[1] == f"{losses[run]:.4f}"
        assert (
            cells[2].startswith(f"+{100 * lost:.2f} % [+")
            and cells[3] == "+0.00 % [+0.00 %, +0.00 %]"
            and cells[4] == "13.50"
        )
    look = looks([1, 2, 3, 4, 5])
    score, drop, length = score_against_steps(numbers, look).axes
    first = numbers["sampling_steps"][:3]
    assert [one["depth"] for one in numbers["sampling_steps"]] == [2] * 3 + [4] * 3
    assert list(score.lines[0].get_xdata()) == [2, 10, 50] and list(score.lines[0].get_ydata()) == [
        one["score"] for one in first
    ]
    assert list(drop.lines[0].get_ydata()) == [100 * one["drop"] for one in first] and list(
        length.lines[0].get_ydata()
    ) == [12, 13, 13.5]
    assert score.lines[0].get_color() == look[2][0] and (tmp_path / "report/figures/score_against_steps.svg").exists()


def test_a_table_without_such_records_has_none(study):
    found = results_folder.read(study)
    assert step_counts(found.long, found.prompts) == ()
    assert step_counts(found.long.iloc[:0], pd.DataFrame(columns=found.prompts.columns)) == ()
