"""Names of samplers: written and read in one place, byte for byte."""

import csv
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from rfjax.config import from_dict
from rfjax.evaluation.sampler_name import SamplerName, ground_truth_name

RESULTS = Path(__file__).parents[2] / "analysis" / "results"
PLAIN = SamplerName(method="euler", steps=50, guidance_scale=5.0, timestep_shift=3.0)
FIELDS = {
    "method": ("euler", "heun"),
    "steps": (1, 250),
    "guidance_scale": (1.0, 2.5, -1.0, 1e-05, 1e16),
    "timestep_shift": (1.0, 3.1625),
    "by_area": (False, True),
    "by_frames": (0.0, 0.5),
    "sigmas": ("uniform", "matched", "diffusers"),
    "encoders": ((), ("clip_l",), ("clip_l", "clip_g", "t5")),
    "latent_size": (None, (24, 40)),
    "images": (None, (553, 4)),
    "reference": (None, 50),
}


def test_every_combination_of_settings_is_read_back():
    """Catches a part that is written and not read, or read as its neighbour."""
    for values in itertools.product(*FIELDS.values()):
        name = SamplerName(**dict(zip(FIELDS, values, strict=True)))
        read = SamplerName.parse(name.format())
        if name.latent_size and not name.images:  # no key has such a name: the lone AxB is taken for the images
            assert read == replace(name, latent_size=None, images=name.latent_size)
        else:
            assert read == name
        assert read.format() == name.format()


@pytest.mark.parametrize(
    "changes, text",
    [
        ({}, "euler-50-cfg5-shift3"),
        ({"images": (40, 4)}, "euler-50-cfg5-shift3-40x4"),
        ({"by_area": True, "images": (40, 4)}, "euler-50-cfg5-shift3-by-area-40x4"),
        ({"by_frames": 0.5}, "euler-50-cfg5-shift3-by-frames0.5"),
        ({"method": "heun", "steps": 25, "guidance_scale": 2.5, "sigmas": "matched"}, "heun-25-cfg2.5-shift3-matched"),
        ({"steps": 5, "images": (40, 4), "reference": 50}, "euler-5-cfg5-shift3-40x4-of50"),
        ({"guidance_from": 0.1, "guidance_to": 0.8}, "euler-50-cfg5-in0.1..0.8-shift3"),
        ({"latent_size": (24, 40)}, "euler-50-cfg5-shift3-24x40"),
        (
            {"encoders": ("clip_l", "clip_g"), "latent_size": (24, 40), "images": (553, 4)},
            "euler-50-cfg5-shift3-clip_l+clip_g-24x40-553x4",
        ),
    ],
)
def test_names_stay_what_they_are(changes, text):
    """They are part of records' keys, and so of the names of files on disk."""
    assert replace(PLAIN, **changes).format() == text
    if "latent_size" not in changes or "images" in changes:  # a lone size is read as numbers of images
        assert SamplerName.parse(text) == replace(PLAIN, **changes)


def test_stored_names_are_read():
    stored = set()
    for path in RESULTS.rglob("*.csv"):
        with path.open() as lines:
            stored |= {row["sampler"] for row in csv.DictReader(lines) if row.get("sampler")}
    assert stored
    for text in stored:
        assert SamplerName.parse(text).format() == text


@pytest.mark.parametrize(
    "text", ["", "-", "x", "heun-10", "ground truth-40x8", "euler-050-cfg5-shift3", "euler-50-cfg5.0-shift3"]
)
def test_names_of_another_making_are_not_read(text):
    """`rfjax score --sampler` takes any: what is read must give the very same text again."""
    assert SamplerName.parse(text) is None


def test_samples_that_differ_in_their_steps_alone_have_the_same_settings():
    names = [replace(PLAIN, steps=steps, images=(40, 4), reference=50) for steps in (5, 50)]
    assert {name.settings for name in names} == {"euler-cfg5-shift3-40x4"}


def test_the_shift_is_the_runs():
    config = from_dict({"timestep_shift": 3.0, "timestep_shift_by_area": True, "timestep_shift_frames": 0.5})
    name = SamplerName.of(config, config.evaluation.sampler, images=(40, 4))
    assert name == replace(PLAIN, by_area=True, by_frames=0.5, images=(40, 4))


def test_ground_truth_has_no_sampler():
    assert ground_truth_name((40, 8)) == "ground truth-40x8"
