"""Computes the report's numbers of GenEval: scores between floor and ceiling, and their correlation with the loss."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from rfjax.evaluation.sampler_name import SamplerName, ground_truth_prompts
from rfjax.laws import correlation, folder_scores, noise_levels, score_links
from rfjax.laws.trunks import trunks_of
from rfjax.results.columns import SCORED, STATISTICS, Measure, loss_levels, score_column
from rfjax.results.plain import plain
from rfjax.results.results_folder import rows_where

POINT_COLUMNS = ("run", "depth", "params", "flops", "loss", "loss_low", "loss_high", "frontier")
CEILING = "geneval_ceiling"
FLOORS = {"shuffled": "geneval_floor_shuffled", "null": "geneval_floor_null"}


def geneval(results, points, settings):
    """Returns each finished run's GenEval by task with its floors, the detector's ceiling, and the scores under other
    samplers."""
    items = _geneval_items(points.columns)
    if not items:
        return {"items": [], "runs": [], "ceiling": {}, "reason": "no finished run has a GenEval score"}
    long = rows_where(results.long, corpus=settings.corpus, metric="geneval")
    measured = {"sampler": settings.sampler, "evaluation_seed": settings.sampler_seed}
    ceiling = by_item(
        ceiling_of_prompts(rows_where(long, evaluation=CEILING), settings.sampler).drop_duplicates("item")
    )
    of_floors = rows_where(long[long["evaluation"].isin(FLOORS.values())], weights=settings.weights, **measured)
    floors_at: dict[tuple, dict] = {}
    for found in of_floors[["run", "step", "evaluation", "item", *(name for name, _ in STATISTICS)]].to_dict("records"):
        place = found.pop("run"), found.pop("step"), found.pop("evaluation")
        floors_at.setdefault(place, {})[found.pop("item")] = found
    runs = []
    for row in points.to_dict("records"):
        if pd.isna(row.get(score_column(), np.nan)):
            continue
        scores = {item: statistics(row, score_column(item), "value") for item in items}
        floors = {floor: floors_at.get((row["run"], row["step"], name), {}) for floor, name in FLOORS.items()}
        pairs = {
            kind: {
                item: statistics(row, name, "value")
                for item in items
                if (name := Measure("geneval", f"geneval_{kind}", item).format()) in row
            }
            for kind in ("held_out", "seen")
        }
        # A score is above the floor if its interval lies above the intervals of all floors.
        above = {
            item: all(scores[item]["low"] > floors[f][item]["high"] for f in floors if item in floors[f])
            if any(item in floors[f] for f in floors)
            else None
            for item in items
        }
        found = {"scores": scores, "floors": floors, "above_floor": above, **pairs}
        runs.append({name: row[name] for name in POINT_COLUMNS} | found)
    best = {run["depth"]: run for run in sorted(runs, key=lambda run: run["loss"])[::-1]}
    for run in runs:
        run["best_of_depth"] = best[run["depth"]] is run
    others = _other_samplers(long, points, settings)
    return {"items": items, "runs": runs, "ceiling": ceiling, "others": others, "reason": ""}


def ceiling_of_prompts(ceilings, sampler):
    """Selects the rows of the ceiling (GenEval of ground truth) that were measured with as many prompts as the name
    `sampler` says; all rows if none has this number."""
    name = SamplerName.parse(sampler)
    prompts = name.images[0] if name and name.images else -1
    chosen = ceilings[[ground_truth_prompts(str(text)) == prompts for text in ceilings["sampler"]]]
    return chosen if len(chosen) else ceilings


def _other_samplers(long, points, settings):
    """Returns the overall scores of the points' checkpoints under samplers (whose names include the number of prompts)
    or seeds other than the study's primary ones."""
    rows = rows_where(long, evaluation="geneval", item="overall", weights=settings.weights)
    rows = rows.merge(points[["run", "step"]], on=["run", "step"])
    same = (rows["sampler"] == settings.sampler) & (rows["evaluation_seed"] == settings.sampler_seed)
    rows = rows[~same].set_index("run")
    ordered = [run for run in points["run"] if run in rows.index]
    return [
        {"run": row.Index, "sampler": row.sampler, "seed": int(row.evaluation_seed)}
        | {statistic: getattr(row, statistic) for statistic, _ in STATISTICS}
        for run in ordered
        for row in rows.loc[[run]].itertuples()
    ]


def correlations(results, points, settings, *, resamples, seed):
    """Correlates the loss with the overall score and with each task's score, over finished runs.

    Each correlation has its coefficients, the fitted links (curves from loss to score), and the largest run's score,
    predicted by links fitted to the other runs.
    """
    names = {item: score_column(item) for item in _geneval_items(points.columns)}
    return _correlate_items(results, points, names, "geneval", settings, resamples=resamples, seed=seed)


def folder_correlations(results, points, settings, *, resamples, seed):
    """Computes the numbers of `correlations` for each protocol whose scores `rfjax score` attached."""
    output = []
    for found in folder_scores.find(results, points, settings):
        names = {item: found.column(item) for item in found.items}
        redrawn = correlation.redrawn_scores(results.prompts, found.scored, found.settings, 2, seed, found.evaluation)
        output.append(
            {
                "evaluation": found.evaluation,
                "title": found.title,
                **{name: getattr(found.settings, name) for name in ("corpus", "sampler", "sampler_seed")},
                "others": list(found.others),
                "without": [run for run in points["run"] if run not in {*found.scored["run"], *found.others}],
                "missing_prompts": "" if redrawn else folder_scores.missing_prompts(results.prompts, found),
                "runs": [
                    {name: row[name] for name in ("run", "depth", "loss", "loss_low", "loss_high")}
                    | {"scores": {item: statistics(row, name, "value") for item, name in names.items()}}
                    for row in found.scored.to_dict("records")
                ],
                "correlation": _correlate_items(
                    results, found.points, names, found.evaluation, found.settings, resamples=resamples, seed=seed
                ),
            }
        )
    return output


def _correlate_items(results, points, names, evaluation, settings, *, resamples, seed):
    """Correlates the loss with each item's score, over the points that have both. `names` is {item: column of its
    score}."""
    output, redrawn = {}, {}
    for item, name in names.items():
        have = points[points[name].notna()]
        loss, score = have["loss"].to_numpy(float), have[name].to_numpy(float)
        runs = tuple(have["run"])
        if runs not in redrawn:  # most items have the same runs
            drawn = correlation.redrawn_scores(results.prompts, have, settings, resamples, seed, evaluation)
            redrawn = {runs: drawn}
        how = {"redrawn": redrawn[runs].get(item), "trunks": trunks_of(have), "resamples": resamples, "seed": seed}
        found = correlation.correlate(loss, score, **how)
        size, names_of = have["params"].to_numpy(float), have["run"].to_numpy()
        of_runs = {"flops": have["flops"].to_numpy(float), "trunks": how["trunks"]}
        linked = score_links.predict_by_links(loss, score, size, names_of, **of_runs, resamples=resamples, seed=seed)
        output[item] = plain(found) | linked
    return output


def score_levels(results, points, settings, *, resamples, seed):
    """Correlates the overall score with the loss at each level of t."""
    if score_column() not in points:
        return []
    have = points[points[score_column()].notna()]
    names = {float(t): column for t, column in loss_levels(points.columns).items()}
    losses = {t: have[c].to_numpy(float) for t, c in names.items() if have[c].notna().all()}
    redrawn = correlation.redrawn_scores(results.prompts, have, settings, resamples, seed).get("overall")
    score = have[score_column()].to_numpy(float)
    how = {"redrawn": redrawn, "trunks": trunks_of(have), "resamples": resamples, "seed": seed}
    return plain(noise_levels.by_level(losses, score, **how))


def _geneval_items(columns: Iterable[str]) -> list[str]:
    """Returns the GenEval items that have columns: overall, then the tasks in GenEval's order."""
    there = set(columns)
    return [item for item in SCORED if score_column(item) in there]


def statistics(row, name, label=None):
    """Returns value, standard error, interval and count from the columns whose names begin with `name`. Keys begin with
    `label` (by default `name`); with the label "value" they are value, stderr, low, high and n."""
    label = name if label is None else label
    keys = ("value", "stderr", "low", "high", "n") if label == "value" else tuple(label + s for _, s in STATISTICS)
    return {key: row.get(name + suffix) for key, (_, suffix) in zip(keys, STATISTICS, strict=True)}


def by_item(rows):
    """Returns {item: the statistics of its row} for the rows of one score."""
    return {row["item"]: {statistic: row[statistic] for statistic, _ in STATISTICS} for row in rows.to_dict("records")}
