"""Attention by kernels that JAX ships for one kind of hardware: splash on TPUs, cuDNN's on GPUs.

Neither kernel gets an array with a mask or a bias: cuDNN's gradients with such an array have been wrong or not finite,
and reading a mask from memory costs time. Splash gets a segment number for each token, to leave padding out. JAX's
older TPU kernel, `flash_attention`, is not used: its backward pass makes an array of [tokens, tokens] in float32 for
each head.
"""

from __future__ import annotations

import concurrent.futures
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rfjax.models.attention_xla import scale

LANES = 128  # the length of a TPU's vectors: the number of tokens is padded to a multiple of it
LARGEST_BLOCK = 1024  # the most tokens of a block: a kernel holds a float32 array of [block, block]


def block_sizes(tokens: int) -> tuple[int, int]:
    """Divides tokens into as few equal blocks as `LARGEST_BLOCK` allows, with the least padding. Returns (tokens after
    padding, tokens of a block)."""
    lanes = -(-tokens // LANES)
    count = -(-lanes * LANES // LARGEST_BLOCK)
    block = -(-lanes // count) * LANES
    return count * block, block


@functools.cache
def _splash_kernel(tokens: int, attended: int, heads: int, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # this import takes 0.25 s

    (rows, block), (columns, block_kv) = block_sizes(tokens), block_sizes(attended)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block_kv,
        block_kv_compute=block_kv,
        block_q_dkv=block,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=block_kv,
        use_fused_bwd_kernel=True,  # one kernel computes all three gradients, so the logits are recomputed only once
    )

    def build():
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([splash.FullMask((rows, columns))] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name="attention",  # the name by which a policy saves the residuals, as in attention_xla
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)

    # The cache returns the kernel's tables to later traces, on other devices too. So the tables must not hold a tracer
    # of the present trace. A new thread has no trace. Under `jax.ensure_compile_time_eval` the trace of Flax's scan
    # would still be active.
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as outside:
        return outside.submit(build).result()


def splash_attention(
    queries: Float[Array, "batch tokens heads head_size"],
    keys: Float[Array, "batch attended heads head_size"],
    values: Float[Array, "batch attended heads head_size"],
    *,
    interpret: bool = False,
) -> Float[Array, "batch tokens heads head_size"]:
    """Computes softmax attention by JAX's Pallas kernel for TPUs, on one device's examples and heads.

    Tokens are padded to whole blocks. The padding is a separate segment: no token attends to it, and it gets no
    gradient, so the result is the same as without padding. `interpret` runs the kernel step by step on any platform,
    for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    tokens, heads = queries.shape[1:3]

    def prepared(x):  # [batch, heads, padded tokens, head_size]
        padding = block_sizes(x.shape[1])[0] - x.shape[1]
        return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))

    def segments(count):
        return (jnp.arange(block_sizes(count)[0]) >= count).astype(jnp.int32)

    ids = SegmentIds(segments(tokens), segments(keys.shape[1]))
    kernel = _splash_kernel(tokens, keys.shape[1], heads, interpret)
    scaled = (queries.astype(jnp.float32) * scale(queries)).astype(queries.dtype)
    run = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=ids))
    output = run(prepared(scaled), prepared(keys), prepared(values))
    return jnp.swapaxes(output[:, :, :tokens], 1, 2).astype(queries.dtype)


def cudnn_attention(
    queries: Float[Array, "batch tokens heads head_size"],
    keys: Float[Array, "batch attended heads head_size"],
    values: Float[Array, "batch attended heads head_size"],
) -> Float[Array, "batch tokens heads head_size"]:
    """Computes softmax attention by cuDNN's fused kernel, on one device's examples and heads, without padding.

    The residuals that the forward pass keeps for the backward pass have no checkpoint name. Rematerialisation policies
    recognise them by the primitive that makes them (`stack.CUDNN_FORWARD`).
    """
    return jax.nn.dot_product_attention(queries, keys, values, scale=scale(queries), implementation="cudnn")
