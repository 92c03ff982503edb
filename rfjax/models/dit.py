"""DiT (Peebles and Xie 2023), of two kinds.

`dit` is the DiT of the SD3 paper (section 5.2.3): an MM-DiT whose streams share their weights. Text and image tokens
are one sequence, and time and pooled text modulate all tokens. `dit_class` is the original: image tokens only,
modulated by time and class.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.models import flops
from rfjax.models.layers import (
    EMBEDDER_INIT,
    Linear,
    added_positions,
    condition_vector,
    patch_tokens,
    timestep_embedding,
)
from rfjax.models.mmdit import FinalLayer, StreamBlock
from rfjax.models.patches import unpatchify
from rfjax.models.rotary import Rotation, make_rotation
from rfjax.models.stack import single_block, stack_blocks
from rfjax.models.watching import attend, note_streams


class SharedBlock(nn.Module):
    """A block with one weight set for all tokens; the scan calls it with (tokens, (condition, rotation)).

    The first `ended` tokens are attended to but not returned: after the last block nothing reads the text.
    """

    config: ModelConfig
    dtype: jnp.dtype
    attention: str
    ended: int = 0

    @nn.compact
    def __call__(self, tokens, given):
        condition, rotation = given
        block = StreamBlock(self.config, self.dtype, dual=False, final=False, attention=self.attention, name="tokens")
        chunks = block.modulations(condition)
        attended = attend(self, *block.attend_inputs(tokens, chunks, rotation))
        after = block.finish(tokens[:, self.ended :], attended[:, self.ended :], chunks)
        note_streams(self, tokens=after)
        return after, None


def shared_blocks(
    image: Float[Array, "batch image_tokens width"],
    text: Float[Array, "batch text_tokens width"],
    condition: Float[Array, "batch width"],
    config: ModelConfig,
    dtype: jnp.dtype,
    *,
    remat: str,
    unroll: int,
    attention: str,
    rotation: Rotation | None = None,
) -> Float[Array, "batch image_tokens width"]:
    """Runs `config.depth` shared blocks over the sequence [text, image]. Returns the image's tokens. In the calling
    module the blocks are named `blocks` and `last_block`. `rotation` holds the positions of the image's tokens."""
    given = condition, rotation and rotation.after(text.shape[1])
    tokens = jnp.concatenate([text, image], axis=1)
    if config.depth > 1:
        stack = stack_blocks(SharedBlock, config.depth - 1, remat=remat, unroll=unroll)
        tokens, _ = stack(config, dtype, attention, name="blocks")(tokens, given)
    last = single_block(SharedBlock, remat=remat)(config, dtype, attention, ended=text.shape[1], name="last_block")
    return last(tokens, given)[0]


class DiT(nn.Module):
    """Text and image tokens through one weight set."""

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
        text = Linear((self.context_size,), (c.width,), dtype, name="context_embed")(context)
        condition = nn.silu(condition_vector(t, pooled, c, dtype, self.pooled_size))
        how = {"remat": self.remat, "unroll": self.unroll, "attention": self.attention}
        image = shared_blocks(image, text, condition, c, dtype, **how, rotation=make_rotation(c, grid))
        out = FinalLayer(c, dtype, c.patch_values(z.shape[-1]), name="final")(image, condition)
        return unpatchify(out, c.patch, z.shape[1:]).astype(jnp.float32)

    @staticmethod
    def flops_by_part(model: ModelConfig, shapes: BatchShapes) -> dict[str, int]:
        h, (image, patch_values), (text, context_size) = model.width, flops.patches(model, shapes), shapes.context
        return {
            "embeddings": 2 * h * (image * patch_values + text * context_size)
            + flops.condition_embedders(model, shapes),
            **flops.shared_blocks(model, image, text),
            "final": 2 * h * (2 * h + image * patch_values),
        }


class ClassDiT(nn.Module):
    """The original DiT: `pooled` is the class, `context` is not read.

    A batch has no class labels, so the embedding table is a linear map of `pooled`. A one-hot `pooled` gives its
    class's embedding: a row plus the bias. Zeros, which condition dropout makes, give the null class's embedding: the
    bias. The map takes other vectors, too. The original's learnt variance is left out.
    """

    config: ModelConfig
    dtype: jnp.dtype
    context_size: int
    pooled_size: int
    remat: str = "none"
    unroll: int = 1
    attention: str = "xla"

    @nn.compact
    def __call__(self, z, t, context, pooled):
        c, dtype = self.config, self.dtype
        grid = c.token_grid(z.shape[1:])
        image = patch_tokens(z, added_positions(c, grid), c, dtype)
        classes = Linear((self.pooled_size,), (c.width,), dtype, EMBEDDER_INIT, name="class_embed")(pooled)
        condition = nn.silu(timestep_embedding(t, c, dtype) + classes)
        blocks = stack_blocks(SharedBlock, c.depth, remat=self.remat, unroll=self.unroll)
        image, _ = blocks(c, dtype, self.attention, name="blocks")(image, (condition, make_rotation(c, grid)))
        out = FinalLayer(c, dtype, c.patch_values(z.shape[-1]), name="final")(image, condition)
        return unpatchify(out, c.patch, z.shape[1:]).astype(jnp.float32)

    @staticmethod
    def flops_by_part(model: ModelConfig, shapes: BatchShapes) -> dict[str, int]:
        h, (image, patch_values) = model.width, flops.patches(model, shapes)
        return {
            "embeddings": 2 * h * (image * patch_values + model.time_embedding_size + h + shapes.pooled),
            **flops.shared_blocks(model, image, 0),
            "final": 2 * h * (2 * h + image * patch_values),
        }
