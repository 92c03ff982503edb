"""Summarises the scores of many clips: task scores with intervals (moving and still tasks separately), floors, and how
often each clause fails."""

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
    """The scores of clips as plain values for JSON. `rows` are the prompts, and `prompts[i]` is the index in `rows` of
    clip i's prompt.

    "groups": `geneval.files.score_summary` of the moving and of the still tasks, with intervals clustered by prompt.
    "clauses": for each task, the share of clips that meet each clause. "floors": for each task, the score of the same
    clips in another order of frames, or judged by another prompt, as `FLOORS` lists them.
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
    """The share of clips that is correct for each task, under each floor that needs no further clips."""
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
    """Whether a clip's detections have the colours that a row asks for. A file needs colours only for classes whose
    colour its own prompt asks for, so another prompt may ask for more."""
    asked = [item["class"] for item in row["include"] if "color" in item]
    return all(name in found.colors or not len(found.boxes.get(name, ())) for found in frames for name in asked)
