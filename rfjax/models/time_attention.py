"""An attention over the tokens of all frames, for blocks that see each frame as an image (SD3 section 5.3.3).

SD3 starts its video study from weights trained on images. The axis of frames is folded into the batch, and in each
block a full attention over all spatio-temporal tokens is added between the attention inside a frame and the
feed-forward. The paper says no more.
Chosen here: the new attention joins visual tokens only; it has its own queries, keys, values, output, QK-norm and
modulation, whose gate is zero at the start; every frame has its own copy of the text; and a token's position in time
enters the new attention alone.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from rfjax.config import ModelConfig
from rfjax.models.layers import Linear, RMSNorm, modulate, unstack
from rfjax.models.positions import time_positions
from rfjax.models.rotary import Rotation, make_rotation, rotate
from rfjax.models.watching import attend


class Places(NamedTuple):
    """The positions for the attention over time: either vectors to add, or the rotation of the whole grid. The field
    that is not used is None."""

    added: Float[Array, "times hidden"] | None
    rotation: Rotation | None


def make_places(config: ModelConfig, grid: tuple[int, int, int]) -> Places:
    """The positions of a grid of (time, height, width) tokens."""
    if config.positions == "rotary":
        return Places(None, make_rotation(config, grid))
    return Places(jnp.asarray(time_positions(grid[0], config.width)), None)


def frames_apart(
    times: int,
    z: Float[Array, "batch frames height width channels"],
    *conditions: Float[Array, "batch ..."],
) -> list[Float[Array, "batch_times ..."]]:
    """Splits the frames of each clip into `times` groups, one for each temporal position of its tokens, and folds the
    groups into the batch axis. Repeats each condition for every group."""
    batch, frames, *sides = z.shape
    apart = z.reshape(batch * times, frames // times, *sides)
    return [apart, *(jnp.repeat(each, times, axis=0) for each in conditions)]


class TimeAttention(nn.Module):
    """Computes gate · Attn(LN(x)(1 + scale) + shift + time), an attention over the tokens of all frames. If positions
    are rotary, no time is added, and queries and keys are rotated."""

    config: ModelConfig
    dtype: jnp.dtype
    attention: str
    times: int  # the number of temporal positions of an example, which are adjacent in the batch

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch_times frame_tokens hidden"],
        condition: Float[Array, "batch_times hidden"],
        places: Places,
    ) -> Float[Array, "batch_times frame_tokens hidden"]:
        c, dtype, shape = self.config, self.dtype, x.shape
        width, heads, size = c.width, c.heads, c.head_size
        x = x.reshape(-1, self.times * shape[1], width)
        condition = condition.reshape(-1, self.times, width)[:, 0]
        modulation = Linear((width,), (3, width), dtype, nn.initializers.zeros, name="modulation")(condition)
        shift, scale, gate = jnp.moveaxis(modulation, 1, 0)
        x = modulate(x, shift, scale)
        if places.added is not None:
            x = x + jnp.repeat(places.added, shape[1], axis=0).astype(x.dtype)
        q, k, v = unstack(checkpoint_name(Linear((width,), (3, heads, size), dtype, name="qkv")(x), "qkv"), 2)
        if c.qk_norm:
            q, k = RMSNorm(size, name="query_norm")(q), RMSNorm(size, name="key_norm")(k)
        attended = attend(self, rotate(q, places.rotation), rotate(k, places.rotation), v)
        update = checkpoint_name(Linear((heads, size), (width,), dtype, name="proj")(attended), "proj")
        return (gate[:, None] * update).reshape(shape)

    @staticmethod
    def flops_by_part(model: ModelConfig, tokens: int) -> dict[str, int]:
        """Operations of one attention over time, for an example with this number of visual tokens."""
        h = model.width
        return {
            "modulation": 2 * h * h * 3,
            "qkv": 2 * 3 * h * h * tokens,
            "attention_logits": 2 * h * tokens * tokens,
            "attention_values": 2 * h * tokens * tokens,
            "proj": 2 * h * h * tokens,
        }
