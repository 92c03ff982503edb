"""CrossDiT: image tokens attend to each other and, in a second attention, to the text (PixArt-alpha, Chen et al. 2023).

SD3 (section 5.2.3) names CrossDiT and gives no details. The network here has PixArt's block with one addition: the
embedded pooled text is added to the embedded time, as in MM-DiT, so that all backbones get the same conditions. If the
embedding of the pooled text is zero, the network is PixArt's.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.models import flops
from rfjax.models.layers import (
    EMBEDDER_INIT,
    ConditionMLP,
    Linear,
    RMSNorm,
    added_positions,
    condition_vector,
    gelu,
    modulate,
    patch_tokens,
    unstack,
)
from rfjax.models.patches import unpatchify
from rfjax.models.rotary import make_rotation, rotate
from rfjax.models.stack import stack_blocks
from rfjax.models.watching import attend, note_streams

ZEROS = nn.initializers.zeros


def _table(module, rows, width):
    """A learnt table [rows, width]. A block adds its table to the modulation that all blocks share (adaLN-single); the
    last layer adds its table to the embedded conditions."""
    return module.param("modulation_table", nn.initializers.normal(1 / math.sqrt(width)), (rows, width))


class CrossBlock(nn.Module):
    """A block of self-attention, attention to the text, and an MLP. The scan calls it with (image tokens, (shared
    modulation, text, rotation)).

    As in PixArt's and Wan's code, the attention to the text has no layer norm, modulation, gate or rotary positions.
    """

    config: ModelConfig
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, x, given):
        shared, text, rotation = given  # [batch, 6, width], [batch, text_tokens, width]
        c, dtype = self.config, self.dtype
        width, heads, size, mlp = c.width, c.heads, c.head_size, int(c.mlp_ratio * c.width)
        chunks = jnp.moveaxis(shared + _table(self, 6, width).astype(dtype), 1, 0)

        def normed(queries, keys, prefix=""):
            if not c.qk_norm:
                return queries, keys
            return RMSNorm(size, name=f"{prefix}query_norm")(queries), RMSNorm(size, name=f"{prefix}key_norm")(keys)

        qkv = Linear((width,), (3, heads, size), dtype, name="qkv")(modulate(x, chunks[0], chunks[1]))
        q, k, v = unstack(checkpoint_name(qkv, "qkv"), 2)
        q, k = (rotate(each, rotation) for each in normed(q, k))
        attended = attend(self, q, k, v)
        attended = checkpoint_name(Linear((heads, size), (width,), dtype, name="proj")(attended), "proj")
        x = x + chunks[2][:, None] * attended

        q = checkpoint_name(Linear((width,), (heads, size), dtype, name="cross_q")(x), "qkv")
        kv = checkpoint_name(Linear((width,), (2, heads, size), dtype, name="cross_kv")(text), "qkv")
        k, v = unstack(kv, 2)
        crossed = attend(self, *normed(q, k, "cross_"), v)
        x = x + checkpoint_name(Linear((heads, size), (width,), dtype, ZEROS, name="cross_proj")(crossed), "proj")

        hidden = Linear((width,), (mlp,), dtype, name="mlp_in")(modulate(x, chunks[3], chunks[4]))
        out = Linear((mlp,), (width,), dtype, name="mlp_out")(gelu(checkpoint_name(hidden, "mlp_in")))
        x = x + chunks[5][:, None] * checkpoint_name(out, "mlp_out")
        note_streams(self, image=x)
        return x, None


class CrossFinal(nn.Module):
    """The last layer: layer norm, modulation, linear map to the values of a patch. Shift and scale are the embedded
    conditions (time plus pooled text) plus a learnt table; no linear map computes them."""

    config: ModelConfig
    dtype: jnp.dtype
    patch_values: int

    @nn.compact
    def __call__(self, x, embedded):
        width = self.config.width
        shift, scale = jnp.moveaxis(embedded[:, None] + _table(self, 2, width).astype(self.dtype), 1, 0)
        return Linear((width,), (self.patch_values,), self.dtype, ZEROS, name="linear")(modulate(x, shift, scale))


class CrossDiT(nn.Module):
    config: ModelConfig
    dtype: jnp.dtype
    context_size: int
    pooled_size: int
    remat: str = "none"
    unroll: int = 1  # blocks per iteration of the scan
    attention: str = "xla"

    @nn.compact
    def __call__(self, z, t, context, pooled):
        c, dtype = self.config, self.dtype
        grid = c.token_grid(z.shape[1:])
        image = patch_tokens(z, added_positions(c, grid), c, dtype)
        text = ConditionMLP(self.context_size, c.width, dtype, EMBEDDER_INIT, gelu, name="context_embed")(context)
        embedded = condition_vector(t, pooled, c, dtype, self.pooled_size)
        # adaLN-single: the modulation is computed once, not in each block
        shared = Linear((c.width,), (6, c.width), dtype, EMBEDDER_INIT, name="modulation")(nn.silu(embedded))
        blocks = stack_blocks(CrossBlock, c.depth, remat=self.remat, unroll=self.unroll)
        image, _ = blocks(c, dtype, self.attention, name="blocks")(image, (shared, text, make_rotation(c, grid)))
        out = CrossFinal(c, dtype, c.patch_values(z.shape[-1]), name="final")(image, embedded)
        return unpatchify(out, c.patch, z.shape[1:]).astype(jnp.float32)

    @staticmethod
    def flops_by_part(model: ModelConfig, shapes: BatchShapes) -> dict[str, int]:
        """Forward operations of one example, by part of the network. The modulation is counted with the embeddings: no
        block recomputes it."""
        h, mlp, depth = model.width, int(model.mlp_ratio * model.width), model.depth
        (image, patch_values), (text, context_size) = flops.patches(model, shapes), shapes.context
        return {
            "embeddings": 2 * h * (image * patch_values + text * (context_size + h) + 6 * h)
            + flops.condition_embedders(model, shapes),
            "qkv": 2 * h * h * (4 * image + 2 * text) * depth,
            "attention_logits": 2 * h * image * (image + text) * depth,
            "attention_values": 2 * h * image * (image + text) * depth,
            "proj": 2 * h * h * 2 * image * depth,
            "mlp": 2 * 2 * h * mlp * image * depth,
            "final": 2 * h * image * patch_values,
        }
