"""The velocity error: only the detector's own in ground truth, and as large as a fault that is planted."""

import json
import math

import numpy as np
import pytest

from rfjax import cli
from rfjax.config import DataConfig
from rfjax.data.corpus import load_corpus
from rfjax.data.motion_worlds import CONSTANT_VELOCITY, SIDE, TASKS, WORLDS
from rfjax.evaluation.detectors.clips import detect_clips
from rfjax.evaluation.geneval.rules import Detections
from rfjax.evaluation.temporal import scores
from rfjax.evaluation.temporal.velocity import ERROR, FOUND, velocity_measures

FRAMES, SIZE = 4, 32
FIRST = WORLDS["first"]
SLOW, FAST = (np.array(ends) * SIZE / SIDE / (FRAMES - 1) for ends in (FIRST.slow, FIRST.fast))  # pixels a frame


def ask(motion="right", tag="motion", **fields):
    return {
        "tag": tag,
        "prompt": "p",
        "include": [{"class": "square", "count": 1, "color": "red", "motion": motion} | fields],
    }


def clip_of(places, colors="red"):
    colors = [colors] * len(places) if isinstance(colors, str) else colors
    return [
        Detections.from_lists({}, {})
        if at is None
        else Detections.from_lists({"square": [[at[0] - 2, at[1] - 2, at[0] + 2, at[1] + 2, 0.9]]}, {"square": [hue]})
        for at, hue in zip(places, colors, strict=True)
    ]


def line(speed, across=0.0):
    return [(4 + speed * t, 8 + across * t) for t in range(FRAMES)]


def error(places, row, **more):
    return velocity_measures(clip_of(places, **more), SIZE, row, FIRST)


@pytest.mark.parametrize(
    ("speed", "fields", "expected"),
    [
        (FAST[1] + 0.75, {"speed": "fast"}, 0.75),  # faster than asked
        (FAST[0] - 0.5, {"speed": "fast"}, 0.5),
        (SLOW[1] + 0.5, {"speed": "slow"}, 0.5),
        (FAST[0], {"speed": "slow"}, FAST[0] - SLOW[1]),  # the other speed
        (-SLOW[0], {"speed": "slow"}, 2 * SLOW[0]),  # the other way
        (0.0, {"speed": "slow"}, SLOW[0]),  # at rest
        (np.mean(FAST), {}, 0.0),  # no speed is named: both are allowed
        (np.mean(SLOW), {}, 0.0),
        (SLOW[1] + 0.4, {}, 0.4),  # and between them the nearest counts
        (FAST[0] - 0.4, {}, 0.4),
    ],
)
def test_a_clip_at_a_wrong_speed_has_just_this_error(speed, fields, expected):
    """Catches pixels a clip for pixels a frame, a sign, pixels of another picture, and a speed that is one number."""
    tag = "speed" if fields else "motion"
    assert error(line(speed), ask(tag=tag, **fields)) == {ERROR: pytest.approx(expected, abs=1e-6), FOUND: 1.0}


def test_errors_across_the_way_and_from_frame_to_frame_count():
    """Catches an error of the mean velocity alone, in which a step too far and a step too short cancel out."""
    speed = float(np.mean(FAST))
    assert error(line(speed, across=0.3), ask())[ERROR] == pytest.approx(0.3, abs=1e-6)
    jump = [(x + 0.6 * (t == 1), y) for t, (x, y) in enumerate(line(speed))]
    assert error(jump, ask())[ERROR] == pytest.approx((0.6 + 0.6 + 0) / 3, abs=1e-6)


def test_frames_without_the_object_are_bridged_and_clips_without_it_have_no_error():
    """Catches a clip that is dropped without a count, another colour's object taken for it, and a gap of two frames
    counted as one."""
    there = line(FAST[1] + 0.5)
    assert error([there[0], None, *there[2:]], ask())[ERROR] == pytest.approx(0.5, abs=1e-6)
    speed = float(np.mean(FAST))
    uneven = [(4, 8), None, (4 + 2 * (speed + 0.3), 8), (4 + 3 * speed, 8)]
    assert error(uneven, ask())[ERROR] == pytest.approx((0.3 + 0.3 + 0.6) / 3, abs=1e-6)
    assert error([None, None, None, there[3]], ask()) == {FOUND: 0.0}
    assert error(there, ask(), colors=["red", "blue", "blue", "blue"]) == {FOUND: 0.0}
    two = ask(tag="motion_binding")
    two["include"].append({"class": "ring", "count": 1, "color": "blue", "motion": "up"})
    assert velocity_measures(clip_of(there), SIZE, two, WORLDS["full"]) == {FOUND: 0.0}  # one of two objects
    for tag in set(TASKS) - set(CONSTANT_VELOCITY):
        assert error(there, ask(motion="still" if tag == "still" else "right", tag=tag)) == {}


@pytest.mark.parametrize(("world", "frames"), [("first", 4), ("full", 11), ("digits", 4)])
def test_the_worlds_speeds_are_those_of_their_paths(world, frames):
    """Catches a task whose objects go at another speed than `World.speeds` says: exact paths have no error."""
    corpus = load_corpus(DataConfig(corpus="motion", world=world, frames=frames, image_size=16), 0)
    contents, layout, _ = corpus.clips(np.arange(400), "validation")
    checked = 0
    for n in range(400):
        task = TASKS[contents.task[n]]
        speeds = WORLDS[world].speeds(task, ("slow", "fast")[contents.speed[n]] if task == "speed" else None)
        for k in np.flatnonzero(contents.directions[n] >= 0) if speeds else ():
            steps = np.linalg.norm(layout.velocity[n, :, k], axis=1) * (frames - 1)
            assert any(low - 1e-9 <= steps.min() and steps.max() <= high + 1e-9 for low, high in speeds)
            checked += 1
    assert checked > 80


@pytest.fixture(scope="module")
def truth():
    """(rows, their clips of ground truth) of the world `first`; every speed is said."""
    corpus = load_corpus(DataConfig(corpus="motion", world="first", frames=FRAMES, image_size=SIZE), 0)
    rows = [row for row in corpus.evaluation_prompts(24, 1) if row["tag"] != "still"]
    return rows, np.stack([corpus.render_prompt(row, n) for n, row in enumerate(rows)])


def measured(clips, rows):
    found = scores.clip_scores(scores.look_at(clips), range(len(rows)), rows, world=FIRST, replicates=50)
    return {(value.metric, value.item): value for value in found}


def test_ground_truth_is_at_the_floor_and_clips_without_motion_are_not(truth):
    """Through pixels and detector. Catches a floor above the faults that the measure is for, an error whose floors are
    those of a score, and parts that are not the prompts' own."""
    rows, clips = truth
    values = measured(clips, rows)
    own = values["temporal", ERROR]
    assert own.value < 0.06 and values["temporal", FOUND].value == 1.0
    assert own.n == len(rows) == sum(values[f"temporal_{part}", ERROR].n for part in scores.PARTS)
    held = values["temporal_floor_first_held", ERROR]
    assert held.low > SLOW[0] - 0.01 and values["temporal_floor_reversed", ERROR].low > held.value
    assert values["temporal_floor_other_prompts", ERROR].value > 10 * own.value
    assert ("temporal_floor_shuffled", FOUND) not in values  # no order changes it
    # a clip that is empty has no error, and is counted
    empty = measured(np.concatenate([clips[:-6], np.full_like(clips[:6], 0.2)]), rows)
    assert empty["temporal", ERROR].n == len(rows) - 6
    assert empty["temporal", FOUND].value == pytest.approx(1 - 6 / len(rows)) and empty["temporal", FOUND].n == len(
        rows
    )
    again = scores.truth_scores(scores.look_at(clips), range(len(rows)), rows, world=FIRST, replicates=50)
    beside = scores.detector_errors([value.to_json() for value in again])
    assert {(value.metric, value.item): value.value for value in beside} == {
        (f"{metric}_floor_ground_truth", ERROR): values[metric, ERROR].value for metric in scores.OF_PROMPTS
    }


def test_the_command_measures_the_same_beside_the_detectors_own_error(truth, tmp_path, capsys):
    """Catches another definition in the command, and clips without the object that its summary does not name."""
    rows, clips = truth
    found = detect_clips(clips)
    lines = [{"prompt_index": n, "sample": 0, "size": SIZE, "frames": frames} for n, frames in enumerate(found)]
    backwards = [line | {"frames": line["frames"][::-1]} for line in lines]
    backwards[0] = backwards[0] | {"frames": [{"detections": {}, "colors": {}}] * FRAMES}
    for name, each in (("rows", rows), ("truth", lines), ("clips", backwards)):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in each))
    words = ["temporal", f"--metadata={tmp_path / 'rows'}", f"--detections={tmp_path / 'clips'}"]
    words += [f"--out={tmp_path / 'out.jsonl'}", f"--truth={tmp_path / 'truth'}"]
    assert cli.main(words) == 2
    assert "is read for the velocity error alone; give --world" in capsys.readouterr().err
    assert cli.main([*words, "--world=first"]) == 0
    said = capsys.readouterr().out
    assert f"{len(rows)} clips, in 1 of them an object was not found; the detector's own 0.0" in said
    assert "velocity error, held out: " in said
    velocity = json.loads((tmp_path / "out.summary.json").read_text())["velocity"]
    values = measured(clips, rows)
    assert velocity["ground_truth"]["all"]["error"]["value"] == pytest.approx(values["temporal", ERROR].value)
    assert velocity["ground_truth"]["seen"]["error"]["value"] == pytest.approx(values["temporal_seen", ERROR].value)
    results = [json.loads(line)[ERROR] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert results[0] is None and np.mean(results[1:]) == pytest.approx(velocity["clips"]["all"]["error"]["value"])
    assert velocity["clips"]["all"]["not_found"] == 1 and not math.isnan(velocity["clips"]["all"]["error"]["stderr"])
