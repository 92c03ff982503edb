"""Blocks in a stack: a scan over the depth, and what the backward pass computes again."""

from __future__ import annotations

import flax.linen as nn
import jax

# What the backward pass finds saved, by the names that the blocks give; the rest of a block is computed again.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "dots": jax.checkpoint_policies.save_only_these_names("qkv", "attention", "proj", "mlp_in", "mlp_out", "conv_in"),
}


def stacked(block: type[nn.Module], length: int, *, remat: str, unroll: int) -> type[nn.Module]:
    """`length` blocks as one scan, their parameters stacked on a leading layer axis.

    A block is called as (carry, what every block is given) and returns (carry, None). The program
    does not grow with `length`. `remat` is `config.train.remat`.
    """
    if remat != "none":
        block = nn.remat(block, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=length,
        unroll=min(unroll, length),
    )


def single(block: type[nn.Module], *, remat: str) -> type[nn.Module]:
    """One block outside any stack, under the same policy."""
    return block if remat == "none" else nn.remat(block, policy=REMAT_POLICIES[remat])
