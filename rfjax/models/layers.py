"""The pieces that the backbones share: linear maps, norms, embeddings of times, conditions and patches."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rfjax.config import ModelConfig
from rfjax.models import sharding
from rfjax.models.patches import patchify
from rfjax.models.positions import cropped_positions, time_positions

NORM_EPSILON = 1e-6
SCALE = "kernel_scale"  # the leaf beside an int8 kernel: a float32 scale per output channel (`models/quantised.py`)


def xavier_uniform(inputs: int) -> Callable:
    """Glorot's uniform initialiser for a kernel whose first `inputs` axes are inputs."""

    def initialise(key, shape, dtype=jnp.float32):
        fan_in, fan_out = math.prod(shape[:inputs]), math.prod(shape[inputs:])
        limit = math.sqrt(6.0 / (fan_in + fan_out))
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return initialise


class Linear(nn.Module):
    """Computes x W + b. The last axes of `x`, of shape `source`, become axes of shape `target`.

    Kernels keep their axes apart, for example [hidden, 3, heads, head_size] for queries, keys and values, so that a
    sharding can name the heads. Parameters are float32; products run in `dtype`.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]
    dtype: jnp.dtype
    kernel_init: Callable | None = None

    @nn.compact
    def __call__(self, x):
        init = self.kernel_init or xavier_uniform(len(self.source))
        kernel = self.param("kernel", init, self.source + self.target)
        bias = self.param("bias", nn.initializers.zeros, self.target)
        n = len(self.source)
        names = sharding.dimensions("/".join((*self.path, "kernel")))
        y = sharding.product(x.astype(self.dtype), kernel.astype(self.dtype), n, names)
        if self.has_variable("params", SCALE):
            y = (y * self.get_variable("params", SCALE)).astype(self.dtype)
        return y + bias.astype(self.dtype)


def rounded_kernels(params, dtype: str | jnp.dtype):
    """Returns `params` with the kernels rounded to `dtype`. A network that computes in `dtype` gives the same output,
    because `Linear` rounds its kernel to that type anyway."""

    def rounded(path, leaf):
        return leaf.astype(dtype) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(rounded, params)


class RMSNorm(nn.Module):
    """Computes x / rms(x) * scale in float32, with the rms over the last axis: the paper's QK normalisation."""

    size: int

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (self.size,))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + NORM_EPSILON)
        return (y * scale).astype(x.dtype)


def layer_norm(x: Float[Array, "... size"]) -> Float[Array, "... size"]:
    """Applies layer norm without parameters, computed in float32. adaLN supplies the scale and the shift."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + NORM_EPSILON)
    return y.astype(x.dtype)


def modulate(
    x: Float[Array, "batch tokens size"], shift: Float[Array, "batch size"], scale: Float[Array, "batch size"]
) -> Float[Array, "batch tokens size"]:
    """LN(x) (1 + scale) + shift, with a shift and a scale for each example."""
    return layer_norm(x) * (1.0 + scale[:, None]) + shift[:, None]


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x Phi(x) by the tanh formula (Hendrycks & Gimpel 2016, arXiv 1606.08415). bfloat16 input is computed in
    float32 and rounded once, as in PyTorch; then only `x` is kept for the backward pass, which computes tanh again."""
    return nn.gelu(x, approximate=True) if x.dtype == jnp.float32 else _low_precision_gelu(x)


def _gelu_in_float32(x):
    return nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


@jax.custom_vjp
def _low_precision_gelu(x):
    return _gelu_in_float32(x)


def _gelu_backward(x, cotangent):
    x = jax.lax.optimization_barrier(x)  # else the compiler keeps the forward pass's tanh, in float32
    return jax.vjp(_gelu_in_float32, x)[1](cotangent)


_low_precision_gelu.defvjp(lambda x: (_gelu_in_float32(x), x), _gelu_backward)


def unstack(x: Float[Array, "*shape"], axis: int) -> list[Float[Array, "*slice"]]:
    """Returns the slices along an axis, for example queries, keys and values. The backward pass stacks their gradients
    along this axis, in the layout of `x`. After a `jnp.moveaxis`, the stacked gradient would have to be transposed."""
    return [part.squeeze(axis) for part in jnp.split(x, x.shape[axis], axis)]


def timestep_features(t: Float[Array, " batch"], size: int) -> Float[Array, "batch size"]:
    """Returns [cos, sin] of 1000 t times frequencies that fall geometrically from 1 to nearly 1/10000, in float32.

    The frequencies are constants. Their exponents are rounded to float32, as in the PyTorch code that trained the
    released weights. Their exponentials are taken in float64, because 1000 t multiplies their errors.
    """
    half = size // 2
    exponents = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = 1000.0 * t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ConditionMLP(nn.Module):
    """Applies a linear map, an activation (SiLU by default) and a second linear map. Embeds the timestep, the pooled
    text and, in CrossDiT, the context."""

    source: int
    width: int
    dtype: jnp.dtype
    kernel_init: Callable | None = None
    activation: Callable = nn.silu

    @nn.compact
    def __call__(self, x):
        x = Linear((self.source,), (self.width,), self.dtype, self.kernel_init, name="in")(x)
        return Linear((self.width,), (self.width,), self.dtype, self.kernel_init, name="out")(self.activation(x))


EMBEDDER_INIT = nn.initializers.normal(0.02)  # DiT's initialiser of the timestep and class embedders


def timestep_embedding(
    t: Float[Array, " batch"], config: ModelConfig, dtype: jnp.dtype
) -> Float[Array, "batch hidden"]:
    """MLP(features of t). The MLP is named `time_embed` in the calling module."""
    size = config.time_embedding_size
    return ConditionMLP(size, config.width, dtype, EMBEDDER_INIT, name="time_embed")(timestep_features(t, size))


def condition_vector(
    t: Float[Array, " batch"],
    pooled: Float[Array, "batch pooled_size"],
    config: ModelConfig,
    dtype: jnp.dtype,
    pooled_size: int,
) -> Float[Array, "batch hidden"]:
    """y = MLP(t) + MLP(pooled text) (SD3 section 4). The MLPs are named `time_embed` and `pooled_embed` in the calling
    module. The SiLU with which modulations start is not applied here.
    """
    time = timestep_embedding(t, config, dtype)
    return time + ConditionMLP(pooled_size, config.width, dtype, name="pooled_embed")(pooled)


def position_formula(config: ModelConfig, rows: int, columns: int) -> Float[np.ndarray, "tokens hidden"]:
    """The fixed sine-cosine position vectors of an image of rows x columns tokens, in row-major order."""
    grid, tokens, span = config.position_grid, config.position_tokens, config.position_span
    return cropped_positions(rows, columns, grid=grid, tokens=tokens, span=span, channels=config.width)


def added_positions(
    config: ModelConfig,
    grid: tuple[int, int, int],
    frame: Float[np.ndarray | Array, "frame_tokens hidden"] | None = None,
) -> Float[np.ndarray | Array, "tokens hidden"] | None:
    """The positions to add to a grid of (time, height, width) tokens; None if positions are rotary.

    A token's vector is the vector of its place in the frame (`frame`, by default sine-cosine) plus the vector of its
    temporal position. The vector of temporal position 0 is zero, so a clip of one frame has the positions of an image.
    """
    if config.positions == "rotary":
        return None
    times, rows, columns = grid
    frame = position_formula(config, rows, columns) if frame is None else frame
    if times == 1:
        return frame
    return (jnp.asarray(time_positions(times, config.width))[:, None] + frame).reshape(-1, config.width)


def patch_tokens(
    z: Float[Array, "batch frames height width channels"],
    positions: Float[np.ndarray | Array, "tokens hidden"] | None,
    config: ModelConfig,
    dtype: jnp.dtype,
) -> Float[Array, "batch tokens hidden"]:
    """Returns embedded patches plus `positions`, if given. The embedding is `patch_embed` in the calling module."""
    patches = patchify(z, config.patch)
    image = Linear((patches.shape[-1],), (config.width,), dtype, name="patch_embed")(patches)
    return image if positions is None else image + positions.astype(dtype)
