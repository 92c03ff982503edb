"""Temporal GenEval of ground truth: the ceiling, the floors, the soft measures, and the command's files."""

import json

import numpy as np
import pytest

from rfjax.config import DataConfig
from rfjax.data.corpus import load_corpus
from rfjax.data.motion_worlds import TASKS, WORLDS
from rfjax.errors import ConfigError
from rfjax.evaluation.detectors.clips import detect_clips
from rfjax.evaluation.geneval.rules import Detections, score
from rfjax.evaluation.temporal import files, floors, metadata
from rfjax.evaluation.temporal.rules import judge
from rfjax.evaluation.temporal.soft import centroids, soft_measures

CASES = [("first", 4, 16), ("full", 8, 16), ("full", 13, 20)]
SAMPLES = 2


@pytest.fixture(scope="module", params=CASES, ids=["first", "full", "full-13-frames-20-pixels"])
def truth(request, tmp_path_factory):
    """(world, rows, clips, what was found, the files) of ground truth, two clips of each prompt."""
    world, frames, size = request.param
    corpus = load_corpus(DataConfig(corpus="motion", world=world, frames=frames, image_size=size), 0)
    rows = corpus.evaluation_prompts(12, 0)
    clips = np.stack([corpus.render_prompt(row, SAMPLES * i + j) for i, row in enumerate(rows) for j in range(SAMPLES)])
    found = detect_clips(clips)
    folder = tmp_path_factory.mktemp("temporal")
    write(folder / "metadata.jsonl", rows)
    numbered = [
        {"prompt_index": n // SAMPLES, "sample": n % SAMPLES, "size": size, "frames": clip}
        for n, clip in enumerate(found)
    ]
    write(folder / "clips.jsonl", numbered)
    return world, rows, clips, found, folder, size


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def score_folder(folder, **options):
    return files.score_files(folder / "metadata.jsonl", folder / "clips.jsonl", folder / "results.jsonl", **options)


def test_ground_truth_is_right_and_every_floor_is_below(truth):
    """Catches a clause that the corpus breaks, a detector that loses a shape, and a floor as high as the truth."""
    world, rows, _, _, folder, _ = truth
    summary = score_folder(folder)
    scores = {task: e["value"] for group in summary["groups"].values() for task, e in group["tasks"].items()}
    assert set(scores) == set(WORLDS[world].tasks)
    assert min(scores.values()) >= 0.98
    for task in scores:
        below = summary["floors"][task]
        assert set(below) == set(floors.FLOORS[task]) - {floors.NOTHING}
        assert max(below.values()) <= 0.25
        assert min(summary["clauses"][task].values()) >= 0.98
    assert (
        summary["groups"]["moving"]["overall"]["images"] + summary["groups"]["still"]["overall"]["images"]
        == len(rows) * SAMPLES
    )
    text = files.summary_text(summary)
    assert "all moving" in text and "first_held" in text
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len(lines) == len(rows) * SAMPLES and all(line["correct"] == all(line["clauses"].values()) for line in lines)


def test_the_fields_of_tasks_are_those_of_the_corpus(truth):
    """Catches a table of fields that lets a task's tag contradict them."""
    for row in truth[1]:
        further = {key for item in row["include"] for key in item} - {"class", "count", "color", "motion"}
        assert further == set(metadata.TASK_FIELDS[row["tag"]])
    assert set(metadata.TASK_FIELDS) == set(TASKS)


def test_intervals_are_clustered_by_prompt(truth):
    """Catches clips that are counted as independent: here all clips of a prompt are wrong together."""
    world, rows, _, found, folder, size = truth
    broken = [
        {"prompt_index": n // SAMPLES, "sample": n % SAMPLES, "size": size, "frames": clip}
        for n, clip in enumerate(found)
    ]
    for row in broken:
        if row["prompt_index"] % 3 == 0:
            row["frames"] = [{"detections": {}, "colors": {}}] * len(row["frames"])
    write(folder / "clips.jsonl", broken)
    estimate = score_folder(folder)["groups"]["still"]["tasks"]["still"]
    assert estimate["value"] == pytest.approx(2 / 3) and estimate["prompts"] == 12
    # 12 prompts, of which 4 are wrong: the standard error of a mean over prompts, by hand
    assert estimate["stderr"] == pytest.approx(np.sqrt(2 / 3 * 1 / 3 / 11))


def test_floors_are_asked_where_they_can_be_fallen_below():
    """Catches a floor of a still clip, which no order of frames changes, and of a bounce backwards."""
    for task in TASKS:
        asked = set(floors.FLOORS[task])
        assert {floors.OTHER_PROMPTS, floors.NOTHING} <= asked
        assert ("reversed" in asked) == (task not in ("still", "position", "bounce"))
        assert ("first_held" in asked) == ("shuffled" in asked) == (task not in ("still", "position"))
    assert sorted(sum(floors.GROUPS.values(), ())) == sorted(TASKS)


def test_orders_of_frames():
    """Catches a shuffle that leaves clips as they are, or makes some of them backwards, or is one for all."""
    assert floors.order_of("reversed", 4, 0).tolist() == [3, 2, 1, 0]
    assert floors.order_of("first_held", 4, 0).tolist() == [0, 0, 0, 0]
    orders = [floors.order_of("shuffled", 4, clip).tolist() for clip in range(500)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) == 22  # 4! without the order and its reverse
    assert orders == [floors.order_of("shuffled", 4, clip).tolist() for clip in range(500)]
    assert floors.order_of("shuffled", 2, 0).tolist() == [1, 0]


def test_other_prompts_are_of_the_task_and_other():
    rows = [{"tag": tag, "prompt": prompt} for tag, prompt in ("aX", "aX", "aY", "bX", "cX", "cZ")]
    assert floors.other_prompts(rows) == [2, 2, 0, None, 5, 4]


def test_soft_measures_of_ground_truth_are_its_velocity(truth):
    """Catches pixels a clip for pixels a frame, a sign, and a centroid of the wrong colour; backwards they turn."""
    _, rows, clips, found, _, size = truth
    checked = 0
    for n in range(0, len(clips), 3):
        clip, row = clips[n], rows[n // SAMPLES]
        frames = [Detections.from_lists(frame["detections"], frame["colors"]) for frame in found[n]]
        soft = soft_measures(clip, frames, row)
        assert soft["frames_right"] == 1.0
        if row["tag"] in ("still", "position", "change"):
            assert set(soft) == {"frames_right"}
            continue
        assert soft["direction_right"] == 1.0
        back = soft_measures(clip[::-1], frames[::-1], row)
        if row["tag"] in ("motion", "speed", "motion_binding"):
            checked += 1
            assert back["direction_right"] == 0.0
            assert back["pixels_a_frame"] == pytest.approx(-soft["pixels_a_frame"], abs=1e-6)
            slow = row["include"][0].get("speed")
            if slow:
                low, high = (np.array(getattr(WORLDS[truth[0]], slow)) * size / 16 / (len(clip) - 1)).tolist()
                assert low - 0.1 < soft["pixels_a_frame"] < high + 0.1
        held = soft_measures(np.repeat(clip[:1], len(clip), axis=0), frames, row)
        assert held["direction_right"] == 0.0 and held["pixels_a_frame"] == pytest.approx(0.0)
    assert checked >= 12


def test_a_colour_that_is_not_there_has_not_gone():
    grey = np.full((4, 16, 16, 3), 0.2)
    assert np.isnan(centroids(grey, "red")).all()
    row = {"tag": "motion", "include": [{"class": "square", "count": 1, "color": "red", "motion": "left"}]}
    empty = [Detections.from_lists({}, {})] * 4
    assert soft_measures(grey, empty, row) == {"frames_right": 0.0, "direction_right": 0.0, "pixels_a_frame": 0.0}


def test_noise_that_hides_no_object_leaves_the_score(truth):
    """Catches a detector or rules that need exact pixels, which no model makes."""
    _, rows, clips, _, _, size = truth
    noisy = np.clip(clips + np.random.default_rng(0).normal(0, 0.03, clips.shape), 0, 1)[::3]
    right = [
        judge([Detections.from_lists(f["detections"], f["colors"]) for f in clip], size, rows[3 * n // SAMPLES]).correct
        for n, clip in enumerate(detect_clips(noisy))
    ]
    assert np.mean(right) > 0.9


GOOD_ROW = {
    "tag": "motion",
    "prompt": "a video of a red square moving left",
    "include": [{"class": "square", "count": 1, "color": "red", "motion": "left"}],
}
FRAME = {"detections": {"square": [[1, 1, 6, 6, 0.9]]}, "colors": {"square": ["red"]}}
GOOD_CLIP = {"prompt_index": 0, "sample": 0, "size": 16, "frames": [FRAME, FRAME]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row, clip: row.update(tag="moton"), "tag is 'moton'; did you mean motion"),
        (lambda row, clip: row["include"][0].update(motion="leftwards"), "include.0. motion is 'leftwards'; did you"),
        (lambda row, clip: row["include"][0].pop("motion"), "include.0. has no 'motion'; add it"),
        (lambda row, clip: row["include"][0].update(motion="still", speed="slow"), "is still and has speed='slow'"),
        (lambda row, clip: row["include"][0].update(then="jumps"), "then is 'jumps'; it must be one of stops, bounces"),
        (lambda row, clip: row["include"][0].update(position=["left of", 0]), "left out here, as nothing comes before"),
        (lambda row, clip: row["include"][0].update(count=2), ":1: include.0. count is 2; .* one object of a class"),
        (
            lambda row, clip: row["include"].append(row["include"][0] | {"color": "blue"}),
            ":1: include.0. and include.1. both have the class 'square'; .* one object of a class",
        ),
        (lambda row, clip: row.update(held_out="false"), ":1: held_out is 'false'; it must be true or false"),
        (lambda row, clip: row["include"][0].update(motion="still"), ":1: tag is 'motion', .*motion .* is still; .* 1"),
        (lambda row, clip: row.update(tag="motion_binding"), ":1: tag is 'motion_binding', .*is left; .*at least 2"),
        (lambda row, clip: row.update(tag="still"), ":1: tag is 'still', but include.0. motion is 'left'"),
        (lambda row, clip: row.update(tag="speed"), ":1: tag is 'speed', but no item of include has 'speed'; add it"),
        (lambda row, clip: row["include"][0].update(then="stops"), "has then='stops'; .* give the tag stop$"),
        (
            lambda row, clip: (row.update(tag="stop"), row["include"][0].update(then="bounces")),
            "tag is 'stop', but include.0. has then='bounces'; leave it out, or give the tag bounce$",
        ),
        (lambda row, clip: clip.update(size=3), "frame 0 of prompt_index 0, sample 0: the box .1.0, .*size is 3; size"),
        (
            lambda row, clip: clip.update(frames=[FRAME]),
            "a list of two frames or more; score stills with rfjax geneval",
        ),
        (lambda row, clip: clip.update(size=0), "size is 0; it must be the side of the frames"),
        (lambda row, clip: clip.update(prompt_index=1), "prompt_index is 1; it must be an integer from 0 to 0"),
        (lambda row, clip: clip.update(sample=1), "lacks 1 single image .0/0., as row/sample.*--allow-missing"),
        (lambda row, clip: clip["frames"][1].pop("colors"), "frame 1: no colors for 'square'"),
        (lambda row, clip: clip["frames"][1].update(detections={"square": [[1, 2]]}), "frame 1: a box of 'square' is"),
        (lambda row, clip: clip["frames"][1].update(detection={}), "frame 1: has the unknown key 'detection'"),
    ],
)
def test_files_that_cannot_be_scored_are_refused(change, message, tmp_path):
    """Catches a misspelt field that would ask for nothing, so that every clip is right."""
    row, clip = json.loads(json.dumps([GOOD_ROW, GOOD_CLIP]))
    change(row, clip)
    write(tmp_path / "metadata.jsonl", [row])
    write(tmp_path / "clips.jsonl", [clip])
    with pytest.raises(ConfigError, match=message):
        score_folder(tmp_path)
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda clips, truth: clips[1].update(size=32), "clips.jsonl: prompt_index 0, .* 16, .*_index 1, .* size 32"),
        (lambda clips, truth: [clip.update(size=8.5) for clip in truth], "has size 16, but .*truth.*has size 8.5; the"),
        (lambda clips, truth: truth.pop(), r"truth.jsonl lacks every image of 1 metadata row \(1\).*--allow-missing"),
        (lambda clips, truth: truth[0].update(frames=[FRAME] * 3), "truth.* has 3 frames, but .*clips.* 0 has 2; give"),
    ],
)
def test_clips_and_truth_have_one_unit_and_the_same_prompts(change, message, tmp_path):
    """Catches a detector's own error that is in another unit, or of other prompts, than the clips' error beside it."""
    clips, truth = (json.loads(json.dumps([GOOD_CLIP, GOOD_CLIP | {"prompt_index": 1}])) for _ in range(2))
    change(clips, truth)
    for name, lines in (("metadata", [GOOD_ROW] * 2), ("clips", clips), ("truth", truth)):
        write(tmp_path / f"{name}.jsonl", lines)
    velocity = {"world": "first", "truth_path": tmp_path / "truth.jsonl"}
    with pytest.raises(ConfigError, match=message):
        score_folder(tmp_path, **velocity)
    if len(truth) == 1:
        summary = score_folder(tmp_path, **velocity, allow_missing=True)
        assert summary["velocity"]["truth_missing_prompts"] == [1] and not summary["missing_prompts"]
        assert "missing in the truth, and left out: every image of 1" in files.summary_text(summary)
    if clips[1]["size"] == 32:
        score_folder(tmp_path)  # scores without velocities have no unit


def test_a_class_that_is_never_detected_is_named(tmp_path):
    """Catches a score of 0 that only the detector's spelling makes, and a box at the border that is refused."""
    edge = {"detections": {"Square": [[-3, 4, 3, 9, 0.9]]}, "colors": {}}
    write(tmp_path / "metadata.jsonl", [GOOD_ROW | {"held_out": True}])
    write(tmp_path / "clips.jsonl", [GOOD_CLIP | {"frames": [edge, edge]}])
    summary = score_folder(tmp_path)
    assert summary["classes_never_detected"] == ["square"]
    assert "never detected: square; are they spelt as the prompts spell them?" in files.summary_text(summary)
    write(tmp_path / "clips.jsonl", [GOOD_CLIP])
    assert score_folder(tmp_path)["classes_never_detected"] == []


def test_other_tasks_than_genevals_are_scored_by_its_estimates():
    result = judge([Detections.from_lists(FRAME["detections"], FRAME["colors"])] * 2, 16, GOOD_ROW).as_image()
    assert score([result], tasks=TASKS).tasks["motion"].value == 0.0
    assert result.reason == "direction"
    with pytest.raises(ConfigError, match="unknown GenEval tag 'motion'"):
        score([result])
