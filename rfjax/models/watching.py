"""Lets a forward pass be watched: notes a network's attention logits and the sizes of its residual streams.

Blocks note numbers in a Flax collection. A forward pass that does not ask for the collection, as in training, notes
nothing, and its program is the same as if these calls were not there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rfjax.models.attention import attention
from rfjax.models.attention_xla import largest_logit
from rfjax.models.sharding import path_name

WATCHED = "watched"  # the Flax collection of what is noted
LOGIT = "largest_logit"
SQUARE = "mean_square"
_STACKS = ("dual_blocks", "blocks", "last_block")  # in the order of the layers


def _watched(module) -> bool:
    return module.is_mutable_collection(WATCHED) and not module.is_initializing()


def attend(
    module: nn.Module,
    queries: Float[Array, "batch tokens heads head_size"],
    keys: Float[Array, "batch attended heads head_size"],
    values: Float[Array, "batch attended heads head_size"],
) -> Float[Array, "batch tokens heads head_size"]:
    """Computes attention by the implementation `module.attention`. In a watched pass the module also notes the largest
    logit."""
    if _watched(module):
        start, logit = lambda: jnp.float32(-math.inf), largest_logit(queries, keys)
        module.sow(WATCHED, LOGIT, logit, reduce_fn=jnp.maximum, init_fn=start)
    return attention(queries, keys, values, module.attention)


def note_streams(module: nn.Module, **streams: Float[Array, "batch _ width"]) -> None:
    """Notes the mean square of each of `streams`, a block's outputs, if the forward pass is watched."""
    if _watched(module):
        for name, x in streams.items():
            mean = jnp.mean(jnp.square(x.astype(jnp.float32)))
            module.sow(WATCHED, f"{SQUARE}_{name}", mean, reduce_fn=lambda _, new: new, init_fn=lambda: jnp.float32(0))


def by_layer(noted: Mapping) -> tuple[dict[str, Float[Array, ""]], dict[str, Float[Array, ""]]]:
    """Sorts a collection of notes into two dicts, (largest logits, mean squares): {layer and part of the layer: value}.

    Layers count from 0 over all stacks. Among the logits of MM-DiT, "3" is the joint attention of layer 3, "3/image" is
    the second attention, among the image's tokens alone, and "3/image/time" is the attention over time. Among the mean
    squares, "3/image" is the image's stream after layer 3.
    """
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(noted)}
    logits, squares, first = {}, {}, 0
    for stack in _STACKS:
        inside = {name.removeprefix(f"{stack}/"): leaf for name, leaf in leaves.items() if name.startswith(f"{stack}/")}
        depth = max((leaf.size for leaf in inside.values()), default=0)
        for name, leaf in inside.items():
            *parts, kind = name.split("/")
            found, end = (logits, parts) if kind == LOGIT else (squares, [*parts, kind.removeprefix(f"{SQUARE}_")])
            for layer, value in enumerate(leaf.reshape(-1)):
                found["/".join([str(first + layer), *end])] = value
        first += depth
    return logits, squares
