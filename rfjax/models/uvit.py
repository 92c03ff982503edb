"""U-ViT (Hoogeboom et al. 2023, "simple diffusion"): convolutional levels around a transformer.

Residual blocks and 2x2 pooling take the latent down to the resolution at which other backbones have their tokens: a
`patch_size` of 2^n means n levels instead of patches. The transformer at that resolution is `dit`'s, text tokens
included. The way up mirrors the way down: each residual block also gets the output of its partner on the way down.
docs/backbones.md says what the sources leave open and what was chosen.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from rfjax import limits
from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.models import flops, sharding
from rfjax.models.dit import shared_blocks
from rfjax.models.layers import NORM_EPSILON, Linear, condition_vector, position_formula
from rfjax.models.stack import single_block

BLOCKS = 2  # residual blocks of a level, on the way down and again on the way up
GROUPS, SMALLEST_GROUP = 32, 4  # group norm: the most groups, and the fewest channels in a group
ZEROS = nn.initializers.zeros


def level_channels(config: ModelConfig) -> tuple[int, ...]:
    """Channels of the levels, the finest level first. They double with each level; the last has half the width."""
    levels = int(math.log2(config.patch_size))
    return tuple(config.width >> (levels - level) for level in range(levels))


class Convolution(nn.Module):
    """A 3x3 convolution with zeros around the edges, which keeps height and width."""

    source: int
    target: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (3, 3, self.source, self.target))
        bias = self.param("bias", ZEROS, (self.target,))
        names = sharding.dimensions("/".join((*self.path, "kernel")))
        return sharding.convolution(x.astype(self.dtype), kernel.astype(self.dtype), names) + bias.astype(self.dtype)


class GroupNorm(nn.Module):
    """Normalises each group of channels to mean 0 and variance 1 over pixels and channels, in float32. Then scales and
    shifts each channel."""

    channels: int

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (self.channels,))
        bias = self.param("bias", ZEROS, (self.channels,))
        # Groups of one channel would remove the effect of the convolution's bias and of the modulation.
        groups = math.gcd(GROUPS, max(1, self.channels // SMALLEST_GROUP), self.channels)
        y = x.astype(jnp.float32).reshape(*x.shape[:-1], groups, -1)
        y = y - jnp.mean(y, axis=(1, 2, 4), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=(1, 2, 4), keepdims=True) + NORM_EPSILON)
        return (y.reshape(x.shape) * scale + bias).astype(x.dtype)


class ResidualBlock(nn.Module):
    """Computes x + conv(silu(norm(conv(silu(norm(x)))) (1 + scale) + shift)). A linear map of the condition gives shift
    and scale.

    If `skip`, the output of a block on the way down, is given, x is replaced by (x + skip) / sqrt(2), which keeps the
    variance.
    """

    channels: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, condition, skip=None):
        size = self.channels
        if skip is not None:
            x = (x + skip) * math.sqrt(0.5)
        modulation = Linear((self.width,), (2, size), self.dtype, ZEROS, name="modulation")(condition)
        shift, scale = jnp.moveaxis(modulation, 1, 0)[:, :, None, None]
        h = Convolution(size, size, self.dtype, name="conv_in")(nn.silu(GroupNorm(size, name="norm_in")(x)))
        h = checkpoint_name(h, "conv_in")
        h = GroupNorm(size, name="norm_out")(h) * (1.0 + scale) + shift
        return x + Convolution(size, size, self.dtype, ZEROS, name="conv_out")(nn.silu(h))


def _halve(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch half_height half_width channels"]:
    """Averages each square of 2x2 pixels."""
    b, h, w, c = x.shape
    return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def _double(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch twice_height twice_width channels"]:
    """Repeats every pixel as 2x2 pixels (nearest neighbour)."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class UViT(nn.Module):
    config: ModelConfig
    dtype: jnp.dtype
    context_size: int
    pooled_size: int
    remat: str = "none"
    unroll: int = 1  # transformer blocks per iteration of the scan
    attention: str = "xla"

    @nn.compact
    def __call__(self, z, t, context, pooled):
        c, dtype = self.config, self.dtype
        limits.check_latents(c, z.shape[1:])  # refuses several frames
        batch, channels = z.shape[0], z.shape[-1]
        _, rows, columns = c.token_grid(z.shape[1:])
        condition = nn.silu(condition_vector(t, pooled, c, dtype, self.pooled_size))
        sizes = (*level_channels(c), c.width)
        levels = range(len(sizes) - 1)
        residual = single_block(ResidualBlock, remat=self.remat)

        x = Convolution(channels, sizes[0], dtype, name="stem")(z[:, 0])
        skips = []
        for level in levels:
            for block in range(BLOCKS):
                x = residual(sizes[level], c.width, dtype, name=f"down{level}_{block}")(x, condition)
                skips.append(x)
            x = Linear((sizes[level],), (sizes[level + 1],), dtype, name=f"down{level}_linear")(_halve(x))

        image = x.reshape(batch, rows * columns, c.width) + position_formula(c, rows, columns).astype(dtype)
        text = Linear((self.context_size,), (c.width,), dtype, name="context_embed")(context)
        image = shared_blocks(
            image, text, condition, c, dtype, remat=self.remat, unroll=self.unroll, attention=self.attention
        )

        x = image.reshape(batch, rows, columns, c.width)
        for level in reversed(levels):
            x = _double(Linear((sizes[level + 1],), (sizes[level],), dtype, name=f"up{level}_linear")(x))
            for block in range(BLOCKS):
                x = residual(sizes[level], c.width, dtype, name=f"up{level}_{block}")(x, condition, skips.pop())
        x = nn.silu(GroupNorm(sizes[0], name="final_norm")(x))
        return Convolution(sizes[0], channels, dtype, ZEROS, name="head")(x).astype(jnp.float32)[:, None]

    @staticmethod
    def flops_by_part(model: ModelConfig, shapes: BatchShapes) -> dict[str, int]:
        """Returns {part of the network: forward operations of one example}. Each level on the way down halves the
        resolution and doubles the channels; each level on the way up reverses this. Between the two ways are `dit`'s
        blocks."""
        h, (text, context_size) = model.width, shapes.context
        _, height, width, channels = shapes.latents
        sizes = (*level_channels(model), h)
        levels = len(sizes) - 1

        def convolution(level, source, target):  # 3x3: along an axis a pixel reads 3 pixels, and 2 at the edges
            return 2 * source * target * (3 * (height >> level) - 2) * (3 * (width >> level) - 2)

        residual = [(level, sizes[level]) for level in range(levels)] * (2 * BLOCKS)  # down and up
        one_convolution = sum(convolution(level, size, size) for level, size in residual)
        linears = sum(2 * 2 * sizes[i] * sizes[i + 1] * (height >> i + 1) * (width >> i + 1) for i in range(levels))
        blocks = flops.shared_blocks(model, flops.patches(model, shapes)[0], text)
        return {
            "embeddings": 2 * h * text * context_size
            + convolution(0, channels, sizes[0])
            + flops.condition_embedders(model, shapes),
            **blocks,
            "modulation": blocks["modulation"] + sum(2 * h * 2 * size for _, size in residual),
            "conv_in": one_convolution,
            "conv_out": one_convolution,
            "levels": linears,
            "final": convolution(0, sizes[0], channels),
        }
