"""The corpus `motion`: its clips, measured on their pixels or their boxes, are what its truth says."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from rfjax.config import Config, DataConfig, apply_overrides, from_dict, to_dict
from rfjax.data import motion, motion_captions, motion_paths, motion_worlds
from rfjax.data.corpus import load_corpus
from rfjax.data.motion_worlds import HELD_OUT, PAIRS, SIDE, STEPS, TASKS, WORLDS
from rfjax.data.scenes import BACKGROUNDS
from rfjax.data.shapes import CLASSES, VOCABULARY, coverage
from rfjax.errors import ConfigError

FRAMES = {"first": 4, "full": 8}


def load(world, seed=0, frames=None, size=16):
    data = DataConfig(corpus="motion", world=world, frames=frames or FRAMES[world], image_size=size)
    return load_corpus(data, seed)


@pytest.fixture(scope="module", params=FRAMES)
def corpus(request):
    return load(request.param)


def test_a_batch_has_the_declared_shapes(corpus):
    """Catches frames at another place than the second axis, and features of another width."""
    batch = corpus.examples(np.arange(3), "train")
    assert batch.latents.shape == (3, *corpus.shapes.latents) and batch.latents.dtype == np.float32
    assert corpus.shapes.latents == (FRAMES[corpus.world], 16, 16, 3)
    assert batch.context.shape == (3, *corpus.shapes.context) and batch.pooled.shape == (3, corpus.shapes.pooled)
    assert batch.example_ids.tolist() == [0, 1, 2]


def test_random_access(corpus):
    """Catches an example that depends on its neighbours: alone it is the same, bit for bit."""
    whole = corpus.examples(np.arange(1000, 1064), "train")
    for i in (0, 7, 63):
        alone = corpus.examples(np.array([1000 + i], np.uint64), "train")
        assert all(np.array_equal(a[0], b[i]) for a, b in zip(alone, whole, strict=True))
    far = np.array([2**40 + 5], np.uint64)
    assert np.array_equal(corpus.examples(far, "train").latents, corpus.examples(far, "train").latents)
    assert not np.array_equal(corpus.examples(far, "train").latents, corpus.examples(np.array([5]), "train").latents)


def test_another_process_draws_the_same():
    """Catches a draw that hangs on the process: its hash seed, its time, an order of a set."""
    script = (
        "import hashlib, numpy as np; from rfjax.config import DataConfig; from rfjax.data.corpus import load_corpus;"
        "c = load_corpus(DataConfig(corpus='motion', world='full', frames=8), 0);"
        "b = c.examples(np.arange(32), 'train');"
        "print(hashlib.sha256(b''.join(a.tobytes() for a in b)).hexdigest(), c.fingerprint)"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    corpus = load("full")
    batch = corpus.examples(np.arange(32), "train")
    assert other == [hashlib.sha256(b"".join(a.tobytes() for a in batch)).hexdigest(), corpus.fingerprint]


def test_what_decides_the_data_decides_the_fingerprint(monkeypatch):
    """Catches a run that goes on with other clips than it began with."""
    corpora = [load("full"), load("full", seed=1), load("full", frames=9), load("full", size=20), load("first")]
    fingerprints = {corpus.fingerprint for corpus in corpora}
    monkeypatch.setitem(WORLDS, "full", replace(WORLDS["full"], slow=(2.0, 2.6)))
    assert len(fingerprints | {load("full").fingerprint}) == 6
    latents = [corpus.examples(np.arange(16), "train").latents for corpus in corpora[:2]]
    assert not np.array_equal(*latents)


def test_splits_share_no_clip(corpus):
    clips = {split: corpus.examples(np.arange(600), split).latents.reshape(600, -1) for split in motion.SPLITS}
    seen = {row.tobytes() for row in clips["train"]}
    assert len(seen) == 600 and not any(row.tobytes() in seen for row in clips["validation"])
    with pytest.raises(ConfigError, match="'test'.*train, validation"):
        corpus.examples(np.arange(2), "test")


def test_more_frames_show_the_same_clip_more_finely():
    """Catches a clip whose length in pixels hangs on its number of frames."""
    coarse, fine = (load("full", frames=n).clips(np.arange(300), "train")[1] for n in (8, 15))
    straight = load("full").clips(np.arange(300), "train")[0].of("motion", "speed", "motion_binding", "permanence")
    assert np.allclose(fine.centre[straight][:, ::2], coarse.centre[straight])


def shown(layout):
    """How often each (class, colour, direction) moves, by the signs of the velocities alone."""
    counts = np.zeros(HELD_OUT.shape, int)
    velocity = np.where(np.abs(layout.velocity) < 1e-9, 0, layout.velocity)
    for direction, step in enumerate(STEPS):
        moves = ((velocity * step).sum(-1) > 0) & layout.present[:, None]
        n, frame, k = np.nonzero(moves)
        np.add.at(counts[..., direction], (layout.classes[n, k], layout.colors[n, frame, k]), 1)
    return counts


def test_training_never_shows_a_held_out_triple_and_shows_all_others(corpus):
    """Catches triples that are held out of captions but not of pixels, as that of a bounce on its way back."""
    drawn = shown(corpus.clips(np.arange(12000), "train")[1])
    assert np.array_equal(drawn > 0, ~HELD_OUT)
    assert drawn[~HELD_OUT].min() > 0.2 * drawn[~HELD_OUT].mean()
    assert (shown(corpus.clips(np.arange(6000), "validation")[1]) > 0).all()
    assert HELD_OUT.mean() == pytest.approx(1 / 6)
    for axis in range(3):  # no pair of the three is always held out, which would make it a lesser combination
        assert not HELD_OUT.all(axis=axis).any()


def test_is_held_out_is_what_the_clip_shows(corpus):
    """Catches a flag of seen and unseen clips that disagrees with their pixels."""
    contents, layout, _ = corpus.clips(np.arange(1500), "validation")
    told = motion_worlds.is_held_out(contents)
    for i in range(1500):
        assert told[i] == (shown(layout.rows(np.array([i])))[HELD_OUT] > 0).any()
    assert 0.05 < told.mean() < 0.35


def test_tasks_have_their_shares(corpus):
    world = WORLDS[corpus.world]
    assert sum(share for _, share in world.shares) == pytest.approx(1.0)
    contents, _, _ = corpus.clips(np.arange(12000), "train")
    drawn = np.bincount(contents.task, minlength=len(TASKS)) / 12000
    assert np.abs(drawn - [dict(world.shares).get(task, 0.0) for task in TASKS]).max() < 0.015
    assert (drawn > 0).sum() == len(world.shares)


@pytest.mark.parametrize("size", [16, 24])
def test_objects_stay_inside_and_apart(size):
    """Catches a path that leaves the picture, and boxes that meet: the detector would see one object."""
    for world, frames in (("first", 4), ("full", 8), ("full", 13)):
        contents, layout, _ = load(world, frames=frames, size=size).clips(np.arange(6000), "validation")
        there = np.broadcast_to(layout.present[:, None], layout.boxes.shape[:-1])
        assert layout.boxes[there].min() > -1e-9 and layout.boxes[there].max() < SIDE + 1e-9
        pairs = layout.boxes[layout.present[:, 1]]
        if len(pairs):
            a, b = pairs[:, :, 0], pairs[:, :, 1]
            gaps = np.maximum(a[..., :2] - b[..., 2:], b[..., :2] - a[..., 2:]).max(axis=-1)
            assert gaps.min() >= motion_paths.GAP - 1e-9
            assert set(contents.task[layout.present[:, 1]]) == {TASKS.index(task) for task in PAIRS}
    assert motion_paths.GAP >= 1.0  # in a picture of the smallest side


@pytest.mark.parametrize("name", CLASSES)
def test_half_sizes_are_those_of_the_pixels(name):
    """Catches a box that is not the shape's: what bounces would turn before the wall or beyond it."""
    axis = np.arange(400) + 0.5 - 200
    alpha = coverage(name, axis[None, :], axis[:, None], 150.0) > 0.5
    wide, high = motion_paths.HALVES[CLASSES.index(name)]
    columns, rows = (np.flatnonzero(alpha.any(axis=k)) for k in (0, 1))
    assert abs(np.abs(axis[columns]).max() - 150 * wide) < 2.0
    assert abs(np.abs(axis[rows]).max() - 150 * high) < 2.0


def measured_centres(clips, layout):
    """Centroids [n, frames, 2, 2] of each object, by least squares of each pixel on the objects' colours."""
    n, frames, side = clips.shape[:3]
    low, high = BACKGROUNDS
    grid = np.arange(side) + 0.5
    centres = np.full((n, frames, 2, 2), np.nan)
    for i, t in np.ndindex(n, frames):
        objects = np.flatnonzero(layout.present[i])
        background = low + (high - low) * layout.background[i]
        colors = np.array(VOCABULARY.palette)[layout.colors[i, t, objects]] - background
        pixels = clips[i, t].reshape(-1, 3) - background
        alpha = np.linalg.lstsq(colors.T, pixels.T, rcond=None)[0].reshape(len(objects), side, side)
        for k, ink in zip(objects, alpha, strict=True):
            centres[i, t, k] = (ink.sum(0) @ grid) / ink.sum(), (ink.sum(1) @ grid) / ink.sum()
    return centres


def test_velocities_are_those_of_the_pixels():
    """Catches a truth that runs ahead of the picture by a frame, swaps x and y, or has another unit; measured without
    any of the corpus's code for places, and at another size than that of the units."""
    for world in FRAMES:
        for size in (16, 24):
            corpus = load(world, size=size)
            contents, layout, _ = corpus.clips(np.arange(200), "train")
            clips = corpus.to_clips(corpus.examples(np.arange(200), "train").latents).astype(np.float64)
            whole = np.flatnonzero(~contents.of("permanence"))  # elsewhere part of the object is hidden
            part = layout.rows(whole)
            centres = measured_centres(clips[whole], part) * SIDE / size
            there = np.broadcast_to(part.present[:, None, :, None], centres.shape)
            velocity = np.diff(centres, axis=1)
            errors = np.abs(velocity - part.velocity)[there[:, 1:]]
            assert errors.max() < 0.25 and errors.mean() < 0.03
            # A centroid is at the box's centre, but for the triangle's, which lies below it.
            level = there & (part.classes != CLASSES.index("triangle"))[:, None, :, None]
            assert np.abs(centres - part.centre)[level].max() < 0.2


def test_a_bounce_turns_at_the_wall_and_keeps_its_speed():
    contents, layout, _ = load("full").clips(np.arange(4000), "train")
    mine = contents.of("bounce")
    boxes = layout.boxes[mine, :, 0]
    nearest = np.minimum(boxes, SIDE - boxes).min(axis=(1, 2))
    assert np.abs(nearest).max() < 1e-9
    along = np.abs(layout.velocity[mine, :, 0]).sum(axis=-1)
    assert np.ptp(along, axis=1).max() < 1e-9 and along.min() > 0.5
    signs = np.sign(layout.velocity[mine, :, 0]).sum(axis=-1)
    assert ((np.diff(signs, axis=1) != 0).sum(axis=1) == 1).all()


def test_a_screen_hides_and_shows_again():
    """Catches a screen that is beside the path, or that hides an object at the ends, when it must be told."""
    corpus = load("full")
    contents, layout, _ = corpus.clips(np.arange(4000), "train")
    assert ((layout.screen[:, 2] > layout.screen[:, 0]) == contents.of("permanence")).all()
    mine = np.flatnonzero(contents.of("permanence"))
    clips = motion.draw(layout.rows(mine), 16)
    whole = motion.draw(replace(layout.rows(mine), screen=np.zeros((len(mine), 4))), 16)
    low, high = BACKGROUNDS
    ink = np.abs(whole - (low + (high - low) * layout.background[mine])[:, None, None, None, None]).sum(axis=-1)
    left = clips.max(axis=-1) / whole.max(axis=-1)  # of each pixel before the black screen
    visible = (ink * left).sum(axis=(2, 3)) / ink.sum(axis=(2, 3))
    assert visible[:, [0, -1]].min() > 0.93
    assert visible.min(axis=1).max() < 0.25 and np.median(visible.min(axis=1)) < 0.2


def test_latents_are_standardised_and_invertible(corpus):
    latents = corpus.examples(np.arange(4000), "train").latents
    assert np.abs(latents.mean(axis=(0, 1, 2, 3), dtype=np.float64)).max() < 0.03
    assert np.abs(latents.std(axis=(0, 1, 2, 3), dtype=np.float64) - 1.0).max() < 0.03
    clips = corpus.to_clips(latents[:32])
    assert clips.min() >= 0.0 and clips.max() <= 1.0
    assert np.abs(corpus.to_latents(clips) - latents[:32]).max() < 1e-5
    still = corpus.to_images(latents[:4, :1])
    assert np.array_equal(corpus.to_latents(still), corpus.to_latents(still[:, None]))
    with pytest.raises(ConfigError, match="are clips, not images"):
        corpus.to_images(latents[:2])


def test_ground_truth_is_deterministic_and_varied(corpus):
    row = corpus.evaluation_prompts(2, 0)[-1]
    clip = corpus.render_prompt(row, 7)
    assert clip.shape == corpus.shapes.latents and clip.dtype == np.float32
    assert np.array_equal(clip, corpus.render_prompt(row, 7))
    assert not np.array_equal(clip, corpus.render_prompt(row, 8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 1}, "frames is 1, which the world first .* does not have.*first has 4, full has 8 to 16"),
        ({"frames": 8}, "frames is 8, which the world first"),
        ({"frames": 4, "world": "full"}, "frames is 4, which the world full"),
        ({"frames": 17, "world": "full"}, "frames is 17, which the world full"),
        ({"frames": 4, "image_size": 17}, "image_size is 17; .* 16 to 32"),
        ({"frames": 4, "channels": 4}, "channels is 4; the motion corpus has 3: leave it out"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    """Catches clips of fewer frames than their caption's event takes, and sizes that would be ignored."""
    with pytest.raises(ConfigError, match=message):
        load_corpus(DataConfig(corpus="motion", **fields), 0)


def test_a_world_is_written_where_it_is_set_and_read_by_motion_alone():
    """Catches configs and records of images that change because clips exist."""
    assert "world" not in to_dict(Config())["data"]
    config = from_dict({"data": {"corpus": "motion", "world": "full", "frames": 8}})
    assert to_dict(config)["data"]["world"] == "full" and from_dict(to_dict(config)) == config
    assert config.data.label == load("full").name == "motion:full-8" and Config().data.label == "shapes"
    with pytest.raises(ConfigError, match="data.world is full, which the corpus shapes does not read"):
        apply_overrides(Config(), {"data.world": "full"})
    with pytest.raises(ConfigError, match="data.world is 'ful'.*did you mean full"):
        apply_overrides(Config(), {"data.corpus": "motion", "data.world": "ful"})
    assert set(motion_captions.TEMPLATES) == set(TASKS)


def test_scans_move_as_the_truth_says_and_only_those_of_their_split():
    """Catches a scan drawn elsewhere than its box, one that changes on its way, and validation's scans in training."""
    data = DataConfig(corpus="motion", world="digits", frames=4, image_size=20)
    digits_corpus = load_corpus(data, 0)
    _, layout, captions = digits_corpus.clips(np.arange(40), "train")
    alpha = motion.scan_alpha(layout, 20, "train")[0]
    grid, scale = np.arange(20) + 0.5, 20 / SIDE
    ink = alpha.sum((2, 3))
    centres = np.stack([alpha.sum(2) @ grid, alpha.sum(3) @ grid], axis=-1) / ink[..., None]
    moved = np.diff(centres, axis=1) - scale * layout.velocity[:, :, 0]
    assert np.abs(moved).max() < 0.1 and np.ptp(ink, axis=1).max() < 0.05 * ink.min()
    assert (np.abs(centres - scale * layout.centre[:, :, 0]) < 2.5).all()  # in its box, wherever its strokes are
    other = motion.scan_alpha(layout, 20, "validation")[0]
    assert (np.abs(alpha - other).max((1, 2, 3)) > 0.3).all()
    batch = digits_corpus.examples(np.arange(40), "train")
    assert batch.latents.shape == (40, 4, 20, 20, 3) and abs(batch.latents.mean()) < 0.15
    assert any("seven" in caption for caption in captions) and not digits_corpus.unknown_words(captions)
    assert digits_corpus.unknown_words(["a video of a red square"]) == ["square"]


def test_worlds_of_shapes_are_what_they_were():
    """Catches a tokenizer or a hash that changes because scans move, too: runs on shapes would not go on."""
    found = load_corpus(DataConfig(corpus="motion", world="first", frames=4, image_size=16), 0).fingerprint
    assert found == "b34d4ab370f5909927fe79c5e25f50b666585e91d73e74c9ed2897292dd4ff53"
