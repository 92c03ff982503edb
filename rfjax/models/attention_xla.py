"""Joint softmax attention in plain JAX, for any platform."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

# Batch and heads are axes of both factors and of the result, so each product is a plain batched matrix product.
_LOGITS = "bqhd,bkhd->bhqk"
_OUTPUT = "bhqk,bkhd->bqhd"


def scale(queries) -> float:
    """The scale of the logits: 1 / sqrt(head_size)."""
    return 1.0 / math.sqrt(queries.shape[-1])


def _logits(queries, keys):
    return jnp.einsum(_LOGITS, queries, keys, preferred_element_type=jnp.float32) * scale(queries)


@jax.custom_vjp
def xla_attention(
    queries: Float[Array, "batch tokens heads head_size"],
    keys: Float[Array, "batch attended heads head_size"],
    values: Float[Array, "batch attended heads head_size"],
) -> Float[Array, "batch tokens heads head_size"]:
    """Returns softmax(q k^T / sqrt(head_size)) v, where every query attends to every key. Logits are float32.

    The forward pass keeps the output and the log-sum-exp; the backward pass recomputes the probabilities (Dao et al.
    2022, algorithm 4, in one tile). Storing the probabilities, a [tokens, tokens] array for each layer, would cost more
    in memory traffic than recomputing them does.
    """
    return _forward(queries, keys, values)[0]


def _forward(queries, keys, values):
    logits = _logits(queries, keys)
    maximum = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - maximum)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    output = jnp.einsum(_OUTPUT, weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    # A division after the product touches head_size numbers a row instead of `tokens`.
    output = output / jnp.swapaxes(total, 1, 2)
    # The backward pass reads these named values. A policy that saves "attention" keeps them, so `_forward` runs once.
    log_sum_exp = checkpoint_name(maximum + jnp.log(total), "attention")
    output = checkpoint_name(output.astype(queries.dtype), "attention")
    return output, (queries, keys, values, output, log_sum_exp)


def _backward(residuals, gradient):
    queries, keys, values, output, log_sum_exp = residuals
    probabilities = jnp.exp(_logits(queries, keys) - log_sum_exp)
    low = probabilities.astype(values.dtype)
    d_values = jnp.einsum("bhqk,bqhd->bkhd", low, gradient, preferred_element_type=jnp.float32)
    d_probabilities = jnp.einsum("bqhd,bkhd->bhqk", gradient, values, preferred_element_type=jnp.float32)
    # sum_k p dp = <gradient, output>: a row's sum over head_size instead of over tokens.
    row = jnp.sum(gradient.astype(jnp.float32) * output.astype(jnp.float32), axis=-1)
    d_logits = (probabilities * (d_probabilities - jnp.swapaxes(row, 1, 2)[..., None])).astype(queries.dtype)
    d_queries = jnp.einsum("bhqk,bkhd->bqhd", d_logits, keys, preferred_element_type=jnp.float32) * scale(queries)
    d_keys = jnp.einsum("bhqk,bqhd->bkhd", d_logits, queries, preferred_element_type=jnp.float32) * scale(queries)
    return d_queries.astype(queries.dtype), d_keys.astype(keys.dtype), d_values.astype(values.dtype)


xla_attention.defvjp(_forward, _backward)


BLOCK = 512  # queries of a block, at most


def _blocks_of(queries):
    """Cuts the queries into blocks of at most `BLOCK`. Returns (blocks [blocks, batch, queries of a block, heads,
    head_size], the number of queries). The last block is filled up with zeros."""
    batch, tokens, *rest = queries.shape
    count = -(-tokens // BLOCK)
    size = -(-tokens // count)
    padded = jnp.pad(queries, ((0, 0), (0, count * size - tokens), (0, 0), (0, 0)))
    return jnp.moveaxis(padded.reshape(batch, count, size, *rest), 1, 0), tokens


def largest_logit(
    queries: Float[Array, "batch tokens heads head_size"], keys: Float[Array, "batch attended heads head_size"]
) -> Float[Array, ""]:
    """Returns the largest q k^T / sqrt(head_size) over all examples, heads, queries and keys. The logits are computed
    for one block of queries at a time."""
    blocks, tokens = _blocks_of(queries)

    def largest(block, real):
        logits = jnp.where(real[None, None, :, None], _logits(block, keys), -jnp.inf)
        return jnp.max(logits)

    real = (jnp.arange(blocks.shape[0] * blocks.shape[2]) < tokens).reshape(blocks.shape[0], -1)
    return jnp.max(jax.lax.map(lambda each: largest(*each), (blocks, real)))


def xla_blocks_attention(
    queries: Float[Array, "batch tokens heads head_size"],
    keys: Float[Array, "batch attended heads head_size"],
    values: Float[Array, "batch attended heads head_size"],
) -> Float[Array, "batch tokens heads head_size"]:
    """Computes `xla_attention` for one block of queries at a time, so that memory holds the logits of one block only.

    The backward pass computes each block's forward pass again.
    """
    if queries.shape[1] <= BLOCK:
        return xla_attention(queries, keys, values)
    blocks, tokens = _blocks_of(queries)
    made = jax.lax.map(jax.checkpoint(lambda block: xla_attention(block, keys, values)), blocks)
    return jnp.moveaxis(made, 0, 1).reshape(queries.shape[0], -1, *queries.shape[2:])[:, :tokens]
