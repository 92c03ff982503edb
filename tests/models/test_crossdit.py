"""CrossDiT against PixArt's equations in float64."""

import numpy as np
import pytest

from helpers.mmdit_reference import (
    SMALL,
    attention,
    check,
    gelu,
    image_of,
    layers,
    linear,
    mlp,
    norm,
    patches,
    positions,
    rms,
    rotated,
    silu,
    small_config,
    time_features,
)
from rfjax.models.backbone import make_backbone


def crossdit(config, params, z, t, context, pooled):
    h, heads = config.width, config.heads
    table = lambda p: np.asarray(p["modulation_table"], np.float64)  # noqa: E731

    def normed(p, q, k, prefix=""):
        if not config.qk_norm:
            return q, k
        return (rms(x, p[f"{prefix}{name}_norm"]["scale"], heads) for x, name in ((q, "query"), (k, "key")))

    y = mlp(params["time_embed"], time_features(config, t)) + mlp(params["pooled_embed"], np.float64(pooled))
    shared = linear(params["modulation"], silu(y)).reshape(6, h)
    text = mlp(params["context_embed"], np.float64(context), gelu)
    x = linear(params["patch_embed"], patches(config, z)) + positions(config, z.shape)
    for p in layers(params):
        m = shared + table(p)
        q, k, v = np.split(linear(p["qkv"], norm(x) * (1 + m[1]) + m[0]), 3, axis=-1)
        q, k = (rotated(config, each, z.shape) for each in normed(p, q, k))
        x = x + m[2] * linear(p["proj"], attention(q, k, v, heads))
        k, v = np.split(linear(p["cross_kv"], text), 2, axis=-1)
        x = x + linear(p["cross_proj"], attention(*normed(p, linear(p["cross_q"], x), k, "cross_"), v, heads))
        x = x + m[5] * linear(p["mlp_out"], gelu(linear(p["mlp_in"], norm(x) * (1 + m[4]) + m[3])))
    shift, scale = y + table(params["final"])
    return image_of(config, linear(params["final"]["linear"], norm(x) * (1 + scale) + shift), z.shape)


@pytest.mark.parametrize("changes", ({}, {"qk_norm": True, "depth": 1, "patch_size": 4, "positions": "rotary"}))
def test_crossdit_equals_the_equations(changes):
    """Catches keys taken from the image, a norm or gate on the attention to the text, one table for all
    blocks, and a final modulation through a SiLU."""
    config = small_config("crossdit", **changes)
    check(make_backbone(config, SMALL), config, crossdit)
