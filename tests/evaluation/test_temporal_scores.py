"""The scores of a model's clips: strict and soft, their floors on the same clips, and intervals clustered by prompt."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from rfjax.config import DataConfig
from rfjax.data.corpus import load_corpus
from rfjax.data.motion_worlds import AT_REST, WORLDS
from rfjax.evaluation.detectors.clips import detect_clips
from rfjax.evaluation.geneval.rules import ImageResult, score
from rfjax.evaluation.pictures import FRAME_MILLISECONDS, LAST_MILLISECONDS, strip, webp_bytes, write_clips
from rfjax.evaluation.temporal import scores
from rfjax.evaluation.temporal.floors import FLOORS, NOTHING, ORDERS, OTHER_PROMPTS, other_prompts
from rfjax.evaluation.temporal.rules import TemporalOptions
from rfjax.evaluation.temporal.soft import all_centroids, centroids
from rfjax.evaluation.temporal.summary import summarize

SAMPLES, PROMPTS = 2, 6


@pytest.fixture(scope="module", params=[("first", 4), ("full", 8)], ids=["first", "full"])
def truth(request):
    """(world, rows, each clip's row, clips, scores by name) of ground truth."""
    world, frames = request.param
    corpus = load_corpus(DataConfig(corpus="motion", world=world, frames=frames), 0)
    rows = corpus.evaluation_prompts(PROMPTS, 3)
    own = [index for index in range(len(rows)) for _ in range(SAMPLES)]
    clips = np.stack([corpus.render_prompt(rows[index], n) for n, index in enumerate(own)])
    return world, rows, own, clips, by_name(scores.clip_scores(scores.look_at(clips), own, rows, replicates=50))


def by_name(values):
    return {(value.metric, value.item): value for value in values}


def test_ground_truth_is_right_and_its_floors_are_those_of_the_command(truth):
    """Catches floors of the wrong order or of the wrong prompt, against the summary of `rfjax temporal`."""
    world, rows, own, clips, found = truth
    seen = scores.look_at(clips)
    summary = summarize([(clip.frames, clip.side) for clip in seen], own, rows, TemporalOptions(), replicates=50)
    tasks = WORLDS[world].tasks
    for task in tasks:
        value = found["temporal", task]
        assert value.value == 1.0 and value.n == PROMPTS * SAMPLES
        for floor in (*ORDERS, OTHER_PROMPTS):
            there = found.get((scores.floor_metric(floor), task))
            assert (there is not None) == (floor in FLOORS[task])
            if there is not None:
                assert there.value == pytest.approx(summary["floors"][task][floor])
    moving = [task for task in tasks if task not in AT_REST]
    assert found["temporal", "all_moving"].n == len(moving) * PROMPTS * SAMPLES
    assert found["temporal", "direction_right"].value == found["temporal", "frames_right"].value == 1.0
    assert not any(metric == scores.floor_metric(NOTHING) for metric, _ in found)  # no such clips were given
    # A mean under a floor is over the same tasks as the score, or it is left out.
    assert (("temporal_floor_reversed", "all_moving") in found) == (world == "first")
    assert ("temporal_floor_reversed", "all_still") not in found


def test_floors_of_the_soft_direction_are_what_the_prompts_say(truth):
    """The truth goes its own way: reversed it goes never right, and by another prompt where both ask for one way."""
    _, rows, _, _, found = truth
    others = other_prompts(rows)
    moving = [i for i, row in enumerate(rows) if row["tag"] in ("motion", "speed")]
    same = [rows[i]["include"][0]["motion"] == rows[others[i]]["include"][0]["motion"] for i in moving]
    if len(moving) == sum(row["tag"] not in AT_REST for row in rows):  # of `first`, where these are all
        assert found["temporal_floor_other_prompts", "direction_right"].value == pytest.approx(np.mean(same))
        assert found["temporal_floor_reversed", "direction_right"].value == 0.0
    assert found["temporal_floor_first_held", "direction_right"].value == 0.0
    assert ("temporal_floor_shuffled", "frames_right") not in found  # no order changes it
    assert found["temporal_floor_other_prompts", "frames_right"].value < 0.3
    slow, fast = (found["temporal", f"pixels_a_frame_{speed}"] for speed in ("slow", "fast"))
    assert 0 < slow.value < fast.value and slow.n + fast.n == PROMPTS * SAMPLES


def test_stills_are_at_rest_and_go_nowhere(truth):
    """A model that makes stills: right where rest is asked, wrong wherever motion is, whatever it draws."""
    world, rows, own, clips, _ = truth
    held = scores.look_at(np.repeat(clips[:, :1], clips.shape[1], axis=1))
    found = by_name(scores.clip_scores(held, own, rows, held[::SAMPLES], replicates=50))
    assert found["temporal", "all_moving"].value == found["temporal", "direction_right"].value == 0.0
    assert found["temporal", "still"].value == 1.0
    assert found["temporal_floor_null", "still"].value == 1.0 and found["temporal_floor_null", "still"].n == PROMPTS
    assert found["temporal_floor_null", "all_moving"].value == 0.0


def test_prompts_with_held_out_triples_are_scored_apart(truth):
    _, rows, _, _, found = truth
    for item in ("direction_right", "frames_right"):
        parts = [found[f"temporal_{part}", item].n for part in ("held_out", "seen")]
        assert sum(parts) == found["temporal", item].n
    assert found["temporal_held_out", "frames_right"].n == SAMPLES * sum(bool(row["held_out"]) for row in rows)


def test_intervals_keep_the_clips_of_a_prompt_together():
    """The same numbers as GenEval's estimates of shares, and the standard error of a mean over prompts by hand."""
    rng = np.random.default_rng(0)
    right = rng.random((30, 4)) < rng.random((30, 1))
    rows = [{"tag": "colors", "prompt": str(i)} for i in range(30)]
    results = [ImageResult(rows[i], bool(right[i, j]), "", {}) for i in range(30) for j in range(4)]
    expected = score(results, replicates=4000).tasks["colors"]
    clusters = np.repeat(np.arange(30), 4)
    mean, stderr, low, high, n = scores.clustered_mean(right.ravel().astype(float), clusters, rng, 4000)
    assert (mean, n) == (pytest.approx(expected.value), 120)
    by_hand = right.mean(axis=1).std(ddof=1) / math.sqrt(30)
    assert stderr == pytest.approx(expected.stderr) == pytest.approx(by_hand)
    assert low == pytest.approx(expected.low, abs=0.02) and high == pytest.approx(expected.high, abs=0.02)
    alone = scores.clustered_mean(np.array([1.0, 3.0]), np.zeros(2), rng, 10)
    assert alone[0] == 2.0 and math.isnan(alone[1])


def test_centroids_of_all_colours_are_those_of_each(truth):
    """Catches axes of x and y exchanged where all colours are computed at once: against sums pixel by pixel."""
    _, rows, own, clips, _ = truth
    moving = [n for n, index in enumerate(own) if rows[index]["tag"] == "motion"]
    for n, found in zip(moving, detect_clips(clips[moving]), strict=True):
        item = rows[own[n]]["include"][0]
        assert np.isfinite(all_centroids(clips[n])).all(axis=-1).sum() == clips.shape[1]  # one colour in each frame
        boxes = np.array([frame["detections"][item["class"]][0] for frame in found])
        middle = (boxes[:, :2] + boxes[:, 2:4]) / 2
        assert np.abs(centroids(clips[n], item["color"]) - middle).max() < 1.5


def test_clips_are_written_to_play_and_to_print(tmp_path):
    """Catches frames in another order, lossy colours, and a strip whose tiles and prompts do not align."""
    clips = np.random.default_rng(0).random((3, 4, 16, 16, 3)).round(2)
    tile = write_clips(tmp_path / "a.png", tmp_path / "a.webp", clips)
    playing, still = Image.open(tmp_path / "a.webp"), np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert tile == 64 and playing.n_frames == 4 and playing.size == (3 * tile, tile)
    assert still.shape == (4 * tile, 3 * tile, 3)
    for t in range(4):
        playing.seek(t)
        frame = np.asarray(playing.convert("RGB"))
        np.testing.assert_array_equal(frame, np.round(255 * strip(clips[:, t])[0]).astype(np.uint8))
        assert np.abs(frame.astype(int) - still[t * tile : (t + 1) * tile]).max() <= 1
        assert playing.info["duration"] == (LAST_MILLISECONDS if t == 3 else FRAME_MILLISECONDS)
    assert webp_bytes([strip(clips[:, 0])[0]] * 2)[:4] == io.BytesIO(b"RIFF").read()


def test_scans_that_move_are_found_by_the_detector_of_digits():
    """Catches the detector of shapes on scans, boxes at whole pixels, in which a slow object jumps, and a floor as high
    as the truth. The detector has not seen the scans of ground truth."""
    corpus = load_corpus(DataConfig(corpus="motion", world="digits", frames=4, image_size=20), 0)
    rows = corpus.evaluation_prompts(20, 0)
    clips = np.stack([corpus.render_prompt(row, n) for n, row in enumerate(rows)])
    seen = scores.look_at(clips, detect_clips(clips, scans=True))
    found = by_name(scores.clip_scores(seen, list(range(len(rows))), rows, replicates=20))
    assert min(found["temporal", task].value for task in WORLDS["digits"].tasks) >= 0.95
    assert found["temporal_floor_reversed", "all_moving"].value <= 0.05
    assert found["temporal", "direction_right"].value == 1.0
