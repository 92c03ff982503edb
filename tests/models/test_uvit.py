"""U-ViT against its equations in float64, and the sizes that it accepts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.mmdit_reference import (
    SMALL,
    attention,
    check,
    gelu,
    layers,
    linear,
    mlp,
    norm,
    positions,
    silu,
    small_config,
    time_features,
)
from rfjax.config import Config, apply_overrides
from rfjax.data.batch import BatchShapes
from rfjax.errors import ConfigError
from rfjax.models.backbone import make_backbone
from rfjax.models.uvit import GroupNorm, level_channels


def convolution(p, x):
    height, width, _ = x.shape
    kernel, padded = np.asarray(p["kernel"], np.float64), np.pad(x, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((height, width, kernel.shape[3])) + np.asarray(p["bias"], np.float64)
    for i in range(3):
        for j in range(3):
            out += padded[i : i + height, j : j + width] @ kernel[i, j]
    return out


def group_norm(p, x):
    channels = x.shape[-1]
    size = {12: 12, 24: 12}[channels]
    out = np.empty_like(x)
    for start in range(0, channels, size):
        part = x[..., start : start + size]
        out[..., start : start + size] = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
    return out * np.asarray(p["scale"], np.float64) + np.asarray(p["bias"], np.float64)


def residual(p, x, y):
    shift, scale = linear(p["modulation"], y).reshape(2, -1)
    h = convolution(p["conv_in"], silu(group_norm(p["norm_in"], x)))
    return x + convolution(p["conv_out"], silu(group_norm(p["norm_out"], h) * (1 + scale) + shift))


def uvit(config, params, z, t, context, pooled):
    y = silu(mlp(params["time_embed"], time_features(config, t)) + mlp(params["pooled_embed"], np.float64(pooled)))
    levels = {2: (0,), 4: (0, 1)}[config.patch_size]
    x, kept = convolution(params["stem"], np.float64(z[0])), []
    for level in levels:
        for block in (0, 1):
            x = residual(params[f"down{level}_{block}"], x, y)
            kept.append(x)
        x = linear(params[f"down{level}_linear"], (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4)
    rows, columns, width = x.shape
    text = linear(params["context_embed"], np.float64(context))
    tokens = np.concatenate([text, x.reshape(-1, width) + positions(config, z.shape)])
    for block in layers(params):
        p = block["tokens"]
        m = linear(p["modulation"], y).reshape(6, -1)
        q, k, v = np.split(linear(p["qkv"], norm(tokens) * (1 + m[1]) + m[0]), 3, axis=-1)
        tokens = tokens + m[2] * linear(p["proj"], attention(q, k, v, config.heads))
        tokens = tokens + m[5] * linear(p["mlp_out"], gelu(linear(p["mlp_in"], norm(tokens) * (1 + m[4]) + m[3])))
    x = tokens[len(text) :].reshape(rows, columns, width)
    for level in reversed(levels):
        x = linear(params[f"up{level}_linear"], x).repeat(2, axis=0).repeat(2, axis=1)
        for block in (0, 1):
            x = residual(params[f"up{level}_{block}"], (x + kept.pop()) / np.sqrt(2), y)
    return convolution(params["head"], silu(group_norm(params["final_norm"], x)))[None]


@pytest.mark.parametrize("changes", ({"patch_size": 4, "depth": 2}, {"patch_size": 2, "depth": 1}))
def test_uvit_equals_the_equations(changes):
    """Catches partners in the wrong order, a kernel turned over, groups across the wrong axis, edges that
    are not zero, and pooling that is not a mean."""
    config = small_config("uvit", **changes)
    check(make_backbone(config, SMALL), config, uvit)


def test_channels_halve_from_the_transformers_width():
    assert level_channels(small_config("uvit", hidden=96, patch_size=8)) == (12, 24, 48)
    assert level_channels(small_config("uvit", hidden=96, patch_size=2)) == (48,)


@pytest.mark.parametrize(
    "channels, together", [(256, [8, 9, 10, 11, 12, 13, 14, 15]), (64, [8, 9, 10, 11]), (12, list(range(12)))]
)
def test_group_norm_has_32_groups_or_groups_of_four(channels, together):
    """A change of one channel changes its group only. Catches groups of channels that are far apart, and groups of one
    channel, which would remove the effect of the bias before them."""
    x = np.random.default_rng(0).standard_normal((1, 4, 4, channels)).astype(np.float32)
    params = {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}
    apply = lambda x: GroupNorm(channels).apply({"params": params}, jnp.asarray(x))  # noqa: E731
    before = np.asarray(apply(x))
    x[..., 10] *= 100
    assert np.flatnonzero(np.abs(apply(x) - before).max(axis=(0, 1, 2)) > 1e-3).tolist() == together


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"model.patch_size": 1}, "config.model.patch_size is 1; .* power of two, at least 2"),
        ({"model.patch_size": 6, "data.image_size": 18}, "config.model.patch_size is 6"),
        (
            {"model.patch_size": 16, "model.hidden": 40, "model.head_size": 20},
            "hidden size .* 40 is not divisible by config.model.patch_size=16",
        ),
    ],
)
def test_what_the_levels_cannot_be_made_of_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(Config(), {"model.backbone": "uvit", **overrides})


@pytest.mark.parametrize(
    "latents, message",
    [((8, 6, 3), "latents of 8x6: the width 6 is not divisible"), ((2, 8, 8, 3), "2 frames .*uvit.*use mmdit or dit")],
)
def test_a_latent_that_the_levels_do_not_take_is_refused(latents, message):
    shapes = BatchShapes(latents=latents, context=(4, 8), pooled=8, encoders=())
    backbone = make_backbone(small_config("uvit", patch_size=4), shapes)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(backbone.init, jax.random.key(0))
