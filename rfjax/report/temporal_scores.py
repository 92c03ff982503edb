"""Computes the report's numbers of temporal GenEval: scores with their floors, the ceiling, and the gallery."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rfjax.evaluation.temporal.scores import ALL_FLOORS, CEILING, DETECTOR, ERRORS, ITEMS, METRIC, PARTS, floor_metric
from rfjax.laws import correlation, score_links
from rfjax.laws.study_fits import counted, most_common_sampler
from rfjax.laws.trunks import trunks_of
from rfjax.report.scores import by_item, ceiling_of_prompts
from rfjax.results.plain import plain
from rfjax.results.results_folder import rows_where

POINT_COLUMNS = ("run", "depth", "params", "flops", "loss", "loss_low", "loss_high")
CORRELATED = ("direction_right", "pixels_a_frame", "frames_right", "all_moving", "all_still")
UNBOUNDED = ("pixels_a_frame",)  # not a share from 0 to 1, so no link from loss to score is fitted
GALLERY = (1, 4, 32)  # compute of the gallery's rows over that of the first row, as in Sora's report
GALLERY_MOST = 1.5  # factor by which a row's compute may miss the wanted compute


def temporal(results, points, settings, *, resamples: int, seed: int) -> dict | None:
    """Returns every finished run's scores and floors, the ceiling, and the scores' correlation with the loss; None if
    no run was scored.

    The scores are those of the sampler and the seed that most runs' clips were scored with. GenEval may have others.
    """
    of_study = rows_where(results.long, corpus=settings.corpus)
    rows = counted(rows_where(of_study, evaluation=METRIC, weights=settings.weights))
    sampler, sampler_seed = most_common_sampler(rows)
    rows = rows_where(rows, sampler=sampler, evaluation_seed=sampler_seed)
    rows = rows.merge(points[["run", "step"]], on=["run", "step"])
    if rows.empty:
        return None
    found = {(run, metric): by_item(group) for (run, metric), group in rows.groupby(["run", "metric"], sort=False)}
    runs = []
    for row in points.to_dict("records"):
        scores = found.get((row["run"], METRIC))
        if scores is None:
            continue
        floors = {floor: found.get((row["run"], floor_metric(floor)), {}) for floor in ALL_FLOORS}
        parts = {part: found.get((row["run"], f"{METRIC}_{part}"), {}) for part in PARTS}
        marks = {"scores": scores, "floors": floors, "highest_floor": _highest(scores, floors), **parts}
        marks["detector"] = {
            part: found.get((row["run"], DETECTOR[metric]), {})
            for part, metric in (("all", METRIC), *((part, f"{METRIC}_{part}") for part in PARTS))
        }
        runs.append({name: row[name] for name in POINT_COLUMNS} | marks)
    best = {run["depth"]: run for run in sorted(runs, key=lambda run: run["loss"])[::-1]}
    for run in runs:
        run["best_of_depth"] = best[run["depth"]] is run
    return {
        "items": [item for item in ITEMS if any(item in run["scores"] for run in runs)],
        "sampler": sampler,
        "seed": sampler_seed,
        "runs": runs,
        "ceiling": _ceiling(of_study, sampler),
        "correlation": _correlations(runs, points, resamples, seed),
    }


def _highest(scores: Mapping, floors: Mapping) -> dict[str, dict]:
    """Returns for each score its highest floor, and whether the score's interval lies above the intervals of all its
    floors. For an error, returns the lowest floor, and whether the error's interval lies below those of all floors."""
    found = {}
    for item, score in scores.items():
        there = {floor: values[item] for floor, values in floors.items() if item in values}
        if there:
            if item in ERRORS:
                floor = min(there, key=lambda name: there[name]["value"])
                above = all(score["high"] < each["low"] for each in there.values())
            else:
                floor = max(there, key=lambda name: there[name]["value"])
                above = all(score["low"] > each["high"] for each in there.values())
            found[item] = {"floor": floor, "above_all": above, **there[floor]}
    return found


def _ceiling(rows, sampler) -> dict[str, dict]:
    """Returns the scores of ground-truth clips, measured with as many prompts as the name `sampler` says; if there are
    none, with any number of prompts."""
    found = ceiling_of_prompts(rows_where(rows, evaluation=CEILING, metric=METRIC), sampler)
    return by_item(found.drop_duplicates("item"))


def _correlations(runs, points, resamples, seed) -> dict[str, dict]:
    """Returns for each score its correlation with the loss over runs and, for a score from 0 to 1, the largest run's
    score as the links (curves from loss to score) predict it."""
    output = {}
    for item in CORRELATED:
        have = {run["run"]: run["scores"][item]["value"] for run in runs if item in run["scores"]}
        of = points[points["run"].isin(have)]
        if of.empty:
            continue
        loss, score, trunks = of["loss"].to_numpy(float), of["run"].map(have).to_numpy(float), trunks_of(of)
        found = plain(correlation.correlate(loss, score, trunks=trunks, resamples=resamples, seed=seed))
        size = {"flops": of["flops"].to_numpy(float), "trunks": trunks, "resamples": resamples, "seed": seed}
        linked = {}
        if item not in UNBOUNDED:
            names = of["params"].to_numpy(float), of["run"].to_numpy()
            linked = score_links.predict_by_links(loss, score, *names, **size)
        output[item] = found | linked
    return output


def gallery(rows: Sequence[Mapping], trunks: Mapping[str, object]) -> list[dict]:
    """Selects sample sheets of clips that show runs of one size and seed at several amounts of compute; [] if no runs
    fit.

    `GALLERY` has the wanted ratios of compute. `rows` are the report's sample sheets. `trunks` maps a run to its group:
    its trunk, or its depth and seed. If several groups fit, the group with the most compute is taken.
    """
    playing = [row for row in rows if row.get("webp") and row["final"] and row["flops"]]
    groups: dict[object, list] = {}
    for row in playing:
        groups.setdefault(trunks[row["run"]], []).append(row)
    fits = [chosen for group in groups.values() if (chosen := _spaced(group))]
    return max(fits, key=lambda chosen: chosen[-1]["flops"], default=[])


def _spaced(group) -> list[dict]:
    """Selects the rows of a group whose compute is nearest to the ratios `GALLERY`. The last ratio stands for the
    group's most compute.

    Returns [] if a row misses its ratio by more than a factor `GALLERY_MOST`.
    """
    most = max(row["flops"] for row in group)
    chosen = []
    for share in GALLERY:
        wanted = most * share / GALLERY[-1]
        row = min(group, key=lambda row: abs(math.log(row["flops"] / wanted)))
        if abs(math.log(row["flops"] / wanted)) > math.log(GALLERY_MOST):
            return []
        chosen.append(row)
    return chosen
