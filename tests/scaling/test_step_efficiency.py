"""Sampling steps: drops paired by prompt, and a real run measured at several counts."""

import numpy as np
import pandas as pd
import planted_study
import pytest

from rfjax.scaling import results, table
from rfjax.scaling.report import write_report
from rfjax.scaling.step_efficiency import step_counts

COUNTS = {2: (0.30, 12.0, 0.4), 10: (0.42, 13.0, 0.1), 50: (0.45, 13.5, 0.0)}  # score, length, distance


def add_records(folder, run, step):
    """Records of three counts of steps: at two, every prompt loses an image where it can."""
    rng = np.random.default_rng(0)
    right = rng.binomial(4, 0.5, 60)
    for steps, (_, length, distance) in COUNTS.items():
        correct = np.maximum(right - (steps == 2), 0)
        score = float((correct.reshape(6, 10) / 4).mean())
        values = [planted_study.value("sampling", item, score, 0.02, 240) for item in ("overall", *planted_study.TASKS)]
        values += [planted_study.value("sampling_path_length", "mean", length, 0.1, 240),
                   planted_study.value("sampling_distance", "mean", distance, 0.01, 240)]  # fmt: skip
        scores = [[planted_study.TASKS[i // 10], int(count), 4] for i, count in enumerate(correct)]
        planted_study.put(folder, run, step, "sampling_steps", values, images=1, flops=1.0, weights="ema",
                          sampler=f"euler-{steps}-cfg4-shift1-10x4-of50", extra={"prompt_scores": scores})  # fmt: skip
    return right


@pytest.fixture
def measured(tmp_path):
    folders = planted_study.write_study(tmp_path / "runs", samples=False)
    right = add_records(tmp_path / "runs" / "depth4", "depth4", 2000)
    return table.collect(folders, tmp_path / "results"), right


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


def test_the_report_has_a_section_and_the_study_is_otherwise_the_same(measured, tmp_path):
    """More samplers in the table must not become the study's own scores."""
    found, _ = measured
    numbers = write_report(found.folder, tmp_path / "report", resamples=100)
    assert [one["steps"] for one in numbers["sampling_steps"]] == [2, 10, 50]
    assert numbers["settings"]["sampler"] == planted_study.SAMPLER and numbers["correlation"]["overall"]["n"] == 7
    assert "Sampling with fewer steps" in (tmp_path / "report" / "index.html").read_text()


def test_a_table_without_such_records_has_none(study):
    found = results.read(study)
    assert step_counts(found.long, found.prompts) == ()
    assert step_counts(found.long.iloc[:0], pd.DataFrame(columns=found.prompts.columns)) == ()
