"""A run of clips that starts from a run of images: equal frames have the image's velocity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.mmdit_reference import inputs, jit
from helpers.random_runs import make_run
from rfjax.config import apply_overrides, from_dict
from rfjax.errors import ConfigError
from rfjax.training import lineage
from rfjax.training.program import state_shapes
from rfjax.training.run import plan_run

IMAGES = from_dict(
    {
        "model": {"depth": 2, "hidden": 32, "head_size": 16, "position_grid": 4, "position_tokens": 2, "qk_norm": True},
        "data": {
            **{"corpus": "random", "image_size": 4, "channels": 3},
            **{"context_tokens": 3, "context_size": 8, "pooled_size": 8},
        },
        "evaluation": {"geneval": {"prompts_per_task": 0}},
    }
)
PAIRS = {"model.temporal_patch_size": 2}
FACTORISED = {"model.temporal_attention": "factorised"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A run of images with random weights, and its velocity of two."""
    run = make_run(tmp_path_factory.mktemp("clips") / "images", IMAGES)
    batch = inputs(shapes=plan_run(IMAGES).corpus.shapes)
    return run, batch, exact(run.backbone.apply, run.raw, *batch)


def exact(apply, *arguments):
    with jax.default_matmul_precision("highest"):
        return np.asarray(jit(apply)(*arguments))


def child(folder, overrides):
    """(the run of clips, its parent, its first weights and average)."""
    run = plan_run(apply_overrides(IMAGES, overrides))
    parent = lineage.read_parent(str(folder))
    lineage.check_fits(parent, run)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state_shapes(run))
    return run, parent, lineage.inherit(parent, state.params, state.ema, run)


@pytest.mark.parametrize(
    "overrides",
    [
        PAIRS | FACTORISED | {"data.frames": 6},  # any number of frames: here three patches in time
        PAIRS | {"data.frames": 2},  # of the joint attention one patch alone; further ones take attention from the text
    ],
    ids=["factorised", "joint"],
)
def test_equal_frames_have_the_velocity_of_their_image(images, overrides):
    """Catches a patch that is not divided by its frames, a gate that is open, and frames that meet before it is. The
    new attention starts as in a new run, in the weights and in their average."""
    parent, (z, *conditions), velocity = images
    run, _, (params, ema) = child(parent.folder, overrides)
    clip = jnp.repeat(z, run.config.data.frames, axis=1)
    assert np.abs(velocity).mean() > 0.1
    got = exact(run.backbone.apply, params, clip, *conditions)
    np.testing.assert_allclose(got, np.repeat(velocity, run.config.data.frames, axis=1), rtol=0, atol=1e-5)
    kernel = np.asarray(parent.params["patch_embed"]["kernel"])
    np.testing.assert_array_equal(ema["patch_embed"]["kernel"], np.concatenate([kernel, kernel]) / 2)
    for block in ("blocks", "last_block") if run.config.model.temporal_attention == "factorised" else ():
        new = params[block]["image"]["time"]
        assert not np.any(new["modulation"]["kernel"]) and np.asarray(new["qkv"]["kernel"]).std() > 0.05
        assert (np.asarray(new["query_norm"]["scale"]) == 1.0).all()
        jax.tree.map(np.testing.assert_array_equal, new, ema[block]["image"]["time"])


@pytest.mark.parametrize(
    "theirs, ours, message",
    [
        (FACTORISED, {}, "config.model.temporal_attention is factorised in the parent and joint in this run. Set"),
        ({}, PAIRS | {"data.channels": 6}, "channels is 3 in the parent and 6 in this run; .*temporal_patch_size is 1"),
        (PAIRS, {}, "config.model.temporal_patch_size is 2 in the parent and 1 in this run. Set"),
    ],
)
def test_weights_that_do_not_fit_clips_are_refused(images, theirs, ours, message, monkeypatch):
    """Catches an attention over time that is dropped in silence, and channels that are taken for frames."""
    parent = lineage.read_parent(str(images[0].folder))
    given = plan_run(apply_overrides(IMAGES, theirs))
    stored = lineage._shapes(jax.eval_shape(given.backbone.init, jax.random.key(0)))
    monkeypatch.setattr(lineage, "_stored_shapes", lambda _: stored)
    monkeypatch.setattr(lineage, "_config_of", lambda _: given.config)
    with pytest.raises(ConfigError, match=message):
        lineage.check_fits(parent, plan_run(apply_overrides(IMAGES, ours)))
