"""The training curve on disk: metrics.jsonl, and diagnostics.jsonl beside it. Trackers are fed from these files.

Interruptions do not change the rows. A row is on disk before the checkpoint of its step. Resuming from a step drops the
rows after that step, and training writes them again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from rfjax.inputs.files import why_not_plain
from rfjax.inputs.json_files import parse_json
from rfjax.outputs import open_to_append
from rfjax.training.step import TIME_BINS, StepMetrics

CURVE = "metrics.jsonl"
DIAGNOSTICS = "diagnostics.jsonl"  # rows of diagnostics and warnings; a run without such rows has no such file


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Window:
    """Averages metrics over the steps since the last row.

    The sums are part of a checkpoint's facts, so a resumed run writes the same rows as an uninterrupted run.
    """

    def __init__(self, groups: Sequence[str], sums: dict | None = None):
        self.groups = list(groups)
        self._sums = sums or _no_sums()

    def sums(self) -> dict:
        return self._sums

    def add(self, metrics: StepMetrics) -> None:
        """Adds the metrics of one step, which must be on the host. Skipped steps do not enter the means."""
        if not metrics.skipped_in_row:
            sums = self._sums
            self._sums = {
                "steps": sums["steps"] + 1,
                "loss": sums["loss"] + float(metrics.loss),
                "grad_norm": sums["grad_norm"] + float(metrics.grad_norm),
                "bins": (np.asarray(sums["bins"]) + metrics.bin_losses).tolist(),
                "counts": (np.asarray(sums["counts"]) + metrics.bin_counts).tolist(),
            }
            if metrics.measures:
                before = sums.get("measures", {})
                self._sums["measures"] = {
                    name: before.get(name, 0.0) + float(total) for name, total in metrics.measures.items()
                }

    def close(self, last: StepMetrics) -> dict:
        """Ends the window. Returns part of a row: the window's means, the last step's learning rate, and the last
        step's gradient norm of each parameter group.

        `loss_by_t[i]` is the mean loss of examples with t in [i/10, (i+1)/10); null if there are none.
        """
        sums = self._sums
        steps = sums["steps"]
        row = {
            "loss": sums["loss"] / steps if steps else None,
            "grad_norm": sums["grad_norm"] / steps if steps else None,
            "learning_rate": float(last.learning_rate),
            "loss_by_t": [
                total / count if count else None for total, count in zip(sums["bins"], sums["counts"], strict=True)
            ],
            "group_norms": {
                name: _finite(float(norm)) for name, norm in zip(self.groups, last.group_norms, strict=True)
            },
        }
        if "measures" in sums:
            examples = sum(sums["counts"])
            row["measures"] = {name: _finite(total / examples) for name, total in sums["measures"].items()}
        self._sums = _no_sums()
        return row


def _no_sums() -> dict:
    return {"steps": 0, "loss": 0.0, "grad_norm": 0.0, "bins": [0.0] * TIME_BINS, "counts": [0.0] * TIME_BINS}


class _Row(TypedDict):
    step: int


def truncate(path: Path, step: int) -> None:
    """Removes from a file the rows after `step`, an incomplete last line, and lines that are not rows.

    A path that is not a plain file is left as it is.
    """
    if why_not_plain(path):
        return
    kept = []
    for line in path.read_bytes().split(b"\n"):
        try:
            if parse_json(line.decode(), _Row)["step"] <= step:
                kept.append(line + b"\n")
        except ValueError:
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(kept))
    os.replace(temporary, path)


class MetricsWriter:
    """Appends rows to the curve and to the diagnostics in `workdir`; a context manager for process 0.

    First it removes the rows of the steps after `step`.
    """

    def __init__(self, workdir: Path, step: int):
        self._paths = {name: Path(workdir) / name for name in (CURVE, DIAGNOSTICS)}
        for path in self._paths.values():
            truncate(path, step)
        self._files = {CURVE: open_to_append(self._paths[CURVE])}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in self._files.values():
            file.close()

    def write(self, row: dict) -> None:
        """Writes a row, which has a "step". Values are numbers, null, or lists and mappings of numbers and nulls."""
        self._append(CURVE, row)

    def write_diagnostics(self, row: dict) -> None:
        """Writes a row of diagnostics, or a warning, as `write` does."""
        self._append(DIAGNOSTICS, row)

    def _append(self, name: str, row: dict) -> None:
        if name not in self._files:
            self._files[name] = open_to_append(self._paths[name])
        self._files[name].write(json.dumps(row, allow_nan=False) + "\n")

    def sync(self) -> None:
        """Waits until the rows are on disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
