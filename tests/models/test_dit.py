"""DiT: as an MM-DiT whose streams share their weights, and the original with classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.mmdit_reference import (
    SMALL,
    attention,
    check,
    gelu,
    image_of,
    inputs,
    jit,
    layers,
    linear,
    mlp,
    norm,
    patches,
    positions,
    random_params,
    rms,
    rotated,
    silu,
    small_config,
    time_features,
)
from rfjax.models.backbone import make_backbone


def tied(params):
    """The parameters of an MM-DiT whose streams all have the weights of a `dit`."""
    made = {name: part for name, part in params.items() if name not in ("blocks", "last_block")}
    if "blocks" in params:
        made["blocks"] = {"context": params["blocks"]["tokens"], "image": params["blocks"]["tokens"]}
    last = params["last_block"]["tokens"]
    ended = {name: part for name, part in last.items() if name in ("qkv", "query_norm", "key_norm")}
    ended["modulation"] = {"kernel": last["modulation"]["kernel"][:, :2], "bias": last["modulation"]["bias"][:2]}
    return made | {"last_block": {"context": ended, "image": last}}


@pytest.mark.parametrize("changes", ({}, {"qk_norm": True}, {"depth": 1, "positions": "rotary"}))
def test_dit_is_an_mmdit_whose_streams_share_their_weights(changes):
    """SD3 5.2.3 calls it a special case. Catches tokens dropped too early or kept too long, a block that
    sees one stream alone, text that is rotated, and a text stream that stops or goes on where MM-DiT's does not."""
    dit = make_backbone(small_config("dit", **changes), SMALL)
    joint = make_backbone(small_config("mmdit", **changes), SMALL)
    params, batch = random_params(dit), inputs()
    jax.tree.map(lambda a, b: None, tied(params), jax.eval_shape(joint.init, jax.random.key(0)))  # the same tree
    with jax.default_matmul_precision("highest"):
        got, want = jit(dit.apply)(params, *batch), jit(joint.apply)(tied(params), *batch)
    assert float(jnp.abs(want).mean()) > 0.1
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


def class_dit(config, params, z, t, context, pooled):
    """Peebles and Xie's equations: one example."""
    y = silu(mlp(params["time_embed"], time_features(config, t)) + linear(params["class_embed"], np.float64(pooled)))
    x = linear(params["patch_embed"], patches(config, z)) + positions(config, z.shape)
    for block in layers(params):
        p = block["tokens"]
        m = linear(p["modulation"], y).reshape(6, -1)
        q, k, v = np.split(linear(p["qkv"], norm(x) * (1 + m[1]) + m[0]), 3, axis=-1)
        if config.qk_norm:
            q, k = rms(q, p["query_norm"]["scale"], config.heads), rms(k, p["key_norm"]["scale"], config.heads)
        q, k = rotated(config, q, z.shape), rotated(config, k, z.shape)
        x = x + m[2] * linear(p["proj"], attention(q, k, v, config.heads))
        x = x + m[5] * linear(p["mlp_out"], gelu(linear(p["mlp_in"], norm(x) * (1 + m[4]) + m[3])))
    m = linear(params["final"]["modulation"], y).reshape(2, -1)
    return image_of(config, linear(params["final"]["linear"], norm(x) * (1 + m[1]) + m[0]), z.shape)


@pytest.mark.parametrize("changes", ({}, {"qk_norm": True, "depth": 1, "patch_size": 4, "positions": "rotary"}))
def test_class_dit_equals_the_equations(changes):
    """Catches another order of shift, scale and gate, and a gate or norm left out."""
    config = small_config("dit_class", **changes)
    check(make_backbone(config, SMALL), config, class_dit)


def test_a_one_hot_pooled_looks_its_class_up_and_zeros_the_null_class():
    """With a table of 20 + 1 embeddings as Peebles and Xie have it. Catches a bias that is not the null
    class's, such as one that is left out."""
    config = small_config("dit_class")
    backbone = make_backbone(config, SMALL)
    params, (z, t, context, _) = random_params(backbone), inputs(4)
    table = np.random.default_rng(3).standard_normal((21, config.width)).astype(np.float32)
    params["class_embed"] = {"kernel": jnp.asarray(table[:20] - table[20]), "bias": jnp.asarray(table[20])}
    labels = np.array([0, 7, 19, 20])
    pooled = jnp.asarray(np.eye(21, 20, dtype=np.float32)[labels])
    apply = jit(backbone.apply)
    got = apply(params, z, t, context, pooled)
    for example, label in enumerate(labels):
        direct = {**params, "class_embed": {"kernel": jnp.zeros((20, config.width)), "bias": jnp.asarray(table[label])}}
        one = slice(example, example + 1)
        want = apply(direct, z[one], t[one], context[one], pooled[one])
        np.testing.assert_allclose(got[one], want, atol=1e-4 * float(jnp.abs(want).max()))


def test_class_dit_does_not_read_the_context():
    backbone = make_backbone(small_config("dit_class"), SMALL)
    params, (z, t, context, pooled) = random_params(backbone), inputs()
    apply = jit(backbone.apply)
    np.testing.assert_array_equal(apply(params, z, t, context, pooled), apply(params, z, t, 9 * context, pooled))
