"""Computes the report's numbers of human preference: the win rates that `rfjax votes` recorded, against the loss."""

from __future__ import annotations

import math

import pandas as pd

from rfjax.evaluation import preference as names
from rfjax.laws import correlation
from rfjax.laws.study_fits import Settings, counted, most_common
from rfjax.laws.trunks import trunks_of
from rfjax.report.scores import by_item, statistics
from rfjax.results.columns import score_column
from rfjax.results.plain import plain
from rfjax.results.results_folder import Results, rows_where

POINT_COLUMNS = ("run", "depth", "params", "flops", "loss", "loss_low", "loss_high")
AGAINST = {"loss": "validation loss", "geneval": "overall GenEval"}  # what preference is correlated with


def preference(results: Results, points, settings: Settings, *, resamples: int, seed: int) -> dict | None:
    """Returns finished runs' win rates and strengths by question, and the correlations of win rates with loss and
    GenEval.

    If there are several studies of votes, the one with the most runs is used. Returns None if no finished run has
    votes.
    """
    rows = counted(rows_where(results.long, evaluation=names.EVALUATION, weights=settings.weights))
    rows = rows.merge(points[["run", "step"]], on=["run", "step"])
    if rows.empty:
        return None
    others = sorted(set(rows["corpus"]))
    chosen = {}
    for column in ("corpus", "sampler", "evaluation_seed"):
        chosen[column] = most_common(rows, column)
        rows = rows[rows[column] == chosen[column]]
    found = {(run, metric): by_item(group) for (run, metric), group in rows.groupby(["run", "metric"], sort=False)}
    runs = []
    for row in points.to_dict("records"):
        rates = found.get((row["run"], names.WIN_RATE))
        if rates is None:
            continue
        scored = not pd.isna(row.get(score_column(), math.nan))
        measured = {
            "geneval": statistics(row, score_column(), "value") if scored else None,
            "win_rates": rates,
            "strengths": found.get((row["run"], names.STRENGTH), {}),
        }
        runs.append({name: row[name] for name in POINT_COLUMNS} | measured)
    if not runs:
        return None
    questions = [name for name in names.QUESTIONS if any(name in run["win_rates"] for run in runs)]
    return {
        **chosen,
        "others": [corpus for corpus in others if corpus != chosen["corpus"]],
        "questions": questions,
        "runs": runs,
        "correlation": {
            against: {name: _correlate(runs, points, against, name, resamples, seed) for name in questions}
            for against in AGAINST
        },
    }


def _correlate(runs, points, against, question, resamples, seed):
    have = [run for run in runs if question in run["win_rates"] and value_of(run, against) is not None]
    trunks = trunks_of(points[points["run"].isin([run["run"] for run in have])]) if have else None
    measured = [value_of(run, against) for run in have]
    rates = [run["win_rates"][question]["value"] for run in have]
    return plain(correlation.correlate(measured, rates, trunks=trunks, resamples=resamples, seed=seed))


def value_of(run, against: str) -> float | None:
    """Returns a run's value of the quantity `against`, which is a key of `AGAINST`; None if the run lacks it."""
    return run["loss"] if against == "loss" else (run["geneval"] or {}).get("value")
