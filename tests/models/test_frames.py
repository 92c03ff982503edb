"""Latents of several frames: an image is one frame, bit for bit; tokens, FLOPs and positions of more."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.config import Config, ModelConfig, apply_overrides, from_dict, to_dict
from rfjax.data.batch import BatchShapes, stills
from rfjax.data.corpus import load_corpus
from rfjax.errors import ConfigError
from rfjax.evaluation.generate import noise_for
from rfjax.evaluation.samples.request import latents_shape
from rfjax.flow.objective import draw
from rfjax.flow.resolution import formulation_at, shift_at
from rfjax.limits import check_latents
from rfjax.models.backbone import make_backbone, parameter_count
from rfjax.models.flops import forward_flops, patches, training_flops
from rfjax.models.layers import added_positions, position_formula
from rfjax.models.positions import time_positions
from rfjax.models.rotary import make_rotation, rotate
from rfjax.training.run import plan_run


def test_one_frame_has_an_images_noise_positions_and_shift():
    """Catches runs of images that change when latents have frames."""
    drawn = [draw(jax.random.key(1), jnp.int32(3), jnp.arange(4), shape, 1, 0.0) for shape in ((6, 4, 3), (1, 6, 4, 3))]
    np.testing.assert_array_equal(drawn[0].noise, drawn[1].noise[:, 0])
    sampled = noise_for(5, jnp.array([[0, 0], [1, 2]]), (1, 6, 4, 3))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5, impl="threefry2x32"), 1), 2)
    np.testing.assert_array_equal(sampled[1, 0], jax.random.normal(key, (6, 4, 3)))
    model = ModelConfig(depth=1)
    assert (added_positions(model, (1, 5, 7)) == position_formula(model, 5, 7)).all()
    config = Config(timestep_shift=3.0, timestep_shift_by_area=True)
    assert shift_at(config, (1, 32, 16, 3)) == 3.0 * np.sqrt(2.0) == shift_at(config, (8, 32, 16, 3))
    by_frames = replace(config, timestep_shift_frames=0.5)
    assert shift_at(by_frames, (1, 32, 16, 3)) == shift_at(config, (1, 32, 16, 3))


@pytest.mark.parametrize("by_area, exponent, alpha", [(False, 0.5, 6.0), (True, 0.5, 12.0), (True, 1.0, 24.0)])
def test_the_shift_follows_the_latents_frames(by_area, exponent, alpha):
    """4 frames of twice the config's side. Catches a sampler, or a step, that has another shift than the other."""
    values = {"timestep_shift": 3.0, "timestep_shift_by_area": by_area, "timestep_shift_frames": exponent}
    config = apply_overrides(Config(), values | {"data.corpus": "random", "evaluation.geneval.prompts_per_task": 0})
    assert shift_at(config, (4, 32, 32, 3)) == alpha == formulation_at(config, (4, 32, 32, 3)).timestep_shift
    clips = plan_run(apply_overrides(config, {"data.frames": 4}))  # what its steps and its samplers read
    assert clips.formulation.timestep_shift == 3.0 * 4**exponent
    said = r"timestep_shift_frames is [\d.]+, .* 'eps/linear' is not rectified flow's; set it to 0"
    with pytest.raises(ConfigError, match=said):
        formulation_at(replace(config, formulation="eps/linear", timestep_shift=1.0, timestep_shift_by_area=False))


def test_what_describes_a_run_of_images_does_not_speak_of_frames():
    """Catches a fingerprint or a config.json of an image run that other versions of rfjax would not recognise."""
    shapes = BatchShapes((16, 8, 3), (4, 8), 8, ())
    assert shapes == BatchShapes((1, 16, 8, 3), (4, 8), 8, ()) and shapes.latents == (1, 16, 8, 3)
    assert repr(shapes) == "BatchShapes(latents=(16, 8, 3), context=(4, 8), pooled=8, encoders=())"
    config = apply_overrides(Config(), {"data.corpus": "random", "evaluation.geneval.prompts_per_task": 0})
    fingerprint = load_corpus(config.data, 0).fingerprint
    assert fingerprint == "36ec802c07eb7fa8ca386e4649f1cb139bb1d6fdb8d607f1a74c1ff1e87883b2"
    written = json.dumps(to_dict(config))
    assert "frames" not in written and "temporal" not in written and "rotary_" not in written
    assert from_dict(to_dict(config)).model.temporal_attention == "joint"
    clips = {"data.frames": 4, "model.temporal_patch_size": 2, "model.positions": "rotary"}
    video = apply_overrides(config, clips | {"model.rotary_channels": "16,24,24"})
    assert to_dict(video)["model"]["rotary_channels"] == [16, 24, 24] and video.model.rotary_split == (16, 24, 24)
    assert to_dict(video)["data"]["frames"] == 4 and from_dict(to_dict(video)) == video
    assert load_corpus(video.data, 7).examples(np.arange(2), "train").latents.shape == (2, 4, 16, 16, 3)
    assert load_corpus(video.data, 0).fingerprint != fingerprint


def test_latents_of_several_frames_are_no_images():
    """Catches a picture made of the first frame, as if there were no more."""
    with pytest.raises(ConfigError, match="latents of 3 frames are clips, not images"):
        stills(np.zeros((2, 3, 4, 4, 3), np.float32))
    with pytest.raises(ConfigError, match=r"latents are \(4, 4\)"):
        BatchShapes((4, 4), (4, 8), 8, ())


def test_time_adds_to_an_images_positions_from_nothing():
    """Catches a time that is added to the first frame, and frames in another order than the tokens'."""
    model = ModelConfig(depth=1)
    places, frame, time = added_positions(model, (3, 2, 4)), position_formula(model, 2, 4), time_positions(3, 64)
    assert not time[0].any() and np.abs(time[1:]).max() > 0.5
    np.testing.assert_array_equal(places.reshape(3, 8, 64), time[:, None] + frame)


JOINT = {15: 1_010, 18: 1_664, 21: 2_551, 30: 6_959, 38: 13_665}  # forward GFLOPs a clip, counted independently


@pytest.mark.parametrize("depth", JOINT)
def test_flops_of_sd3s_clips(depth):
    """16 frames of 256 px as 2,048 tokens. Catches frames that are not counted, and patches without a time."""
    shapes = BatchShapes((16, 32, 32, 16), (154, 4096), 2048, ())
    model = ModelConfig(depth=depth, temporal_patch_size=2)
    assert patches(model, shapes) == (2048, 128)
    assert round(forward_flops(model, shapes) / 1e9) == JOINT[depth]
    assert patches(model, BatchShapes((1, 32, 32, 16), (154, 4096), 2048, ())) == (256, 128)  # a still


FACTORISED = {15: 1_627, 18: 2_719, 21: 4_215, 30: 11_755, 38: 23_362}  # the same, frames in the batch


@pytest.mark.parametrize("depth", FACTORISED)
def test_flops_of_sd3s_reading(depth):
    """8 frames of 256 visual and 154 text tokens, and an attention over 2,048. The independent count leaves out the
    modulation of that attention, 6 hidden^2 a block. Catches texts and attentions that are not counted."""
    shapes = BatchShapes((16, 32, 32, 16), (154, 4096), 2048, ())
    model = ModelConfig(depth=depth, temporal_patch_size=2, temporal_attention="factorised")
    assert round((forward_flops(model, shapes) - 6 * model.width**2 * depth) / 1e9) == FACTORISED[depth]


def test_an_attention_over_time_adds_its_parameters():
    """Queries, keys, values and output, 4 hidden^2 a block, and a modulation of 3; nothing depends on the frames."""
    model, width = ModelConfig(depth=2, qk_norm=True), 128
    factorised = replace(model, temporal_attention="factorised")
    shapes = BatchShapes((4, 8, 8, 3), (4, 8), 8, ())
    counts = [parameter_count(make_backbone(each, shapes)) for each in (model, factorised)]
    assert counts[1] - counts[0] == 2 * (7 * width**2 + 7 * width + 2 * 64)
    assert counts[1] == parameter_count(make_backbone(factorised, BatchShapes((8, 8, 3), (4, 8), 8, ())))


def test_flops_of_wan_14b():
    """81 frames of 720p: 75,600 tokens and 512 of text, 19,570 TFLOPs a training sample (maxdiffusion: 19,573)."""
    shapes = BatchShapes((21, 90, 160, 16), (512, 4096), 768, ())
    model = ModelConfig(backbone="crossdit", depth=40, hidden=5120, head_size=128, mlp_ratio=2.7, positions="rotary")
    assert patches(model, shapes)[0] == 75_600
    assert training_flops(model, shapes) == pytest.approx(19_570e12, rel=1e-3)
    assert model.rotary_split == (44, 42, 42) and ModelConfig().rotary_split == (24, 20, 20)


def test_a_run_of_frames_is_planned_with_their_tokens():
    """Catches a plan that costs a clip as an image; the parameters are those of the images' network."""
    image = apply_overrides(Config(), {"data.corpus": "random", "model.depth": 2, "train.compute_dtype": "bfloat16"})
    clip = apply_overrides(image, {"data.frames": 5})
    runs = plan_run(image), plan_run(clip)
    assert runs[0].parameter_count == runs[1].parameter_count
    assert runs[1].flops_per_image > 4 * runs[0].flops_per_image


def test_samples_of_a_run_of_frames_are_stills_that_are_asked_for():
    """Catches a clip among the images of a folder for scorers, and a size that is taken for a clip's."""
    run = plan_run(apply_overrides(Config(), {"data.corpus": "random", "model.depth": 2, "data.frames": 5}))
    with pytest.raises(ConfigError, match="latents of 5 frames, and a folder .* images; give --latent-size=16x16"):
        latents_shape(run, None)
    assert latents_shape(run, (16, 8), clips=True) == (1, 16, 8, 3)
    assert latents_shape(run, None, clips=True) == (5, 16, 16, 3)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            {"data.frames": 3, "model.temporal_patch_size": 2},
            "data.frames is 3 and config.model.temporal_patch_size is 2",
        ),
        ({"model.rotary_theta": 256}, "rotary_theta is 256.0, which config.model.positions=formula does not read"),
        ({"model.rotary_channels": (24, 20, 20)}, "rotary_channels is .24, 20, 20., which .*positions=formula"),
        ({"model.positions": "rotary", "model.rotary_channels": (16, 56, 56)}, "three even numbers"),
        ({"model.positions": "rotary", "model.rotary_channels": (22, 21, 21)}, "three even numbers"),
        ({"model.positions": "rotary", "model.head_size": 4}, "even head size of at least 6"),
        ({"model.rotary_channels": "16,x"}, "rotary_channels is '16,x'; it must be a list of integers"),
        ({"model.temporal_attention": "factorized"}, "did you mean factorised"),
        ({"timestep_shift_frames": -0.5}, "config.timestep_shift_frames is -0.5; it must be at least 0"),
        ({"data.frames": 0}, "config.data.frames is 0; it must be at least 1"),
    ],
)
def test_what_frames_and_rotations_cannot_be_is_refused(overrides, message):
    """Catches a setting that is read and has no effect, and a patch that cuts frames off."""
    with pytest.raises(ConfigError, match=message):
        apply_overrides(Config(), overrides)


def test_a_still_fits_every_patch_and_frames_only_their_own():
    config = apply_overrides(Config(), {"model.temporal_patch_size": 2, "model.positions": "rotary"})
    check_latents(config.model, (1, 16, 16, 3))
    check_latents(config.model, (4, 16, 1000, 3))  # rotary positions have no grid that ends
    with pytest.raises(ConfigError, match="latents of 5 frames of 16x16: the number of frames .*temporal_patch_size=2"):
        check_latents(config.model, (5, 16, 16, 3))


def test_rotations_give_products_of_distances():
    """Catches an axis that turns queries and keys differently, and an axis that is left out."""
    model = ModelConfig(depth=1, head_size=16, positions="rotary", rotary_theta=30.0)
    grid = (3, 3, 3)
    q, k = (np.float32(np.random.default_rng(seed).standard_normal((1, 1, 1, 16))) for seed in (0, 1))
    turned = [rotate(jnp.tile(x, (1, 27, 1, 1)), make_rotation(model, grid))[0, :, 0] for x in (q, k)]
    np.testing.assert_array_equal(turned[0][0], q.reshape(-1))
    products = np.asarray(turned[0] @ turned[1].T).reshape(grid + grid)
    for axis in range(3):
        one = np.eye(3, dtype=int)[axis]
        near, far = products[(0, 0, 0, *one)], products[(*one, *(2 * one))]
        assert abs(near - far) < 1e-5 and abs(near - products[0, 0, 0, 0, 0, 0]) > 1e-3


def test_parameters_of_a_patch_in_time():
    """Only the first and the last layer know of a patch's frames."""
    shapes = BatchShapes((4, 8, 8, 3), (4, 8), 8, ())
    counts = [parameter_count(make_backbone(ModelConfig(depth=2, temporal_patch_size=n), shapes)) for n in (1, 2)]
    assert counts[1] - counts[0] == 2 * 128 * 12 + 12
