"""Stacks of blocks: a scan over the depth, and policies for what the backward pass recomputes."""

from __future__ import annotations

import flax.linen as nn
import jax

from rfjax.models.watching import WATCHED

# The values that the forward pass saves, by the names that blocks give them; the backward pass recomputes the others.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "dots": jax.checkpoint_policies.save_only_these_names("qkv", "attention", "proj", "mlp_in", "mlp_out", "conv_in"),
}


def stack_blocks(block: type[nn.Module], length: int, *, remat: str, unroll: int) -> type[nn.Module]:
    """`length` blocks as one scan, with their parameters stacked on a leading layer axis.

    A block is called with (carry, inputs that all blocks share) and returns (carry, None). The program does not grow
    with `length`. `remat` is `config.train.remat`.
    """
    if remat != "none":
        block = nn.remat(block, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0, WATCHED: 0},  # the last two only where they are asked for
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=length,
        unroll=min(unroll, length),
    )


def single_block(block: type[nn.Module], *, remat: str) -> type[nn.Module]:
    """A block outside a stack, under the same policy."""
    return block if remat == "none" else nn.remat(block, policy=REMAT_POLICIES[remat])
