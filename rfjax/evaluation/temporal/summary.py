"""The scores of many clips: tasks with their intervals, moving and still apart, the floors, and what fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rfjax.data.motion_worlds import TASKS
from rfjax.evaluation.geneval.files import score_summary
from rfjax.evaluation.geneval.rules import Detections, score
from rfjax.evaluation.temporal.floors import FLOORS, GROUPS, ORDERS, OTHER_PROMPTS, order_of, other_prompts
from rfjax.evaluation.temporal.rules import ClipResult, TemporalOptions, judge

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
    """Scores of clips, each of the row that `prompts` has for it, as plain values for JSON.

    "groups": for the moving and the still tasks `geneval.files.score_summary`, whose intervals are clustered by prompt.
    "clauses": of each task, the share of clips that meet each clause. "floors": of each task, its score on the same
    clips in another order of frames, or by another prompt, where `FLOORS` has it.
    """
    judged = [judge(*clip, rows[index], options) for clip, index in zip(clips, prompts, strict=True)]
    groups = {}
    for name, tasks in GROUPS.items():
        mine = [result.as_image() for result in judged if result.metadata["tag"] in tasks]
        if mine:
            found = score(mine, seed=seed, replicates=replicates, tasks=tasks)
            groups[name] = {"name": f"all {name}", **score_summary(found)}
    return {"groups": groups, "clauses": _clauses(judged), "floors": floor_scores(clips, prompts, rows, options)}


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
    """Of each task and each floor that needs no further clips, the share that is correct."""
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
    """Whether what was found can be judged by a row: files need no colours for classes that their prompt lacks."""
    asked = [item["class"] for item in row["include"] if "color" in item]
    return all(name in found.colors or not len(found.boxes.get(name, ())) for found in frames for name in asked)
