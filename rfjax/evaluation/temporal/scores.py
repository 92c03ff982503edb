"""Every score of a model's clips: strict tasks and soft measures, each with its floors.

A floor is the score of the same clips with their frames in another order or judged by another prompt, or the score of
clips of the null condition (`floors.FLOORS`). All intervals are clustered by prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from rfjax.data.motion_worlds import SPEEDS, TASKS, World
from rfjax.evaluation.detectors.clips import detect_clips
from rfjax.evaluation.geneval.rules import Detections, ScoreEstimate, resampled_means, score
from rfjax.evaluation.intervals import PERCENTILES
from rfjax.evaluation.records import FLOOR, Measured
from rfjax.evaluation.temporal.floors import FLOORS, GROUPS, NOTHING, ORDERS, OTHER_PROMPTS, order_of, other_prompts
from rfjax.evaluation.temporal.rules import DEFAULT, ClipResult, judge
from rfjax.evaluation.temporal.soft import all_centroids, frames_right, motion_measures
from rfjax.evaluation.temporal.velocity import ERROR, FOUND, velocity_measures

METRIC = "temporal"
CEILING = "temporal_ceiling"  # the evaluation of ground truth
REPLICATES = 10_000
ALL_FLOORS = (*ORDERS, OTHER_PROMPTS, NOTHING)
# Soft measures that an order of frames can change. The share of right frames is the same in any order.
OF_MOTION = ("direction_right", "pixels_a_frame", *(f"pixels_a_frame_{speed}" for speed in SPEEDS))
SOFT = ("frames_right", *OF_MOTION)
OVERALL = {name: f"all_{name}" for name in GROUPS}  # the mean over the tasks of a group
VELOCITY = (ERROR, FOUND)  # the velocity error, and the share of clips for which it could be measured
ERRORS = (ERROR,)  # items of which less is better
ITEMS = (*OVERALL.values(), *TASKS, *SOFT, *VELOCITY)
PARTS = ("held_out", "seen")  # prompts with and without a held-out triple


def floor_metric(floor: str) -> str:
    """The name of the metric that has the scores under a floor."""
    return f"{METRIC}{FLOOR}{floor}"


OF_PROMPTS = (METRIC, *(f"{METRIC}_{part}" for part in PARTS))  # of all prompts and of each part
# metric of a model's velocity error -> metric of the detector's own error: the velocity error of ground-truth clips
DETECTOR = {metric: f"{metric}{FLOOR}ground_truth" for metric in OF_PROMPTS}
# The metrics of a record.
METRICS = (*OF_PROMPTS, *map(floor_metric, ALL_FLOORS), *DETECTOR.values())


@dataclass(frozen=True, eq=False)
class Seen:
    """What is measured in a clip: the objects found in each frame, and the centroid of each colour
    (`soft.all_centroids`)."""

    frames: tuple[Detections, ...]
    places: Float[np.ndarray, "frames colors 2"]
    side: int  # of a frame, in pixels

    def reordered(self, order: np.ndarray) -> Seen:
        return Seen(tuple(self.frames[t] for t in order.tolist()), self.places[order], self.side)


def look_at(clips: Float[np.ndarray, "n frames h w 3"], found: Sequence[Sequence[Mapping]] | None = None) -> list[Seen]:
    """Computes from clips' pixels what all scores are computed from: a `Seen` for each clip. `found` is the result of
    `detect_clips` for these clips, if it was already called."""
    found = detect_clips(clips) if found is None else found
    places = all_centroids(clips.reshape(-1, *clips.shape[2:])).reshape(*clips.shape[:2], -1, 2)
    frames = [tuple(Detections.from_lists(f["detections"], f["colors"]) for f in clip) for clip in found]
    return [Seen(own, where, clips.shape[2]) for own, where in zip(frames, places, strict=True)]


def judge_all(seen: Sequence[Seen], rows: Sequence[Mapping]) -> list[ClipResult]:
    """Judges each clip by the strict rules of its prompt's row."""
    return [judge(clip.frames, clip.side, row, DEFAULT) for clip, row in zip(seen, rows, strict=True)]


def clip_scores(
    seen: Sequence[Seen],
    own: Sequence[int],
    rows: Sequence[Mapping],
    null: Sequence[Seen] = (),
    *,
    world: World | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> list[Measured]:
    """Computes all values of a record of clips. `own[i]` is the index in `rows` of the row of clip i's prompt. `null`
    has one clip of the null condition for each row. A metric or an item that no clip's prompt asks for is left out. The
    velocity error needs `world`, which has the speeds; without `world` this error is left out, too."""
    scorer = _Scorer(seed, replicates, world)
    values = _values_of_parts(scorer, seen, own, rows)
    for floor in ALL_FLOORS:
        values += _floor_values(scorer, floor, seen, own, rows, null)
    return values


def truth_scores(
    seen: Sequence[Seen],
    own: Sequence[int],
    rows: Sequence[Mapping],
    *,
    world: World | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> list[Measured]:
    """Computes all scores and errors of ground-truth clips, without floors: the values that a perfect model would have
    with this detector."""
    return _values_of_parts(_Scorer(seed, replicates, world), seen, own, rows)


def detector_errors(truth: Iterable[Mapping]) -> list[Measured]:
    """Selects the errors from the values of a ground-truth record (`truth_scores`), and renames their metrics to those
    of the detector's own error (`DETECTOR`), for comparison with the errors of a model's clips."""
    numbers = ("value", "stderr", "low", "high")  # null in the record where unknown
    return [
        Measured(
            metric=DETECTOR[value["metric"]],
            item=value["item"],
            n=value["n"],
            **{name: math.nan if value[name] is None else value[name] for name in numbers},
        )
        for value in truth
        if value["item"] in ERRORS and value["metric"] in DETECTOR
    ]


def _values_of_parts(scorer, seen, own, rows):
    """Computes the scores and errors over all clips. If some prompts name held-out triples, also computes them over the
    clips of these prompts, and over the clips of all other prompts (`PARTS`)."""
    mine = [rows[index] for index in own]
    judged, soft = judge_all(seen, mine), [scorer.soft(clip, row) for clip, row in zip(seen, mine, strict=True)]
    values = scorer.values(METRIC, judged, soft, mine)
    held_out = np.array([bool(row.get("held_out")) for row in mine])
    for part, chosen in zip(PARTS, (held_out, ~held_out), strict=True):
        if held_out.any() and chosen.any():
            values += scorer.values(f"{METRIC}_{part}", *(_rows(each, chosen) for each in (judged, soft, mine)))
    return values


def _floor_values(scorer, floor, seen, own, rows, null):
    """Computes the scores of clips under one floor, such as frames in reverse order. Only the clips of tasks to which
    `FLOORS` gives this floor are scored."""
    others, asked = other_prompts(rows), []
    clips = list(enumerate(seen)) if floor != NOTHING else [(None, clip) for clip in null]
    owners = own if floor != NOTHING else range(len(null))
    for (n, clip), index in zip(clips, owners, strict=True):
        row = by = rows[index]
        if floor not in FLOORS[row["tag"]] or (floor == OTHER_PROMPTS and others[index] is None):
            continue
        if floor in ORDERS:
            clip = clip.reordered(order_of(floor, len(clip.frames), n))
        elif floor == OTHER_PROMPTS:
            by = rows[others[index]]
        soft = scorer.soft(clip, row, by)
        for item in (FOUND, "frames_right") if floor in ORDERS else (FOUND,):
            soft.pop(item, None)
        asked.append((judge(clip.frames, clip.side, by, DEFAULT), soft, row))
    if not asked:
        return []
    tasks = {row["tag"] for row in rows}
    with_floor = {row["tag"] for _, _, row in asked}
    whole = {OVERALL[name] for name, group in GROUPS.items() if {*group} & tasks <= with_floor}
    values = scorer.values(floor_metric(floor), *map(list, zip(*asked, strict=True)))
    return [value for value in values if value.item not in OVERALL.values() or value.item in whole]


def _rows(each: Sequence, chosen: Bool[np.ndarray, " n"]) -> list:
    return [one for one, kept in zip(each, chosen, strict=True) if kept]


@dataclass(frozen=True)
class _Scorer:
    """Computes the scores of clips of one world, with intervals by bootstrap from `seed` with `replicates`
    resamples."""

    seed: int
    replicates: int
    world: World | None

    def soft(self, clip: Seen, row: Mapping, by: Mapping | None = None) -> dict[str, float]:
        """Returns the soft measures and the velocity error of a clip. `row` is the metadata of the clip's own prompt.

        `by`, if given, is the row of another prompt, by which the clip is judged. For "frames_right" the classes and
        colours come from `by`. For all other measures only the motion comes from `by`, and the class and colour of the
        object that is followed come from `row`: a colour that the clip lacks would score below chance."""
        by = row if by is None else by
        fields = ("motion", "then", "speed")
        asked = [
            {key: value for key, value in mine.items() if key not in fields}
            | {key: it[key] for key in fields if key in it}
            for mine, it in zip(row["include"], by["include"], strict=True)
        ]
        measures = {"frames_right": frames_right(clip.frames, by), **motion_measures(clip.places, {"include": asked})}
        said = next((item["speed"] for item in row["include"] if "speed" in item), None)
        if said and "pixels_a_frame" in measures:
            measures[f"pixels_a_frame_{said}"] = measures["pixels_a_frame"]
        if self.world is None:
            return measures
        return measures | velocity_measures(clip.frames, clip.side, {**row, "include": asked}, self.world)

    def values(
        self, metric: str, judged: Sequence[ClipResult], soft: Sequence[Mapping], rows: Sequence[Mapping]
    ) -> list[Measured]:
        """Returns the values of one metric's items. The clips were judged by the prompts whose metadata `rows` has."""
        found: dict[str, ScoreEstimate] = {}
        for name, tasks in GROUPS.items():
            of_group = [result.as_image() for result in judged if result.metadata["tag"] in tasks]
            if of_group:
                scored = score(of_group, seed=self.seed, replicates=self.replicates, tasks=tasks)
                found |= {OVERALL[name]: scored.overall, **scored.tasks}
        clusters = np.unique([json.dumps(row) for row in rows], return_inverse=True)[1]
        values = {
            item: _measured(metric, item, e.value, e.stderr, e.low, e.high, e.images) for item, e in found.items()
        }
        for place, item in enumerate((*SOFT, *VELOCITY)):
            have = [n for n, measures in enumerate(soft) if item in measures]
            if have:
                each = np.array([soft[n][item] for n in have])
                rng = np.random.default_rng((self.seed, len(TASKS) + place))
                values[item] = _measured(metric, item, *clustered_mean(each, clusters[have], rng, self.replicates))
        return [values[item] for item in ITEMS if item in values]


def _measured(metric, item, value, stderr, low, high, n):
    return Measured(metric=metric, item=item, value=value, stderr=stderr, low=low, high=high, n=n)


def clustered_mean(
    values: Float[np.ndarray, " n"], clusters: np.ndarray, rng: np.random.Generator, replicates: int
) -> tuple[float, float, float, float, int]:
    """Returns (mean, standard error, low and high end of the 95 % interval, number) of values whose clusters are
    independent, by the method of `geneval.rules.score`. The standard error is nan if there is only one cluster."""
    groups = np.unique(clusters, return_inverse=True)[1]
    pairs = np.stack([np.bincount(groups, values), np.bincount(groups)], axis=1)
    mean, many = float(values.mean()), len(pairs)
    residuals = pairs[:, 0] - mean * pairs[:, 1]
    stderr = math.sqrt(many / (many - 1) * float(residuals @ residuals)) / len(values) if many > 1 else math.nan
    low, high = np.percentile(resampled_means(pairs, replicates, rng), PERCENTILES)
    return mean, stderr, float(low), float(high), len(values)
