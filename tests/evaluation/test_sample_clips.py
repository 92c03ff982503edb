"""`rfjax sample` on clips: what each kind of file holds of the same samples."""

import io
import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from helpers.random_runs import DATA, make_config, make_run
from rfjax.cli import main
from rfjax.evaluation.samples.formats import FORMATS, GAP, rows

SMALL = {"depth": 2, "hidden": 16, "head_size": 8, "patch_size": 4, "position_grid": 12}
FEW = ("--samples=2", "--config.evaluation.sampler.steps=1", "--config.evaluation.sampler.guidance_scale=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = make_config(SMALL, DATA | {"frames": 3, "image_size": 8})
    return make_run(tmp_path_factory.mktemp("clips") / "run", config)


def random_samples():
    """Two prompts, three samples, five frames of 6 x 8; every number is one of 256."""
    return np.random.default_rng(0).integers(0, 256, (2, 3, 5, 6, 8, 3)).astype(np.float32) / 255


def pictures(data):
    image, found = Image.open(io.BytesIO(data)), []
    for number in range(image.n_frames):
        image.seek(number)
        found.append(np.asarray(image.convert("RGB")))
    return np.stack(found), image


def test_files_that_play_hold_every_frame_without_loss():
    """Catches frames of another sample, a colour that is stored rounded, and another rate."""
    import av

    samples = random_samples()
    expected = np.stack([np.round(255 * frame).astype(np.uint8) for frame in rows(samples)])
    tile = expected.shape[2] // 3
    shown = np.round(255 * samples[1, 2, 4, 0, 0])
    assert np.array_equal(expected[4, expected.shape[1] // 2, 2 * tile], shown) and expected.shape[1] % 2 == GAP % 2
    found, image = pictures(FORMATS[".webp"].write(samples, Fraction(8)))
    assert np.array_equal(found, expected) and image.info["loop"] == 0
    image.seek(1)
    image.load()
    assert image.info["duration"] == 125
    with av.open(io.BytesIO(FORMATS[".mp4"].write(samples, Fraction(30000, 1001)))) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
        found = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.array_equal(found, expected)


def test_arrays_are_the_samples_and_a_still_shows_frames_below_each_other():
    samples = random_samples()
    stored = np.load(io.BytesIO(FORMATS[".npy"].write(samples, Fraction(8))))
    assert stored.dtype == np.uint8 and np.array_equal(stored, np.round(255 * samples))
    of_images = np.load(io.BytesIO(FORMATS[".npy"].write(samples[:, :, :1], Fraction(8))))
    assert np.array_equal(of_images, stored[:, :, 0])
    (found,), _ = pictures(FORMATS[".png"].write(samples, Fraction(8)))
    frames = [np.round(255 * rows(samples[n : n + 1])[frame]) for n in range(2) for frame in range(5)]
    assert np.array_equal(found, np.concatenate(frames))


def test_a_run_on_clips_gives_clips_and_stills_where_their_size_is_asked_for(run, tmp_path, capsys):
    """Catches the first frame alone, and a still in a file that plays."""
    out = tmp_path / "clips.npy"
    assert main(["sample", str(run.folder), "--prompt=a", "--prompt=b", f"--out={out}", *FEW]) == 0
    clips = np.load(out)
    assert clips.shape == (2, 2, 3, 8, 8, 3) and clips[0, 0].std() > 0
    assert not np.array_equal(clips[0, 0, 0], clips[0, 0, 1]) and not np.array_equal(clips[0], clips[1])
    assert json.loads(out.with_suffix(".json").read_text())["prompts"] == ["a", "b"]
    stills = ["sample", str(run.folder), "--prompt=a", "--latent-size=8x8", *FEW]
    assert main([*stills, f"--out={tmp_path / 'still.npy'}"]) == 0
    assert np.load(tmp_path / "still.npy").shape == (1, 2, 8, 8, 3)
    assert main([*stills, f"--out={tmp_path / 'still.webp'}"]) == 2
    assert "gives images; name a .png or .npy" in capsys.readouterr().err
    assert main(["sample", str(run.folder), "--prompt=a", f"--out={tmp_path / 'a.gif'}"]) == 2
    assert "must end in one of .png, .npy, .webp, .mp4" in capsys.readouterr().err
