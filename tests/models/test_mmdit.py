"""MM-DiT against the paper's sizes and against a plain implementation of its equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import jit

from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes, EncoderSlot
from rfjax.models import make_backbone, parameter_count
from rfjax.models.layers import patchify, unpatchify

SLOT = EncoderSlot(name="text", tokens=(0, 10), channels=(0, 24), pooled=(0, 20))
SMALL = BatchShapes(latents=(8, 12, 3), context=(10, 24), pooled=20, encoders=(SLOT,))
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


def random_params(backbone, seed=0):
    """Parameters without the zeros of adaLN-zero, which would hide most of the network."""
    shapes = jax.eval_shape(backbone.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves])


def inputs(batch=2, seed=1):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((batch, *SMALL.latents))
    context, pooled = rng.standard_normal((batch, *SMALL.context)), rng.standard_normal((batch, SMALL.pooled))
    return tuple(map(jnp.float32, (z, rng.uniform(size=batch), context, pooled)))


def linear(p, x):
    """x W + b in float64, with the kernel flattened to a matrix."""
    fan_out = p["bias"].size
    kernel = np.asarray(p["kernel"], np.float64).reshape(-1, fan_out)
    return x @ kernel + np.asarray(p["bias"], np.float64).reshape(-1)


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def rms(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(scale, np.float64)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax_attention(q, k, v, heads):
    """One example: [tokens, width] each, head by head."""
    size = q.shape[-1] // heads
    out = np.empty_like(q)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = q[:, part] @ k[:, part].T / np.sqrt(size)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[:, part] = weights / weights.sum(-1, keepdims=True) @ v[:, part]
    return out


def reference(config, params, z, t, context, pooled):
    """One example through the paper's equations, written out token by token."""
    h, heads, patch = config.width, config.heads, config.patch_size
    height, width, channels = z.shape
    rows, columns = height // patch, width // patch
    tokens = np.stack(
        [
            z[r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].reshape(-1)
            for r in range(rows)
            for c in range(columns)
        ]
    ).astype(np.float64)

    def wave(position):
        omega = 10000.0 ** (-np.arange(h // 4) / (h // 4))
        return np.concatenate([np.sin(position * omega), np.cos(position * omega)])

    def place(index, side):  # the centre of the grid, in units where the training square spans position_span
        p = (config.position_grid - side) // 2 + index
        return (p - (config.position_grid - config.position_tokens) / 2) * config.position_span / config.position_tokens

    positions = np.stack(
        [np.concatenate([wave(place(c, columns)), wave(place(r, rows))]) for r in range(rows) for c in range(columns)]
    )
    x = linear(params["patch_embed"], tokens) + positions
    text = linear(params["context_embed"], context.astype(np.float64))
    half = config.time_embedding_size // 2
    angles = 1000.0 * np.float64(t) * np.exp(-np.log(10000.0) * np.arange(half) / half)
    features = np.concatenate([np.cos(angles), np.sin(angles)])

    def mlp(p, value):
        return linear(p["out"], silu(linear(p["in"], value)))

    y = silu(mlp(params["time_embed"], features) + mlp(params["pooled_embed"], pooled.astype(np.float64)))
    split = config.first_text_tokens
    streams = {"context": text} if config.weight_sets == 2 else {"context_first": text[:split], "context": text[split:]}
    streams["image"] = x

    blocks = []
    for group in ("dual_blocks", "blocks"):
        if group in params:
            count = jax.tree.leaves(params[group])[0].shape[0]
            blocks += [jax.tree.map(lambda leaf, i=i: leaf[i], params[group]) for i in range(count)]
    blocks.append(params["last_block"])

    for number, block in enumerate(blocks):
        last = number == len(blocks) - 1
        chunks, qkv = {}, {}
        for name, s in streams.items():
            p = block[name]
            m = chunks[name] = linear(p["modulation"], y).reshape(-1, h)
            q, k, v = np.split(linear(p["qkv"], norm(s) * (1 + m[1]) + m[0]), 3, axis=-1)
            if config.qk_norm:
                shape = (-1, heads, config.head_size)
                q = rms(q.reshape(shape), p["query_norm"]["scale"]).reshape(q.shape)
                k = rms(k.reshape(shape), p["key_norm"]["scale"]).reshape(k.shape)
            qkv[name] = q, k, v
        joint = [np.concatenate([qkv[name][i] for name in streams]) for i in range(3)]
        attended = softmax_attention(*joint, heads)
        start, following = 0, {}
        for name, s in streams.items():
            part = attended[start : start + len(s)]
            start += len(s)
            if last and name != "image":
                continue
            p, m = block[name], chunks[name]
            update = m[2] * linear(p["proj"], part)
            if "qkv2" in p:
                q, k, v = np.split(linear(p["qkv2"], norm(s) * (1 + m[7]) + m[6]), 3, axis=-1)
                shape = (-1, heads, config.head_size)
                q = rms(q.reshape(shape), p["query_norm2"]["scale"]).reshape(q.shape)
                k = rms(k.reshape(shape), p["key_norm2"]["scale"]).reshape(k.shape)
                update = update + m[8] * linear(p["proj2"], softmax_attention(q, k, v, heads))
            s = s + update
            hidden = gelu(linear(p["mlp_in"], norm(s) * (1 + m[4]) + m[3]))
            following[name] = s + m[5] * linear(p["mlp_out"], hidden)
        streams = following
    m = linear(params["final"]["modulation"], y).reshape(2, h)
    out = linear(params["final"]["linear"], norm(streams["image"]) * (1 + m[1]) + m[0])
    image = np.empty(z.shape)
    for index, token in enumerate(out):
        r, c = divmod(index, columns)
        image[r * patch : (r + 1) * patch, c * patch : (c + 1) * patch] = token.reshape(patch, patch, channels)
    return image


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_pass_equals_the_equations(name):
    config = small_config(**VARIANTS[name])
    backbone = make_backbone(config, SMALL)
    params = random_params(backbone)
    z, t, context, pooled = inputs()
    with jax.default_matmul_precision("highest"):
        got = jit(backbone.apply)(params, z, t, context, pooled)
    examples = zip(*map(np.asarray, (z, t, context, pooled)))
    want = np.stack([reference(config, params, *example) for example in examples])
    assert np.abs(want).mean() > 0.1  # the comparison sees something
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


@functools.cache
def gradient_and_products(remat):
    """The gradients of a network with every part, and how many products its program has."""
    backbone = make_backbone(small_config(depth=4, dual_attention_blocks=1, qk_norm=True), SMALL, remat=remat)
    params, batch = random_params(backbone), inputs()
    gradient = jax.grad(lambda p: jnp.sum(jnp.square(backbone.apply(p, *batch))))
    return jit(gradient)(params), str(jax.make_jaxpr(gradient)(params)).count("dot_general")


@pytest.mark.parametrize("remat", ("full", "attention", "dots"))
def test_remat_changes_memory_and_not_numbers(remat):
    (plain, plain_dots), (other, dots) = gradient_and_products("none"), gradient_and_products(remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5 * float(jnp.abs(a).max()) + 1e-6), plain, other)
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
    x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    tokens = patchify(x, 2)
    assert tokens.shape == (2, 6, 12)
    np.testing.assert_array_equal(tokens[1, 4], x[1, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(unpatchify(tokens, 2, 4, 6), x)


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
