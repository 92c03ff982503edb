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


VIDEO = BatchShapes(latents=(4, 4, 8, 3), context=(10, 24), pooled=20, encoders=())


def inputs(batch=2, seed=1, shapes=SMALL):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((batch, *shapes.latents))
    context, pooled = rng.standard_normal((batch, *shapes.context)), rng.standard_normal((batch, shapes.pooled))
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


def token_places(config, shape):
    """(time, row, column) of every token."""
    times, rows, columns = (side // p for side, p in zip(shape, config.patch, strict=False))
    return [(t, r, c) for t in range(times) for r in range(rows) for c in range(columns)]


def positions(config, shape):
    """What is added to the tokens of latents of (frames, height, width, channels)."""
    quarter = config.width // 4
    omega = 10000.0 ** (-np.arange(quarter) / quarter)
    half = config.width // 2
    _, rows, columns = (side // p for side, p in zip(shape, config.patch, strict=False))

    def wave(index, side):
        p = (config.position_grid - side) // 2 + index
        place = (
            (p - (config.position_grid - config.position_tokens) / 2) * config.position_span / config.position_tokens
        )
        return np.concatenate([np.sin(place * omega), np.cos(place * omega)])

    def time(t):
        angles = t * 10000.0 ** (-np.arange(half) / half)
        return np.concatenate([np.sin(angles), np.cos(angles) - 1.0])

    if config.positions == "rotary":
        return 0.0
    return np.stack(
        [np.concatenate([wave(c, columns), wave(r, rows)]) + time(t) for t, r, c in token_places(config, shape)]
    )


def rotated(config, x, shape):
    """Queries or keys [tokens, heads * head_size] of visual tokens, each pair of channels turned by its angle."""
    if config.positions != "rotary":
        return x
    out = np.empty_like(x)
    for token, place in enumerate(token_places(config, shape)):
        for head in range(config.heads):
            channel = head * config.head_size
            for position, size in zip(place, config.rotary_split, strict=True):
                for pair in range(size // 2):
                    turn = np.exp(1j * position * config.rotary_theta ** (-2 * pair / size))
                    value = (x[token, channel] + 1j * x[token, channel + 1]) * turn
                    out[token, channel : channel + 2] = value.real, value.imag
                    channel += 2
    return out


def places_of_patches(config, shape):
    """The slices of each token's patch, in latents of (frames, height, width, channels)."""
    places = token_places(config, shape)
    return [tuple(slice(i * p, (i + 1) * p) for i, p in zip(at, config.patch, strict=True)) for at in places]


def patches(config, z):
    return np.stack([z[place].reshape(-1) for place in places_of_patches(config, z.shape)]).astype(np.float64)


def image_of(config, tokens, shape):
    image = np.empty(shape)
    for token, place in zip(tokens, places_of_patches(config, shape), strict=True):
        image[place] = token.reshape(*config.patch, shape[-1])
    return image


def layers(params):
    """The blocks' parameters, one by one."""
    found = []
    if "blocks" in params:
        count = jax.tree.leaves(params["blocks"])[0].shape[0]
        found = [jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(count)]
    return found + ([params["last_block"]] if "last_block" in params else [])


def check(backbone, config, equations, params=None, shapes=SMALL):
    """The network's output is that of `equations(config, params, z, t, context, pooled)`, example by example."""
    params = params or random_params(backbone)
    batch = inputs(shapes=shapes)
    with jax.default_matmul_precision("highest"):
        got = jit(backbone.apply)(params, *batch)
    want = np.stack([equations(config, params, *example) for example in zip(*map(np.asarray, batch), strict=True)])
    assert np.abs(want).mean() > 0.1  # the comparison sees something
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())
