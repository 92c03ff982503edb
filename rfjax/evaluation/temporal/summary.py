"""Summarises the scores of many clips: task scores with intervals (moving and still tasks separately), floors, and the
share of clips that meet each clause."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from rfjax.data.motion_worlds import TASKS, World
from rfjax.evaluation.geneval.files import score_summary
from rfjax.evaluation.geneval.rules import Detections, score
from rfjax.evaluation.temporal.floors import FLOORS, GROUPS, ORDERS, OTHER_PROMPTS, order_of, other_prompts
from rfjax.evaluation.temporal.rules import ClipResult, TemporalOptions, judge
from rfjax.evaluation.temporal.scores import PARTS, clustered_mean
from rfjax.evaluation.temporal.velocity import ERROR, FOUND, velocity_measures

Clip = tuple[Sequence[Detections], float | int]  # what was found in each frame, and the side of the picture


def summarize(
    clips: Sequence[Clip],
    prompts: Sequence[int],
    rows: Sequence[Mapping],
    options: TemporalOptions,
    *,
    seed: int = 0,
    replicates: int = 10_000,
) -> dict:
    """Returns the scores of clips as plain values for JSON. `rows` are the prompts' metadata rows, and `prompts[i]` is
    the index in `rows` of clip i's prompt.

    "groups" has `geneval.files.score_summary` of the moving tasks, and of the still tasks, with intervals clustered by
    prompt. "clauses" has, for each task, the share of clips that meet each clause. "floors" has, for each task, the
    scores of the same clips with their frames in another order, or judged by another prompt (`floor_scores`).
    """
    judged = [judge(*clip, rows[index], options) for clip, index in zip(clips, prompts, strict=True)]
    groups = {}
    for name, tasks in GROUPS.items():
        mine = [result.as_image() for result in judged if result.metadata["tag"] in tasks]
        if mine:
            found = score(mine, seed=seed, replicates=replicates, tasks=tasks)
            groups[name] = {"name": f"all {name}", **score_summary(found)}
    return {"groups": groups, "clauses": _clauses(judged), "floors": floor_scores(clips, prompts, rows, options)}


def velocity_summary(
    clips: Mapping[tuple[int, int], Clip],
    rows: Sequence[Mapping],
    world: World,
    options: TemporalOptions,
    *,
    seed: int = 0,
    replicates: int = 10_000,
) -> dict[str, dict]:
    """Returns the velocity error as plain values for JSON, in three entries: "all" for all clips, "held_out" for the
    clips whose prompt has a held-out triple, and "seen" for all other clips. The keys of `clips` are (index of the
    clip's prompt in `rows`, sample).

    Each entry has "error", an estimate in pixels a frame (None if no clip has an error); "asked", the number of clips
    whose prompt determines a velocity; and "not_found", the number of these clips that have no error because an object
    was not found. "held_out" and "seen" are both left out if one of them would have no clip. Returns {} if no prompt
    determines a velocity.
    """
    found = {place: velocity_measures(*clip, rows[place[0]], world, options) for place, clip in sorted(clips.items())}
    found = {place: measures for place, measures in found.items() if measures}
    chosen = {part: [place for place in found if _part_of(rows[place[0]]) == part] for part in PARTS}
    groups = {"all": list(found)} | (chosen if all(chosen.values()) else {})
    return {
        part: {
            "error": _mean_error([place for place in places if found[place][FOUND]], found, rows, seed, replicates),
            "asked": len(places),
            "not_found": sum(not found[place][FOUND] for place in places),
        }
        for part, places in groups.items()
        if places
    }


def _mean_error(places, found, rows, seed, replicates):
    if not places:
        return None
    errors = np.array([found[place][ERROR] for place in places])
    clusters = np.unique([json.dumps(rows[index]) for index, _ in places], return_inverse=True)[1]
    mean = clustered_mean(errors, clusters, np.random.default_rng(seed), replicates)
    named = dict(zip(("value", "stderr", "low", "high", "clips"), mean, strict=True))
    return {name: None if value != value else value for name, value in named.items()}  # a lone prompt has no stderr


def _part_of(row):
    return "held_out" if row.get("held_out") else "seen"


def _clauses(judged: Sequence[ClipResult]) -> dict[str, dict[str, float]]:
    shares = {}
    for task in TASKS:
        mine = [result.clauses for result in judged if result.metadata["tag"] == task]
        if mine:
            names = dict.fromkeys(name for clauses in mine for name in clauses)
            shares[task] = {name: float(np.mean([c[name] for c in mine if name in c])) for name in names}
    return shares


def floor_scores(
    clips: Sequence[Clip], prompts: Sequence[int], rows: Sequence[Mapping], options: TemporalOptions
) -> dict[str, dict[str, float]]:
    """Returns {task: {floor: share of correct clips}}, for the floors that judge the same clips in another order of
    frames or by another prompt."""
    others, scores = other_prompts(rows), {}
    for task in TASKS:
        mine = [n for n, index in enumerate(prompts) if rows[index]["tag"] == task]
        for floor in FLOORS[task] if mine else ():
            if floor in ORDERS:
                right = [
                    judge(
                        [clips[n][0][t] for t in order_of(floor, len(clips[n][0]), n).tolist()],
                        clips[n][1],
                        rows[prompts[n]],
                        options,
                    ).correct
                    for n in mine
                ]
            elif floor == OTHER_PROMPTS:
                right = [
                    judge(*clips[n], rows[other], options).correct
                    for n in mine
                    if (other := others[prompts[n]]) is not None and _has_colors(clips[n][0], rows[other])
                ]
            else:
                continue
            if right:
                scores.setdefault(task, {})[floor] = float(np.mean(right))
    return scores


def _has_colors(frames, row):
    """Whether a clip's detections have colours for all classes whose colour a prompt's row asks for. A file needs them
    only for the clip's own prompt, so they may be missing for another prompt."""
    asked = [item["class"] for item in row["include"] if "color" in item]
    return all(name in found.colors or not len(found.boxes.get(name, ())) for found in frames for name in asked)
