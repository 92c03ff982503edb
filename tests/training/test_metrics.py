import io
import json
import math
import time

import numpy as np
import pytest

from helpers.training_tiny import tiny_train
from rfjax.training.hardware import peak_flops
from rfjax.training.metrics import MetricsWriter, Window, truncate
from rfjax.training.progress import Progress, engineering
from rfjax.training.step import TIME_BINS, StepMetrics


def metrics(loss, skipped_in_row=0):
    counts = np.zeros(TIME_BINS)
    counts[3] = 4.0
    return StepMetrics(
        loss=np.float32(loss),
        grad_norm=np.float32(2 * loss),
        learning_rate=np.float32(0.5),
        skipped=np.int32(1),
        skipped_in_row=np.int32(skipped_in_row),
        group_norms=np.array([3.0, math.nan]),
        bin_losses=counts * loss,
        bin_counts=counts,
    )


def test_a_row_is_the_mean_of_its_window_less_the_skipped():
    window = Window(["blocks", "final"])
    window.add(metrics(1.0))
    window.add(metrics(math.nan, skipped_in_row=1))
    window = Window(["blocks", "final"], json.loads(json.dumps(window.sums())))  # through a checkpoint
    last = metrics(2.0)
    window.add(last)
    row = window.close(last)
    assert (row["loss"], row["grad_norm"], row["learning_rate"]) == (1.5, 3.0, 0.5)
    assert row["loss_by_t"] == [None] * 3 + [1.5] + [None] * 6
    assert row["group_norms"] == {"blocks": 3.0, "final": None}
    assert window.sums()["steps"] == 0
    assert window.close(last)["loss"] is None


def test_rows_after_the_step_and_a_torn_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (4, 8, 12)) + '{"step": 1')
    truncate(path, 8)
    assert path.read_text().splitlines() == ['{"step": 4}', '{"step": 8}']
    with MetricsWriter(tmp_path, 4) as writer:
        writer.write({"step": 8, "loss": 0.5, "loss_by_t": [None, 1.0], "group_norms": {"blocks": 2.0}, "mfu": None})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [4, 8]


def test_rows_that_are_no_json_are_refused(tmp_path):
    with MetricsWriter(tmp_path, 0) as writer, pytest.raises(ValueError):
        writer.write({"step": 1, "loss": math.nan})


def test_an_unknown_device_has_no_peak():
    assert peak_flops(["TPU v4"] * 4) == 4 * 275e12
    assert peak_flops(["TPU7x"] * 2) == 2307e12  # two devices a chip
    assert peak_flops(["TPU v4", "cpu"]) is None


def test_progress_is_lines_where_there_is_no_terminal():
    out = io.StringIO()
    row = {"step": 50, "loss": 0.5, "mfu": None}
    row |= {"images_per_second": 812.0, "steps_per_second": 2.0, "flops_per_second": 2.5e12}
    with Progress("a", 0, 170, every_seconds=0.0, file=out) as progress:
        progress.step(50)
        progress.row(row)
        progress.row(row | {"mfu": 0.25, "loss": None})
    first, second = out.getvalue().splitlines()
    assert first == "a: step 50/170, loss 0.5000, 812 images/s, 2.5 TFLOP/s, 1m00s left"
    assert "MFU 25.0%" in second and "loss -" in second
    quiet = io.StringIO()
    with Progress("a", 0, 170, every_seconds=60.0, file=quiet) as progress:
        progress.row(row)
    assert quiet.getvalue() == ""
    assert engineering(1.234e15, "FLOP/s") == "1.23 PFLOP/s"


def test_a_clock_that_goes_backwards_ends_no_training(tmp_path, monkeypatch):
    """Catches a wait that a wall clock gives: set back by a month, it is longer than the system can wait."""
    now = iter(range(10**9, 0, -(30 * 24 * 3600)))
    monkeypatch.setattr(time, "time", lambda: float(next(now, 0)))
    assert tiny_train(tmp_path, {"train.steps": 8}).step == 8
    assert all(row["step"] for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()))
