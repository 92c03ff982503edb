"""MM-DiT against the paper's sizes and against a plain implementation of its equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.mmdit_reference import (
    SMALL,
    VIDEO,
    attention,
    check,
    gelu,
    image_of,
    inputs,
    jit,
    linear,
    mlp,
    norm,
    patches,
    positions,
    random_params,
    rms,
    rotated,
    silu,
    time_features,
    token_places,
)
from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.errors import ConfigError
from rfjax.models.backbone import make_backbone, parameter_count
from rfjax.models.patches import patchify, unpatchify

PAPER = BatchShapes(latents=(32, 32, 16), context=(154, 4096), pooled=2048, encoders=())

PUBLISHED = {
    15: 496_066_624,
    18: 856_159_552,
    21: 1_358_950_720,
    22: 1_562_387_264,
    24: 2_028_328_000,
    30: 3_962_392_384,
    38: 8_056_617_792,
}


@pytest.mark.parametrize("depth", PUBLISHED)
def test_parameter_counts_are_the_published_ones(depth):
    assert parameter_count(make_backbone(ModelConfig(depth=depth), PAPER)) == PUBLISHED[depth]


def test_parameter_counts_of_the_sd35_variants():
    large = ModelConfig(depth=38, qk_norm=True)
    medium = ModelConfig(depth=24, qk_norm=True, dual_attention_blocks=13)
    assert parameter_count(make_backbone(large, PAPER)) == 8_056_627_520
    assert parameter_count(make_backbone(medium, PAPER)) == 2_243_171_520


def small_config(**changes):
    values = dict(depth=3, width_per_depth=16, head_size=16, position_tokens=4, position_grid=8, position_span=4.0)
    return ModelConfig(**{**values, **changes})


VARIANTS = {
    "plain": {},
    "qk_norm": {"qk_norm": True},
    "dual": {"depth": 4, "dual_attention_blocks": 2, "qk_norm": True},
    "three_sets": {"weight_sets": 3, "first_text_tokens": 4},
    "one_block": {"depth": 1, "width_per_depth": 32},
}


def reference(config, params, z, t, context, pooled):
    """One example through the paper's equations, written out token by token."""
    h = config.width
    apart = config.temporal_attention == "factorised"
    frames = config.temporal_patch_size if apart else len(z)  # of what attends to itself
    parts = [z[start : start + frames] for start in range(0, len(z), frames)]
    shape = parts[0].shape
    text = linear(params["context_embed"], context.astype(np.float64))
    y = silu(
        mlp(params["time_embed"], time_features(config, t)) + mlp(params["pooled_embed"], pooled.astype(np.float64))
    )
    split = config.first_text_tokens
    streams = {"context": text} if config.weight_sets == 2 else {"context_first": text[:split], "context": text[split:]}
    embedded = [linear(params["patch_embed"], patches(config, part)) + positions(config, shape) for part in parts]
    parts = [streams | {"image": x} for x in embedded]

    blocks = []
    for group in ("dual_blocks", "blocks"):
        if group in params:
            count = jax.tree.leaves(params[group])[0].shape[0]
            blocks += [jax.tree.map(lambda leaf, i=i: leaf[i], params[group]) for i in range(count)]
    blocks.append(params["last_block"])

    for number, block in enumerate(blocks):
        last = number == len(blocks) - 1
        chunks = {name: linear(block[name]["modulation"], y).reshape(-1, h) for name in streams | {"image": None}}
        parts = [attended_to(config, block, streams, chunks, shape, last) for streams in parts]
        if apart:
            update = over_time(config, block["image"]["time"], np.concatenate([s["image"] for s in parts]), y, z.shape)
            pieces = np.split(update, len(parts))
            parts = [s | {"image": s["image"] + piece} for s, piece in zip(parts, pieces, strict=True)]
        for streams in parts:
            for name, s in streams.items():
                p, m = block[name], chunks[name]
                hidden = gelu(linear(p["mlp_in"], norm(s) * (1 + m[4]) + m[3]))
                streams[name] = s + m[5] * linear(p["mlp_out"], hidden)
    m = linear(params["final"]["modulation"], y).reshape(2, h)
    outs = [linear(params["final"]["linear"], norm(streams["image"]) * (1 + m[1]) + m[0]) for streams in parts]
    return np.concatenate([image_of(config, out, shape) for out in outs])


def heads_of(config, p, x, shape=None):
    """Queries, keys and values; the first two are normalised, and turned where the tokens are those of `shape`."""
    q, k, v = np.split(linear(p["qkv"], x), 3, axis=-1)
    if config.qk_norm:
        q, k = rms(q, p["query_norm"]["scale"], config.heads), rms(k, p["key_norm"]["scale"], config.heads)
    return (rotated(config, q, shape), rotated(config, k, shape), v) if shape else (q, k, v)


def attended_to(config, block, streams, chunks, shape, last):
    """The streams after a block's joint attention, and its dual attention."""
    qkv = [
        heads_of(config, block[name], norm(s) * (1 + m[1]) + m[0], shape if name == "image" else None)
        for (name, s), m in zip(streams.items(), (chunks[name] for name in streams), strict=True)
    ]
    attended = attention(*(np.concatenate(each) for each in zip(*qkv, strict=True)), config.heads)
    start, following = 0, {}
    for name, s in streams.items():
        part = attended[start : start + len(s)]
        start += len(s)
        if last and name != "image":
            continue
        p, m = block[name], chunks[name]
        update = m[2] * linear(p["proj"], part)
        if "qkv2" in p:
            second = {key: p[f"{key}2"] for key in ("qkv", "query_norm", "key_norm") if f"{key}2" in p}
            own = heads_of(config, second, norm(s) * (1 + m[7]) + m[6], shape)
            update = update + m[8] * linear(p["proj2"], attention(*own, config.heads))
        following[name] = s + update
    return following


def over_time(config, p, x, y, shape):
    """What the attention over the tokens of all frames adds to them."""
    m = linear(p["modulation"], y).reshape(3, -1)
    times = np.array([place[0] for place in token_places(config, shape)])
    half = config.width // 2
    angles = times[:, None] * 10000.0 ** (-np.arange(half) / half)
    added = 0.0 if config.positions == "rotary" else np.concatenate([np.sin(angles), np.cos(angles) - 1.0], axis=1)
    q, k, v = heads_of(config, p, norm(x) * (1 + m[1]) + m[0] + added, shape)
    return m[2] * linear(p["proj"], attention(q, k, v, config.heads))


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_pass_equals_the_equations(name):
    config = small_config(**VARIANTS[name])
    check(make_backbone(config, SMALL), config, reference)


FRAMES = {
    "added": {"depth": 1, "width_per_depth": 32, "temporal_patch_size": 2},
    "rotary": {
        **{"depth": 2, "width_per_depth": 16, "temporal_patch_size": 2, "qk_norm": True, "dual_attention_blocks": 1},
        **{"positions": "rotary", "rotary_theta": 100.0},
    },
    "factorised": {"depth": 2, "width_per_depth": 16, "temporal_patch_size": 2, "temporal_attention": "factorised"},
    "factorised_rotary": {
        **{"depth": 1, "width_per_depth": 32, "qk_norm": True, "positions": "rotary", "rotary_theta": 100.0},
        **{"temporal_attention": "factorised"},
    },
}


@pytest.mark.parametrize("name", FRAMES)
def test_forward_pass_of_frames_equals_the_equations(name):
    """Catches tokens, positions or rotations of time in another order than those of the patches; factorised, a frame
    that meets another or its text, and a time that is known before it."""
    config = small_config(**FRAMES[name])
    check(make_backbone(config, VIDEO), config, reference, shapes=VIDEO)


@functools.cache
def gradient_and_products(remat):
    """The gradients of a network with every part, and how many products its program has."""
    backbone = make_backbone(small_config(depth=4, dual_attention_blocks=1, qk_norm=True), SMALL, remat=remat)
    params, batch = random_params(backbone), inputs()
    gradient = jax.grad(lambda p: jnp.sum(jnp.square(backbone.apply(p, *batch))))
    return jit(gradient)(params), str(jax.make_jaxpr(gradient)(params)).count("dot_general")


@pytest.mark.full
@pytest.mark.parametrize("remat", ("full", "attention", "dots"))
def test_remat_changes_memory_and_not_numbers(remat):
    (plain, plain_dots), (other, dots) = gradient_and_products("none"), gradient_and_products(remat)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5 * float(jnp.abs(a).max()) + 1e-6),
        plain,
        other,
    )
    # "dots" keeps the products; the others compute at least some of them again.
    assert dots > plain_dots


def test_a_new_network_predicts_zero():
    backbone = make_backbone(small_config(), SMALL)
    z, t, context, pooled = inputs()
    assert not np.any(jit(backbone.apply)(jit(backbone.init)(jax.random.key(0)), z, t, context, pooled))


def test_every_parameter_matters():
    """A parameter without a gradient is one the paper does not have (the last block's context MLP)."""
    config = small_config(depth=4, dual_attention_blocks=1, weight_sets=3, first_text_tokens=4, qk_norm=True)
    backbone = make_backbone(config, SMALL)
    params = random_params(backbone)
    z, t, context, pooled = inputs()
    gradients = jit(jax.grad(lambda p: jnp.sum(jnp.square(backbone.apply(p, z, t, context, pooled)))))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # The one exception is the paper's own: the last block's text queries attend for nothing.
        unused = name.startswith("last_block/context") and name.endswith("query_norm/scale")
        assert (float(jnp.abs(leaf).max()) > 0) != unused, name


def test_patches_put_the_channel_fastest_and_come_back():
    x = jnp.arange(2 * 4 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 4, 6, 3)
    for time in (1, 2):
        patch = (time, 2, 2)
        tokens = patchify(x, patch)
        assert tokens.shape == (2, 6 * 4 // time, 12 * time)
        np.testing.assert_array_equal(tokens[1, 6 + 4], x[1, time : 2 * time, 2:4, 2:4].reshape(-1))
        np.testing.assert_array_equal(unpatchify(tokens, patch, x.shape[1:]), x)


def test_a_still_is_its_frame_repeated_through_a_patch():
    """Catches a loss on both copies of a still, and a still that a patch of two frames refuses."""
    still = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 1, 4, 6, 3)
    tokens = patchify(still, (2, 2, 2))
    np.testing.assert_array_equal(tokens, patchify(jnp.concatenate([still, still], axis=1), (2, 2, 2)))
    first = unpatchify(tokens.at[..., 12:].set(-1.0), (2, 2, 2), still.shape[1:])  # the second frame is not looked at
    np.testing.assert_array_equal(first, still)


@pytest.mark.parametrize("latents, named", [((3, 4, 4, 1), "3 frames.*temporal_patch_size=2"), ((2, 4, 5, 1), "4x5")])
def test_latents_that_a_patch_does_not_divide_are_refused(latents, named):
    """Catches frames that are cut off in silence."""
    with pytest.raises(ConfigError, match=named):
        patchify(jnp.zeros((1, *latents)), (2, 2, 2))


def test_bfloat16_compute_keeps_float32_parameters_and_output():
    backbone = make_backbone(small_config(), SMALL, compute_dtype="bfloat16")
    params = random_params(backbone)
    z, t, context, pooled = inputs()
    exact = jit(make_backbone(small_config(), SMALL).apply)(params, z, t, context, pooled)
    rough = jit(backbone.apply)(params, z, t, context, pooled)
    assert rough.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(jax.eval_shape(backbone.init, jax.random.key(0))))
    error = float(jnp.abs(rough - exact).max() / jnp.abs(exact).max())
    assert 1e-5 < error < 0.1  # computed in bfloat16, and close all the same


def test_program_does_not_grow_with_depth():
    """Compile time grows with the program; under the scan it is the same at any depth."""

    def lines(depth):
        backbone = make_backbone(small_config(depth=depth, width_per_depth=1, hidden=48), SMALL)
        params = jax.eval_shape(backbone.init, jax.random.key(0))
        loss = lambda p, *batch: jnp.sum(backbone.apply(p, *batch))  # noqa: E731
        return len(jax.jit(jax.grad(loss)).lower(params, *inputs()).as_text().splitlines())

    assert lines(24) == lines(4)


@pytest.mark.parametrize("remat", ("none", "full"))
def test_all_blocks_in_one_iteration_leave_no_loop_and_the_same_gradient(remat):
    """Catches an unrolling that is not used, layers in another order, and a compiler that sees through the policy and
    keeps what should be computed again: with a loop it cannot, without one a barrier must stop it."""
    config, batch = small_config(depth=4), inputs()

    def lowered(unroll):
        backbone = make_backbone(config, SMALL, remat=remat, unroll=unroll)
        params = random_params(make_backbone(config, SMALL))
        loss = lambda p: jnp.sum(jnp.square(backbone.apply(p, *batch) - 1.0))  # noqa: E731
        return params, jax.jit(jax.grad(loss)).lower(params)

    params, plain = lowered(1)
    _, whole = lowered(4)
    loops = [program.as_text().count("stablehlo.while") for program in (plain, whole)]
    assert loops[0] == 2 and loops[1] == 0
    # the last block has a barrier of its own, in both; equal blocks of the stack share a text, or each has its own
    barriers = [program.as_text().count("optimization_barrier") for program in (plain, whole)]
    assert barriers in (([1, 2], [1, 4]) if remat == "full" else ([0, 0],))
    if remat == "full":
        got, want = (program.compile()(params) for program in (whole, plain))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * float(jnp.abs(b).max())), got, want
        )
