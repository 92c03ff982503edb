"""GenEval's rules and scores, for any detector's boxes.

Rules: Ghosh, Hajishirzi and Schmidt, "GenEval" (arXiv 2310.11513), as the authors' published scorer applies them.
`Detections` holds the objects that a detector found in an image; `judge` says whether the image shows what its prompt
asks for; `score` averages the judgements. A prompt is a metadata row in the official schema:

    {"tag": "position", "prompt": "a photo of a dog right of a teddy bear",
     "include": [{"class": "teddy bear", "count": 1},
                 {"class": "dog", "count": 1, "position": ["right of", 0]}]}

All `include` items must be met, and all `exclude` items must be absent. Boxes and scores are compared in float32, the
type in which a detector returns them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Int, Real

from rfjax.data.geneval_names import RELATIONS, TASKS
from rfjax.errors import ConfigError
from rfjax.evaluation.intervals import PERCENTILES


@dataclass(frozen=True, kw_only=True)
class GenEvalOptions:
    """The scorer's settings; the defaults are the official ones.

    Raises `ConfigError` on a value outside its range.
    """

    threshold: float = 0.3  # an object counts if its score is above this
    counting_threshold: float = 0.9  # the threshold of the counting task
    max_objects: int = 16  # only this many of the most confident objects of a class count
    max_overlap: float = 1.0  # below 1: an object is dropped if its IoU with a kept object reaches this
    position_threshold: float = 0.1  # the part of an offset that is ignored, as a share of the boxes' summed sizes

    def __post_init__(self):
        for name, low, high in (
            ("threshold", 0, 1),
            ("counting_threshold", 0, 1),
            ("max_objects", 1, math.inf),
            ("max_overlap", 0, 1),
            ("position_threshold", 0, math.inf),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                allowed = f"in [{low}, {high}]" if math.isfinite(high) else f"at least {low}"
                raise ConfigError(f"GenEval option {name} is {value}; it must be {allowed}")


DEFAULT_OPTIONS = GenEvalOptions()


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects that a detector found in one image, by class name.

    `boxes` has rows [x1, y1, x2, y2, score] in any order, in pixels (for clips, in the unit of the frames' side) with y
    downwards, with scores in [0, 1]. `colors` has a colour name for each box of the classes whose colours are known.
    Raises `ConfigError` for boxes that have another shape, are not finite or have their corners exchanged, for scores
    outside [0, 1], and for a class that has colours but not one for each box.
    """

    boxes: Mapping[str, Float32[np.ndarray, "objects 5"]]
    colors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self):
        for name, boxes in self.boxes.items():
            if boxes.ndim != 2 or boxes.shape[1] != 5:
                raise ConfigError(f"boxes of {name!r} have shape {boxes.shape}; it must be [objects, 5]")
            for row, message in (
                (~np.isfinite(boxes).all(1), "has a number that is not finite; drop such boxes"),
                ((boxes[:, 2:4] < boxes[:, :2]).any(1), "has x2 < x1 or y2 < y1; give the upper left corner first"),
                ((boxes[:, 4] < 0) | (boxes[:, 4] > 1), "has a score outside [0, 1]; give a probability"),
            ):
                if row.any():
                    index = int(np.argmax(row))
                    raise ConfigError(f"box {index} of {name!r}, {boxes[index].tolist()}, {message}")
        for name, colors in self.colors.items():
            found = len(self.boxes.get(name, ()))
            if len(colors) != found:
                raise ConfigError(f"{len(colors)} colors for {found} boxes of {name!r}; give one per box, in order")

    @classmethod
    def from_lists(
        cls, boxes: Mapping[str, Sequence[Sequence[int | float]]], colors: Mapping[str, Sequence[str]] | None = None
    ) -> Detections:
        """Makes `Detections` from plain lists, as a detections file has them."""
        arrays = {}
        for name, rows in boxes.items():
            bad = next((row for row in rows if len(row) != 5), None)
            if bad is not None:
                raise ConfigError(f"a box of {name!r} is {list(bad)}; it must be [x1, y1, x2, y2, score]")
            try:
                with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, and is refused
                    arrays[name] = np.asarray(rows, np.float32).reshape(-1, 5)
            except OverflowError:
                raise ConfigError(f"a box of {name!r} has a number too large for float32; drop it") from None
        return cls(arrays, {name: tuple(values) for name, values in (colors or {}).items()})


@dataclass(frozen=True, eq=False)
class ImageResult:
    """The judgement of one image: its prompt's row, and the boxes that counted, best first."""

    metadata: Mapping[str, object]
    correct: bool
    reason: str  # a line for each unmet item; empty if correct
    kept: Mapping[str, Float32[np.ndarray, "kept 5"]]


def keep(
    detections: Detections, tag: str, options: GenEvalOptions = DEFAULT_OPTIONS
) -> dict[str, Int[np.ndarray, " kept"]]:
    """Returns {class: the indices of the boxes that count, most confident first}.

    An object counts if its score is strictly above the task's threshold. The `max_objects` most confident are kept. If
    `max_overlap` is not 1, greedy suppression then drops overlaps. Among equal scores the later box comes first (a
    stable ascending sort, read backwards).
    """
    threshold = np.float32(options.counting_threshold if tag == "counting" else options.threshold)
    kept = {}
    for name, boxes in detections.boxes.items():
        order = np.argsort(boxes[:, 4], kind="stable")[::-1]
        order = order[boxes[order, 4] > threshold][: options.max_objects]
        if options.max_overlap != 1:
            order = _without_overlaps(boxes, order, options.max_overlap)
        if len(order):
            kept[name] = order
    return kept


def relation(
    a: Float32[np.ndarray, " values"], b: Float32[np.ndarray, " values"], position_threshold: float = 0.1
) -> tuple[str, ...]:
    """Returns where box `a` lies as seen from box `b`: none, one or two of `RELATIONS`.

    The offset of the centres is shortened along each axis by `position_threshold` times the boxes' summed sizes, then
    divided by the length of the offset before shortening. A component beyond one half in size gives a relation, so a
    diagonal offset can give two.
    """
    corners_a = np.asarray(a, np.float32)[:4].reshape(2, 2)
    corners_b = np.asarray(b, np.float32)[:4].reshape(2, 2)
    offset = corners_a.mean(0) - corners_b.mean(0)
    sizes = np.abs(corners_a[1] - corners_a[0]) + np.abs(corners_b[1] - corners_b[0])
    beyond = np.sign(offset) * np.maximum(np.abs(offset) - position_threshold * sizes, 0)
    if (np.abs(beyond) < 1e-3).all():
        return ()
    dx, dy = beyond / np.linalg.norm(offset)
    return tuple(
        name for name, holds in zip(RELATIONS, (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5), strict=True) if holds
    )


def judge(
    detections: Detections, metadata: Mapping[str, object], options: GenEvalOptions = DEFAULT_OPTIONS
) -> ImageResult:
    """Judges whether the image shows what its prompt's row asks for, and gives the reasons if not.

    For an `include` item, the `count` most confident objects of its class must have the right colour and position; less
    confident objects cannot replace them. More objects than asked for are not a fault, unless an `exclude` item forbids
    them. Raises `ConfigError` if the row names the colour of a class that has boxes but no colours.
    """
    kept = keep(detections, metadata["tag"], options)
    none = np.zeros(0, int)
    reasons, groups = [], []  # groups: the boxes that met each item, None for an unmet item
    for item in metadata.get("include", ()):
        chosen = kept.get(item["class"], none)[: item["count"]]
        reason = _unmet(item, chosen, detections, groups, options)
        groups.append(None if reason else [detections.boxes[item["class"]][index] for index in chosen])
        if reason:
            reasons.append(reason)
    for item in metadata.get("exclude", ()):
        found = len(kept.get(item["class"], none))
        if found >= item["count"]:
            reasons.append(f"wanted fewer than {item['count']} of {item['class']}, saw {found}")
    boxes = {name: detections.boxes[name][order] for name, order in kept.items()}
    return ImageResult(metadata, not reasons, "\n".join(reasons), boxes)


def _unmet(item, chosen, detections, groups, options):
    """Says why the chosen objects do not have the number, the colour or the position that an `include` item asks for;
    returns "" if they have all three."""
    name, count = item["class"], item["count"]
    if "color" in item and len(detections.boxes.get(name, ())) and name not in detections.colors:
        raise ConfigError(f"no colors for {name!r}, whose prompt asks for {item['color']}; give one per box")
    if len(chosen) < count:
        return f"wanted {count} of {name}, saw {len(chosen)}"
    if "color" in item:
        seen = [detections.colors[name][index] for index in chosen]
        if seen.count(item["color"]) < count:
            return f"wanted {count} {item['color']} of {name}, saw {', '.join(seen)}"
    if "position" in item:
        wanted, target = item["position"]
        if groups[target] is None:
            return f"wanted {name} {wanted} a target that was not met"
        for index in chosen:
            for box in groups[target]:
                found = relation(detections.boxes[name][index], box, options.position_threshold)
                if wanted not in found:
                    return f"wanted {name} {wanted} its target, saw it {' and '.join(found) or 'nowhere certain'}"
    return ""


def _without_overlaps(boxes, order, max_overlap):
    """Returns `order` without the objects whose intersection over union with a kept, more confident object is at least
    `max_overlap`."""
    kept = []
    for index in order:
        if all(_overlap(boxes[index], boxes[other]) < max_overlap for other in kept):
            kept.append(index)
    return np.array(kept, int)


def _overlap(a, b):
    """The intersection over union of two boxes. A box ends on the last pixel that it covers, hence the + 1."""

    def area(low, high):
        return np.prod(np.maximum(high - low + 1, 0))

    shared = area(np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4]))
    return shared / (area(a[:2], a[2:4]) + area(b[:2], b[2:4]) - shared)


@dataclass(frozen=True)
class ScoreEstimate:
    """A share of correct images with its standard error and 95 % interval, clustered by prompt.

    The standard error is nan if there is only one prompt.
    """

    value: float
    stderr: float
    low: float
    high: float
    correct: int
    images: int
    prompts: int


@dataclass(frozen=True)
class GenEvalScore:
    """Scores of the tasks that have images, in the official order, and over all tasks.

    `overall` is the unweighted mean over these tasks. It is GenEval's headline only if `missing_tasks` is empty, so it
    must not be shown without `missing_tasks`. `correct_images` and `correct_prompts` (a prompt is correct if any of its
    images is) are plain fractions over all tasks.
    """

    tasks: Mapping[str, ScoreEstimate]
    overall: ScoreEstimate
    missing_tasks: tuple[str, ...]
    correct_images: float
    correct_prompts: float


def score(
    results: Sequence[ImageResult], *, seed: int = 0, replicates: int = 10_000, tasks: Sequence[str] = TASKS
) -> GenEvalScore:
    """Scores judged images, given in any order. `tasks` are all tasks of the benchmark, in the benchmark's order.

    The images of a prompt are not independent, so the uncertainty is over prompts. Prompts (rows of equal metadata) are
    drawn with replacement within each task, `replicates` times, and the 2.5 and 97.5 percentiles of the resampled means
    bound the interval. The standard error is the cluster-robust error of a ratio over G prompts,
    sqrt(G / (G - 1) * sum of squared residual sums) / images.
    If every image of a task has the same outcome, the interval has no width.
    Raises `ConfigError` for no images and for a tag that is not a task.
    """
    if not results:
        raise ConfigError("there are no images to score; give GenEval at least one")
    clusters: dict[str, dict[str, list[bool]]] = {}
    for result in results:
        tag = result.metadata["tag"]
        if tag not in tasks:
            raise ConfigError(f"unknown GenEval tag {tag!r}; it must be one of {', '.join(tasks)}")
        clusters.setdefault(tag, {}).setdefault(json.dumps(result.metadata), []).append(result.correct)

    scored, resampled = {}, []
    for index, tag in enumerate(tasks):
        if tag in clusters:
            counts = np.array([(sum(images), len(images)) for images in clusters[tag].values()])
            # each task has its generator, so that its interval does not depend on the other tasks
            means = resampled_means(counts, replicates, np.random.default_rng((seed, index)))
            scored[tag] = _estimate(counts, means)
            resampled.append(means)
    low, high = np.percentile(np.mean(resampled, axis=0), PERCENTILES)
    overall = ScoreEstimate(
        value=float(np.mean([task.value for task in scored.values()])),
        stderr=math.sqrt(sum(task.stderr**2 for task in scored.values())) / len(scored),
        low=float(low),
        high=float(high),
        correct=sum(task.correct for task in scored.values()),
        images=sum(task.images for task in scored.values()),
        prompts=sum(task.prompts for task in scored.values()),
    )
    return GenEvalScore(
        tasks=scored,
        overall=overall,
        missing_tasks=tuple(tag for tag in tasks if tag not in scored),
        correct_images=overall.correct / overall.images,
        correct_prompts=float(np.mean([any(images) for task in clusters.values() for images in task.values()])),
    )


def resampled_means(
    counts: Real[np.ndarray, "prompts 2"], replicates: int, rng: np.random.Generator
) -> Float[np.ndarray, " replicates"]:
    """Draws prompts with replacement, `replicates` times; returns the mean over images of each resample. `counts` has
    each prompt's pair (sum over its images, number of its images).

    Prompts with equal pairs are interchangeable. So only the number of times that each pair occurs in a resample is
    drawn. This is exact, needs little memory, and does not depend on the prompts' order.
    """
    pairs, multiplicity = np.unique(counts, axis=0, return_counts=True)
    draws = rng.multinomial(len(counts), multiplicity / len(counts), size=replicates)
    return (draws @ pairs[:, 0]) / (draws @ pairs[:, 1])


def _estimate(counts, means):
    correct, images = (int(total) for total in counts.sum(0))
    value, prompts = correct / images, len(counts)
    residuals = np.sort(counts[:, 0] - value * counts[:, 1])  # sorted: the sum ignores the prompts' order
    stderr = math.sqrt(prompts / (prompts - 1) * float(residuals @ residuals)) / images if prompts > 1 else math.nan
    low, high = np.percentile(means, PERCENTILES)
    return ScoreEstimate(value, stderr, float(low), float(high), correct, images, prompts)
