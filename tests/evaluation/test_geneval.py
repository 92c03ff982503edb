"""GenEval's rules by hand-computed cases and against a slow second implementation; scores too."""

import dataclasses
import math

import numpy as np
import pytest

from rfjax.data.geneval_names import RELATIONS, TASKS
from rfjax.errors import ConfigError
from rfjax.evaluation.geneval.rules import (
    Detections,
    GenEvalOptions,
    ImageResult,
    judge,
    keep,
    relation,
    score,
)


def row(tag, *include, exclude=()):
    metadata = {"tag": tag, "include": list(include), "prompt": f"a {tag}"}
    return {**metadata, "exclude": list(exclude)} if exclude else metadata


def item(name, count=1, **more):
    return {"class": name, "count": count, **more}


def squares(*scores, start=0.0):
    """Boxes 10 wide, 20 apart along x, with these scores."""
    return [[start + 20 * i, 0, start + 20 * i + 10, 10, score] for i, score in enumerate(scores)]


def correct(metadata, boxes, colors=None, **options):
    return judge(Detections.from_lists(boxes, colors), metadata, GenEvalOptions(**options)).correct


BENCH = row("single_object", item("bench"))
TWO_CLOCKS = row("counting", item("clock", 2), exclude=[item("clock", 3)])


@pytest.mark.parametrize(
    "value, tag, counts",
    [
        (0.3, "single_object", False),  # strict
        (0.30000001, "single_object", False),  # equal to 0.3 in float32, above it in float64
        (0.3000001, "single_object", True),
        (0.9, "counting", False),
        (0.91, "counting", True),
        (0.5, "counting", False),
        (0.5, "two_object", True),
    ],
)
def test_threshold(value, tag, counts):
    assert correct(row(tag, item("bench")), {"bench": squares(value)}) is counts


def test_absent_class_and_other_classes():
    assert not correct(BENCH, {})
    assert not correct(BENCH, {"bench": []})
    assert not correct(BENCH, {"chair": squares(0.9)})
    assert correct(BENCH, {"bench": squares(0.9, 0.8, 0.7), "chair": squares(0.9)})  # more is no fault


@pytest.mark.parametrize("found, expected", [(1, False), (2, True), (3, False)])
def test_counting_is_exact(found, expected):
    boxes = {"clock": squares(*[0.95] * found, 0.9, 0.4)}  # the last two are below the threshold
    assert correct(TWO_CLOCKS, boxes) is expected


def test_at_most_sixteen_are_kept_and_the_most_confident():
    scores = [0.5] + [0.6 + 0.01 * i for i in range(16)]
    kept = keep(Detections.from_lists({"cow": squares(*scores)}), "two_object")["cow"]
    assert kept.tolist() == list(range(16, 0, -1))
    seventeen = row("counting", item("cow", 16), exclude=[item("cow", 17)])
    assert correct(seventeen, {"cow": squares(*[0.95] * 17)})  # the seventeenth is never seen
    assert not correct(seventeen, {"cow": squares(*[0.95] * 17)}, max_objects=17)


def test_later_of_equal_scores_comes_first():
    detections = Detections.from_lists({"cow": squares(0.5, 0.7, 0.5, 0.7)})
    assert keep(detections, "two_object")["cow"].tolist() == [3, 1, 2, 0]


def test_overlaps_are_dropped_only_when_asked_and_after_the_limit():
    # 10 x 10 boxes one pixel apart: intersection 10 x 11, union 12 x 11 with the last pixel counted
    close = [[0, 0, 10, 10, 0.9], [1, 0, 11, 10, 0.8], [50, 0, 60, 10, 0.7]]
    detections = Detections.from_lists({"cow": close})
    iou = 110 / 132
    for max_overlap, expected in ((1.0, [0, 1, 2]), (iou + 0.01, [0, 1, 2]), (iou - 0.01, [0, 2])):
        assert keep(detections, "colors", GenEvalOptions(max_overlap=max_overlap))["cow"].tolist() == expected
    # the two most confident are one object: the third is cut off before overlaps are looked at
    options = GenEvalOptions(max_overlap=0.5, max_objects=2)
    assert keep(detections, "colors", options)["cow"].tolist() == [0]
    duplicates = {"clock": [[0, 0, 10, 10, 0.95]] * 2}
    assert correct(TWO_CLOCKS, duplicates) and not correct(TWO_CLOCKS, duplicates, max_overlap=0.9)


def test_only_the_most_confident_objects_have_their_colour_looked_at():
    red = row("colors", item("car", color="red"))
    assert correct(red, {"car": squares(0.9, 0.8)}, {"car": ["red", "blue"]})
    assert not correct(red, {"car": squares(0.8, 0.9)}, {"car": ["red", "blue"]})
    two = row("colors", item("car", 2, color="red"))
    assert not correct(two, {"car": squares(0.9, 0.8, 0.7)}, {"car": ["red", "blue", "red"]})
    assert correct(two, {"car": squares(0.7, 0.9, 0.8)}, {"car": ["blue", "red", "red"]})


def test_missing_or_misaligned_colours_are_refused():
    red = row("colors", item("car", color="red"))
    with pytest.raises(ConfigError, match="no colors for 'car'"):
        correct(red, {"car": squares(0.9)})
    assert not correct(red, {"car": []})  # nothing to colour
    with pytest.raises(ConfigError, match="1 colors for 2 boxes of 'car'"):
        Detections.from_lists({"car": squares(0.9, 0.8)}, {"car": ["red"]})


def test_position_takes_the_target_first():
    metadata = row("position", item("teddy bear"), item("dog", position=["right of", 0]))
    left, right = [[0, 0, 10, 10, 0.9]], [[50, 0, 60, 10, 0.9]]
    assert correct(metadata, {"teddy bear": left, "dog": right})
    assert not correct(metadata, {"teddy bear": right, "dog": left})
    failed = judge(Detections.from_lists({"dog": right}), metadata)
    assert not failed.correct and len(failed.reason.splitlines()) == 2  # no bear; so no target either


def test_position_wants_every_pair():
    metadata = row("position", item("cup", 2), item("dog", position=["right of", 0]))
    cups, dog = squares(0.9, 0.8), [[100, 0, 110, 10, 0.9]]
    assert correct(metadata, {"cup": cups, "dog": dog})
    assert not correct(metadata, {"cup": [cups[0], [200, 0, 210, 10, 0.8]], "dog": dog})
    # a third, less confident cup to the right of the dog is not looked at
    assert correct(metadata, {"cup": cups + [[200, 0, 210, 10, 0.5]], "dog": dog})


def test_two_items_of_one_class_take_the_same_objects():
    metadata = row("color_attr", item("car", color="red"), item("car", color="blue"))
    boxes = {"car": squares(0.9, 0.8)}
    assert not correct(metadata, boxes, {"car": ["red", "blue"]})  # both look at the first car
    again = row("two_object", item("car"), item("car"))
    assert correct(again, {"car": squares(0.9)})


@pytest.mark.parametrize(
    "offset, expected",
    [
        ((100, 0), {"right of"}),
        ((-100, 0), {"left of"}),
        ((0, 100), {"below"}),  # y points downwards
        ((0, -100), {"above"}),
        ((100, 100), {"right of", "below"}),  # (98, 98) / 141.4: both beyond one half
        ((100, 40), {"right of"}),  # (98, 38) / 107.7 = 0.91, 0.35
        ((0, 0), set()),
        ((2, -2), set()),  # within a tenth of the summed sizes, 0.1 * 20
        ((3, 0), set()),  # (3 - 2) / 3 = 1/3: the length is that before shortening
        ((5, 0), {"right of"}),  # (5 - 2) / 5 = 0.6
    ],
)
def test_relation(offset, expected):
    box = np.array([0, 0, 10, 10, 0.9], np.float32)
    moved = box + np.array([*offset, *offset, 0], np.float32)
    assert set(relation(moved, box)) == expected


def test_reasons_name_each_unmet_item_once():
    metadata = row("counting", item("cow", 2), item("dog"), exclude=[item("cat", 1)])
    result = judge(Detections.from_lists({"cow": squares(0.95), "cat": squares(0.95)}), metadata)
    lines = result.reason.splitlines()
    assert len(lines) == 3 and all(name in line for name, line in zip(("cow", "dog", "cat"), lines, strict=True))
    assert judge(Detections.from_lists({"bench": squares(0.9)}), BENCH).reason == ""


def test_kept_boxes_are_reported_best_first_without_the_others():
    detections = Detections.from_lists({"bench": squares(0.2, 0.5, 0.8), "cow": squares(0.1)})
    kept = judge(detections, BENCH).kept
    assert list(kept) == ["bench"] and kept["bench"][:, 4].tolist() == pytest.approx([0.8, 0.5])


@pytest.mark.parametrize(
    "box, message",
    [
        ([0, 0, 10, 10], "must be .x1, y1, x2, y2, score"),
        ([0, 0, math.nan, 10, 0.5], "not finite"),
        ([0, 0, 1e39, 10, 0.5], "not finite"),
        ([0, 0, 10**400, 10, 0.5], "too large"),
        ([11, 0, 10, 10, 0.5], "x2 < x1"),
        ([0, 11, 10, 10, 0.5], "y2 < y1"),
        ([0, 0, 10, 10, 50], "outside"),
    ],
)
def test_bad_boxes_are_refused(box, message):
    with pytest.raises(ConfigError, match=message):
        Detections.from_lists({"bench": [box]})


@pytest.mark.parametrize("option", [{"threshold": 1.5}, {"max_objects": 0}, {"max_overlap": math.nan}])
def test_bad_options_are_refused(option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        GenEvalOptions(**option)


def slow_judge(boxes, colors, metadata, options):
    """The rules once more, object by object, in plain Python."""
    limit = np.float32(options.counting_threshold if metadata["tag"] == "counting" else options.threshold)
    best = {}
    for name, rows in boxes.items():
        objects = [(np.float32(r[4]), i) for i, r in enumerate(rows) if np.float32(r[4]) > limit]
        objects = sorted(objects, reverse=True)[: options.max_objects]
        while options.max_overlap != 1:
            clash = [
                later
                for n, later in enumerate(objects)
                if any(slow_iou(rows[later[1]], rows[o[1]]) >= options.max_overlap for o in objects[:n])
            ]
            if not clash:
                break
            objects.remove(clash[0])
        best[name] = [i for _, i in objects]
    groups, right = [], True
    for want in metadata.get("include", []):
        name, count = want["class"], want["count"]
        group = best.get(name, [])[:count]
        ok = len(group) == count
        if ok and "color" in want:
            ok = all(colors[name][i] == want["color"] for i in group)
        if ok and "position" in want:
            where, target = want["position"]
            ok = groups[target] is not None and all(
                where in slow_relation(boxes[name][i], other, options.position_threshold)
                for i in group
                for other in groups[target]
            )
        groups.append([boxes[name][i] for i in group] if ok else None)
        right = right and ok
    for unwanted in metadata.get("exclude", []):
        right = right and len(best.get(unwanted["class"], [])) < unwanted["count"]
    return right


def slow_iou(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + 1, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + 1, 0)
    sizes = [(r[2] - r[0] + 1) * (r[3] - r[1] + 1) for r in (a, b)]
    return width * height / (sum(sizes) - width * height)


def slow_relation(a, b, threshold):
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    length = math.hypot(dx, dy)
    names = set()
    for offset, size, low, high in (
        (dx, a[2] - a[0] + b[2] - b[0], "left of", "right of"),
        (dy, a[3] - a[1] + b[3] - b[1], "above", "below"),
    ):
        shortened = abs(offset) - threshold * size
        if shortened > 0 and shortened / length > 0.5:
            names.add(low if offset < 0 else high)
    return names


def test_rules_agree_with_the_slow_ones_on_random_images():
    rng = np.random.default_rng(3)
    names, hues, outcomes = ["a", "b", "c"], ["red", "blue"], []
    for _ in range(3000):
        boxes, colors = {}, {}
        for name in names:
            n = rng.choice([0, 1, 1, 2, 3, 18])
            corner, size = rng.uniform(0, 20, (n, 2)), rng.uniform(0, 9, (n, 2))
            scores = rng.choice([0.1, 0.3, 0.31, 0.6, 0.9, 0.91, 0.99], (n, 1))
            boxes[name] = np.hstack([corner, corner + size, scores]).tolist()
            colors[name] = rng.choice(hues, n).tolist()
        include = [item(str(rng.choice(names)), int(rng.choice([1, 1, 2]))) for _ in range(rng.integers(1, 4))]
        for index, want in enumerate(include):
            if rng.random() < 0.3:
                want["color"] = str(rng.choice(hues))
            if index and rng.random() < 0.6:
                want["position"] = [str(rng.choice(RELATIONS)), int(rng.integers(index))]
        exclude = [item(str(rng.choice(names)), int(rng.integers(1, 4)))] if rng.random() < 0.3 else []
        metadata = row(str(rng.choice(TASKS)), *include, exclude=exclude)
        options = GenEvalOptions(
            max_overlap=float(rng.choice([1.0, 0.4])), max_objects=int(rng.choice([2, 16])), position_threshold=0.1
        )
        result = judge(Detections.from_lists(boxes, colors), metadata, options)
        assert result.correct == slow_judge(boxes, colors, metadata, options), (boxes, colors, metadata, options)
        outcomes.append(result.correct)
    assert 0.05 < np.mean(outcomes) < 0.95  # both outcomes were tried


def results(outcomes):
    """Judged images from {tag: [[outcome per image] per prompt]}."""
    return [
        ImageResult({"tag": tag, "prompt": f"{tag} {index}", "include": []}, bool(outcome), "", {})
        for tag, prompts in outcomes.items()
        for index, images in enumerate(prompts)
        for outcome in images
    ]


def test_overall_is_the_unweighted_mean_of_tasks_in_official_order():
    outcome = score(results({"counting": [[0, 0]] * 30, "single_object": [[1, 1], [1, 0]], "colors": [[1, 0]]}))
    assert list(outcome.tasks) == ["single_object", "counting", "colors"]
    assert [task.value for task in outcome.tasks.values()] == [0.75, 0.0, 0.5]
    assert outcome.overall.value == pytest.approx((0.75 + 0 + 0.5) / 3)
    assert outcome.missing_tasks == ("two_object", "position", "color_attr")
    assert (outcome.overall.images, outcome.overall.prompts) == (66, 33)
    assert outcome.correct_images == 4 / 66
    assert outcome.correct_prompts == 3 / 33  # any image of the prompt
    assert score(results({tag: [[1], [0]] for tag in TASKS})).missing_tasks == ()


def test_standard_error_by_hand():
    # totals 2/2, 1/2, 0/2, 0/2 correct: mean 3/8, residual sums 1.25, .25, -.75, -.75
    task = score(results({"counting": [[1, 1], [1, 0], [0, 0], [0, 0]]})).tasks["counting"]
    squared = 1.25**2 + 0.25**2 + 2 * 0.75**2
    assert task.stderr == pytest.approx(math.sqrt(4 / 3 * squared) / 8)
    assert math.isnan(score(results({"counting": [[1, 0]]})).tasks["counting"].stderr)
    both = score(results({"counting": [[1, 1], [1, 0], [0, 0], [0, 0]], "colors": [[1], [0]]}))
    assert both.overall.stderr == pytest.approx(math.hypot(task.stderr, both.tasks["colors"].stderr) / 2)


def test_images_of_one_prompt_are_not_independent():
    rng = np.random.default_rng(0)
    prompts = rng.random(60) < 0.5
    together = score(results({"position": [[p] * 4 for p in prompts]})).overall
    single = score(results({"position": [[p] for p in prompts]})).overall
    assert together.stderr == pytest.approx(single.stderr)
    assert together.high - together.low == pytest.approx(single.high - single.low, rel=0.05)


def test_bootstrap_agrees_with_resampling_prompts_one_by_one():
    rng = np.random.default_rng(1)
    outcomes = {tag: [(rng.random(rng.integers(1, 5)) < rng.random()) for _ in range(12)] for tag in TASKS[:2]}
    outcome = score(results(outcomes), replicates=20_000)
    means = np.zeros((4000, 2))
    for task, prompts in enumerate(outcomes.values()):
        for replicate in range(len(means)):
            drawn = [prompts[i] for i in rng.integers(len(prompts), size=len(prompts))]
            means[replicate, task] = np.concatenate(drawn).mean()
    for estimate, slow in ((outcome.overall, means.mean(1)), (outcome.tasks[TASKS[1]], means[:, 1])):
        assert [estimate.low, estimate.high] == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=0.02)
        assert estimate.stderr == pytest.approx(slow.std(), rel=0.15)


def test_interval_covers_the_truth():
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        chances = rng.choice([0.1, 0.5, 0.9], size=(2, 50, 1))
        images = rng.random((2, 50, 4)) < chances
        overall = score(results(dict(zip(TASKS[:2], images, strict=True))), seed=trial, replicates=400).overall
        covered += overall.low <= 0.5 <= overall.high
    assert 0.88 < covered / 200 < 0.99


def test_score_does_not_depend_on_the_order_of_images_and_repeats_itself():
    rng = np.random.default_rng(2)
    images = results({tag: rng.random((9, 4)) < 0.4 for tag in TASKS})
    first = dataclasses.asdict(score(images, seed=7))
    shuffled = [images[i] for i in rng.permutation(len(images))]
    assert dataclasses.asdict(score(images, seed=7)) == first == dataclasses.asdict(score(shuffled, seed=7))
    assert dataclasses.asdict(score(images, seed=8)) != first


def test_no_images_and_unknown_tags_are_refused():
    with pytest.raises(ConfigError, match="no images"):
        score([])
    with pytest.raises(ConfigError, match="unknown GenEval tag 'count'"):
        score(results({"count": [[1]]}))
