"""The pieces of a backbone's equations in float64, one example at a time, written out plainly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes

# Compilation is what tests of models cost, and unoptimised programs have the same numbers.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SMALL = BatchShapes(latents=(8, 12, 3), context=(10, 24), pooled=20, encoders=())


def small_config(backbone, **changes):
    values = dict(depth=3, hidden=48, head_size=16, position_tokens=4, position_grid=8, position_span=4.0)
    return ModelConfig(**{**values, "backbone": backbone, **changes})


def random_params(backbone, seed=0, scale=0.2):
    """Parameters without the zeros of adaLN-zero, which would hide most of the network."""
    shapes = jax.eval_shape(backbone.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
    )


def inputs(batch=2, seed=1):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((batch, *SMALL.latents))
    context, pooled = rng.standard_normal((batch, *SMALL.context)), rng.standard_normal((batch, SMALL.pooled))
    return tuple(map(jnp.float32, (z, rng.uniform(size=batch), context, pooled)))


def linear(p, x):
    """x W + b, the kernel flattened to a matrix."""
    fan_out = p["bias"].size
    return x @ np.asarray(p["kernel"], np.float64).reshape(-1, fan_out) + np.asarray(p["bias"], np.float64).reshape(-1)


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def rms(x, scale, heads):
    parts = x.reshape(len(x), heads, -1)
    return (parts / np.sqrt((parts**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(scale, np.float64)).reshape(x.shape)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(p, x, activation=silu):
    return linear(p["out"], activation(linear(p["in"], x)))


def attention(q, k, v, heads):
    """Head by head; q may have other tokens than k and v."""
    size = q.shape[-1] // heads
    out = np.empty_like(q)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = q[:, part] @ k[:, part].T / np.sqrt(size)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[:, part] = weights / weights.sum(-1, keepdims=True) @ v[:, part]
    return out


def time_features(config, t):
    half = config.time_embedding_size // 2
    angles = 1000.0 * np.float64(t) * np.exp(-np.log(10000.0) * np.arange(half) / half)
    return np.concatenate([np.cos(angles), np.sin(angles)])


def positions(config, rows, columns):
    quarter = config.width // 4
    omega = 10000.0 ** (-np.arange(quarter) / quarter)

    def wave(index, side):
        p = (config.position_grid - side) // 2 + index
        place = (
            (p - (config.position_grid - config.position_tokens) / 2) * config.position_span / config.position_tokens
        )
        return np.concatenate([np.sin(place * omega), np.cos(place * omega)])

    return np.stack([np.concatenate([wave(c, columns), wave(r, rows)]) for r in range(rows) for c in range(columns)])


def patches(config, z):
    size = config.patch_size
    corners = [(r, c) for r in range(0, z.shape[0], size) for c in range(0, z.shape[1], size)]
    return np.stack([z[r : r + size, c : c + size].reshape(-1) for r, c in corners]).astype(np.float64)


def image_of(config, tokens, shape):
    image, size = np.empty(shape), config.patch_size
    for token, (r, c) in zip(
        tokens, [(r, c) for r in range(0, shape[0], size) for c in range(0, shape[1], size)], strict=True
    ):
        image[r : r + size, c : c + size] = token.reshape(size, size, shape[2])
    return image


def layers(params):
    """The blocks' parameters, one by one."""
    found = []
    if "blocks" in params:
        count = jax.tree.leaves(params["blocks"])[0].shape[0]
        found = [jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(count)]
    return found + ([params["last_block"]] if "last_block" in params else [])


def check(backbone, config, equations, params=None):
    """The network's output is that of `equations(config, params, z, t, context, pooled)`, example by example."""
    params = params or random_params(backbone)
    batch = inputs()
    with jax.default_matmul_precision("highest"):
        got = jit(backbone.apply)(params, *batch)
    want = np.stack([equations(config, params, *example) for example in zip(*map(np.asarray, batch), strict=True)])
    assert np.abs(want).mean() > 0.1  # the comparison sees something
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())
