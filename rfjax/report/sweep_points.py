"""Finds the runs of a study's sweeps of the learning rate in the results table."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pandas as pd

from rfjax.laws.left_out import LeftOut, why_left_out
from rfjax.laws.study_fits import Settings, checkpoints, counted, usable_ends
from rfjax.results.results_folder import Results, rows_by_run, rows_where

SWEEP = "sweep"  # the role


def sweep_points(rows: pd.DataFrame, results: Results, settings: Settings) -> pd.DataFrame:
    """Returns the final checkpoints of runs of role `sweep` with a usable loss, as rows of wide.csv: from `rows`, the
    `study_fits.checkpoints` at these settings, and from the checkpoints on other corpora."""
    losses = rows_where(results.long, role=SWEEP, metric="loss", item="mean", final=1)
    others = sorted(set(losses["corpus"]) - {settings.corpus})
    parts = [rows, *(checkpoints(results, replace(settings, corpus=corpus)) for corpus in others)]
    ends = [usable_ends(rows_where(part, role=SWEEP)) for part in parts]
    return pd.concat([part for part in ends if len(part)] or ends[:1], ignore_index=True)


def lost_runs(results: Results, settings: Settings) -> pd.DataFrame:
    """Returns the rows of runs.csv of the sweeps' and laws' runs that diverged, or ended with a loss that is not
    finite."""
    wanted = {"weights": settings.weights, "grid": settings.grid, "evaluation_seed": settings.grid_seed}
    losses = rows_where(results.long, metric="loss", item="mean", final=1, **wanted)
    infinite = losses[losses["value"].isna()]["run"]
    runs = results.runs[(results.runs["state"] == "diverged") | results.runs["run"].isin(infinite)]
    return pd.concat([counted(runs), runs[runs["role"] == SWEEP]], ignore_index=True)


def in_no_sweep(results: Results, settings: Settings, points: pd.DataFrame, used: Collection[str]) -> list[LeftOut]:
    """Finds the finished runs of role `sweep` that are in no sweep of the report.

    `points` are the rows of `sweep_points`, and `used` the runs that are in a sweep. `LeftOut.is_largest` is False.
    """
    runs = rows_where(results.runs, role=SWEEP, state="done")
    losses = rows_by_run(rows_where(results.long, metric="loss", item="mean"))
    usable, found = set(points["run"]), []
    for run in runs[~runs["run"].isin(set(used))].to_dict("records"):
        own = replace(settings, corpus=run["train_corpus"] or settings.corpus)
        why, command = why_left_out(losses(run["run"]), run, own, results)
        if run["run"] in usable:
            why, command = "has no other rate of its size and settings beside it at which no run diverged", ""
        found.append(LeftOut(run=run["run"], why=why, command=command, is_largest=False))
    return found
