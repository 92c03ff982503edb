"""MM-DiT: text and image tokens in streams with their own weights, joined in attention (SD3 section 4 and figure 2;
dual attention as in SD3.5-Medium). For clips the attention joins the tokens of all frames. But with
`temporal_attention="factorised"` each temporal position is an image of the batch; `time_attention` joins the positions.

Stacked blocks run under a scan, so that compile time does not grow with the depth. The last block is apart: its context
streams feed the attention and end there.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.models import flops
from rfjax.models.layers import (
    Linear,
    RMSNorm,
    added_positions,
    condition_vector,
    gelu,
    modulate,
    patch_tokens,
    position_formula,
    unstack,
)
from rfjax.models.patches import unpatchify
from rfjax.models.positions import POSITIONS, centre_crop
from rfjax.models.rotary import make_rotation, rotate
from rfjax.models.stack import single_block, stack_blocks
from rfjax.models.time_attention import TimeAttention, frames_apart, make_places
from rfjax.models.watching import attend, note_streams


def text_streams(config: ModelConfig, context_tokens: int) -> dict[str, slice]:
    """Returns {text stream: its slice of the context's tokens}; two streams for 3 weight sets (SD3 section 5.2.3)."""
    if config.weight_sets == 2:
        return {"context": slice(0, context_tokens)}
    return {
        "context_first": slice(0, config.first_text_tokens),
        "context": slice(config.first_text_tokens, context_tokens),
    }


class StreamBlock(nn.Module):
    """A stream's weights in a block: `attend_inputs` comes before the joint attention, `finish` after."""

    config: ModelConfig
    dtype: jnp.dtype
    dual: bool  # a second attention among the image's own tokens
    final: bool  # a context stream in the last block: queries, keys and values only
    attention: str  # a row of `attention.IMPLEMENTATIONS`
    times: int | None = None  # how many temporal positions an example has in the batch axis; None: no `TimeAttention`

    def setup(self):
        c = self.config
        width, heads, size = c.width, c.heads, c.head_size
        mlp = int(c.mlp_ratio * width)
        chunks = 2 if self.final else 9 if self.dual else 6
        self.modulation = Linear((width,), (chunks, width), self.dtype, nn.initializers.zeros)
        self.qkv = Linear((width,), (3, heads, size), self.dtype)
        if c.qk_norm:
            self.query_norm, self.key_norm = RMSNorm(size), RMSNorm(size)
        if self.dual:
            self.qkv2 = Linear((width,), (3, heads, size), self.dtype)
            self.proj2 = Linear((heads, size), (width,), self.dtype)
            if c.qk_norm:
                self.query_norm2, self.key_norm2 = RMSNorm(size), RMSNorm(size)
        if self.times is not None:
            self.time = TimeAttention(c, self.dtype, self.attention, self.times)
        if not self.final:
            self.proj = Linear((heads, size), (width,), self.dtype)
            self.mlp_in = Linear((width,), (mlp,), self.dtype)
            self.mlp_out = Linear((mlp,), (width,), self.dtype)

    def modulations(self, condition):
        """Returns [chunks, batch, width]: shift, scale, gate of attention, MLP, second attention; 2 if `final`."""
        return jnp.moveaxis(self.modulation(condition), 1, 0)

    def _queries_keys_values(self, linear, x, query_norm, key_norm, rotation):
        q, k, v = unstack(checkpoint_name(linear(x), "qkv"), 2)
        if self.config.qk_norm:
            q, k = query_norm(q), key_norm(k)
        return rotate(q, rotation), rotate(k, rotation), v

    def attend_inputs(self, x, chunks, rotation=None):
        norms = (self.query_norm, self.key_norm) if self.config.qk_norm else (None, None)
        return self._queries_keys_values(self.qkv, modulate(x, chunks[0], chunks[1]), *norms, rotation)

    def second_attention(self, x, chunks, rotation):
        """Returns the update by the image-only attention, which reads the same `x` as the joint attention."""
        norms = (self.query_norm2, self.key_norm2) if self.config.qk_norm else (None, None)
        q, k, v = self._queries_keys_values(self.qkv2, modulate(x, chunks[6], chunks[7]), *norms, rotation)
        return chunks[8][:, None] * checkpoint_name(self.proj2(attend(self, q, k, v)), "proj")

    def finish(self, x, attended, chunks, rotation=None, time=None):
        """Returns the stream after the block. `time` is (condition, `Places`) for the attention over time."""
        update = chunks[2][:, None] * checkpoint_name(self.proj(attended), "proj")
        if self.dual:
            update = update + self.second_attention(x, chunks, rotation)
        x = x + update
        if self.times is not None:
            x = x + self.time(x, *time)
        hidden = checkpoint_name(self.mlp_in(modulate(x, chunks[3], chunks[4])), "mlp_in")
        return x + chunks[5][:, None] * checkpoint_name(self.mlp_out(gelu(hidden)), "mlp_out")


class JointBlock(nn.Module):
    """A block of all streams, joined in attention. The scan calls it with ({stream: tokens}, (condition, the image's
    rotation, `Places` of the attention over time)). It returns ({stream: tokens}, None)."""

    config: ModelConfig
    dtype: jnp.dtype
    streams: tuple[str, ...]  # text streams first, "image" last
    attention: str
    times: int | None = None  # as in `StreamBlock`, for the image's stream
    dual: bool = False
    final: bool = False

    @nn.compact
    def __call__(self, carry, given):
        condition, rotation, places = given
        blocks, rotations = {}, {"image": rotation}
        for name in self.streams:
            kind = {"dual": self.dual and name == "image", "final": self.final and name != "image"}
            kind["times"] = self.times if name == "image" else None
            blocks[name] = StreamBlock(self.config, self.dtype, **kind, attention=self.attention, name=name)
        chunks = {name: block.modulations(condition) for name, block in blocks.items()}
        inputs = [block.attend_inputs(carry[name], chunks[name], rotations.get(name)) for name, block in blocks.items()]
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*inputs, strict=True))
        attended = attend(self, q, k, v)
        result, start = {}, 0
        for name, block in blocks.items():
            stop = start + carry[name].shape[1]
            if not block.final:
                after = attended[:, start:stop], chunks[name], rotations.get(name), (condition, places)
                result[name] = block.finish(carry[name], *after)
            start = stop
        note_streams(self, **result)
        return result, None


class FinalLayer(nn.Module):
    config: ModelConfig
    dtype: jnp.dtype
    patch_values: int

    @nn.compact
    def __call__(self, x, condition):
        width = self.config.width
        zeros = nn.initializers.zeros
        shift, scale = jnp.moveaxis(Linear((width,), (2, width), self.dtype, zeros, name="modulation")(condition), 1, 0)
        return Linear((width,), (self.patch_values,), self.dtype, zeros, name="linear")(modulate(x, shift, scale))


class MMDiT(nn.Module):
    config: ModelConfig
    dtype: jnp.dtype
    context_size: int
    pooled_size: int
    remat: str = "none"
    unroll: int = 1  # blocks per iteration of the scan
    attention: str = "xla"

    def _scan(self, length, streams, times, **block):
        scanned = stack_blocks(JointBlock, length, remat=self.remat, unroll=self.unroll)
        return scanned(self.config, self.dtype, streams, self.attention, times, **block)

    def _positions(self, grid):
        """The positions to add to the tokens. Stored positions are cropped from a grid that is not trained."""
        c = self.config
        side = c.position_grid
        if c.positions != "stored":
            return added_positions(c, grid)
        whole = lambda _: jnp.asarray(position_formula(c, side, side).reshape(side, side, c.width))  # noqa: E731
        return added_positions(c, grid, centre_crop(jax.lax.stop_gradient(self.param(POSITIONS, whole)), *grid[1:]))

    @nn.compact
    def __call__(self, z, t, context, pooled):
        c, dtype = self.config, self.dtype
        shape, grid, times, places = z.shape, c.token_grid(z.shape[1:]), None, None
        if c.temporal_attention == "factorised":
            times, places = grid[0], make_places(c, grid)
            z, t, context, pooled = frames_apart(times, z, t, context, pooled)
            grid = 1, *grid[1:]
        image = patch_tokens(z, self._positions(grid), c, dtype)
        text = Linear((self.context_size,), (c.width,), dtype, name="context_embed")(context)
        condition = nn.silu(condition_vector(t, pooled, c, dtype, self.pooled_size))  # the modulations' first step
        slices = text_streams(c, context.shape[1])
        given = condition, make_rotation(c, grid), places
        carry = {name: text[:, part] for name, part in slices.items()} | {"image": image}
        names = (*slices, "image")
        plain = c.depth - 1 - c.dual_attention_blocks
        if c.dual_attention_blocks:
            carry, _ = self._scan(c.dual_attention_blocks, names, times, dual=True, name="dual_blocks")(carry, given)
        if plain:
            carry, _ = self._scan(plain, names, times, name="blocks")(carry, given)
        last = single_block(JointBlock, remat=self.remat)
        carry, _ = last(c, dtype, names, self.attention, times, final=True, name="last_block")(carry, given)
        out = FinalLayer(c, dtype, c.patch_values(z.shape[-1]), name="final")(carry["image"], condition)
        return unpatchify(out, c.patch, z.shape[1:]).reshape(shape).astype(jnp.float32)

    @staticmethod
    def flops_by_part(model: ModelConfig, shapes: BatchShapes) -> dict[str, int]:
        """Operations of one example's forward pass, by part. With factorised attention each temporal position is an
        image with a text and a modulation of its own; only the attention over time counts once per example."""
        h, mlp = model.width, int(model.mlp_ratio * model.width)
        whole, patch_values = flops.patches(model, shapes)
        images = model.batch_frames(shapes.latents)
        image = whole // images
        text, context_size = shapes.context
        joint = image + text
        sets = model.weight_sets  # sets - 1 text streams share the text tokens
        blocks, dual = model.depth, model.dual_attention_blocks
        parts = {
            "embeddings": 2 * h * (image * patch_values + text * context_size)
            + flops.condition_embedders(model, shapes),
            "modulation": 2 * h * h * (6 * sets * (blocks - 1) + 3 * dual + 6 + 2 * (sets - 1)),
            "qkv": 2 * 3 * h * h * (joint * blocks + image * dual),
            "attention_logits": 2 * h * (joint * joint * blocks + image * image * dual),
            "attention_values": 2 * h * (joint * joint * blocks + image * image * dual),
            "proj": 2 * h * h * (joint * (blocks - 1) + image + image * dual),
            "mlp": 2 * 2 * h * mlp * (joint * (blocks - 1) + image),
            "final": 2 * h * (2 * h + image * patch_values),
        }
        over_time = TimeAttention.flops_by_part(model, whole) if model.temporal_attention == "factorised" else {}
        return {name: images * count + blocks * over_time.get(name, 0) for name, count in parts.items()}
