"""Stacks of blocks: a scan over the depth, and policies for what the backward pass recomputes."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from rfjax.config import Config
from rfjax.models.watching import WATCHED

# cuDNN's attention returns values that no name marks (output, log-sum-exp). Its primitive's name begins like this.
CUDNN_FORWARD = "dot_product_attention_fwd"


def _saves(*names: str) -> Callable[..., bool]:
    """Returns the rematerialisation policy that saves the values with these checkpoint names. If "attention" is among
    the names, the policy also saves what cuDNN's attention kernel returns."""
    named = jax.checkpoint_policies.save_only_these_names(*names)

    def policy(primitive, *args, **params):
        if primitive.name.startswith(CUDNN_FORWARD):
            return "attention" in names
        return named(primitive, *args, **params)

    return policy


# The values that the forward pass saves, by the names that blocks give them; the backward pass recomputes the others.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": _saves("attention"),
    "dots": _saves("qkv", "attention", "proj", "mlp_in", "mlp_out", "conv_in"),
}


def stack_blocks(block: type[nn.Module], length: int, *, remat: str, unroll: int) -> type[nn.Module]:
    """Returns a module that runs `length` blocks in one scan, with their parameters stacked on a leading layer axis.

    A block is called with (carry, inputs that all blocks share) and returns (carry, None). An iteration of the scan has
    `unroll` blocks. If one iteration has all blocks, there is no loop, and no value is copied into and out of stacks of
    saved values; the program then grows with `length`. `remat` is `config.train.remat`.
    """
    if remat != "none":
        # Without a loop the compiler would see that the backward pass computes a value again. It would then keep the
        # forward pass's value in memory, and remat would save nothing; `prevent_cse` stops that.
        block = nn.remat(block, policy=REMAT_POLICIES[remat], prevent_cse=unroll >= length)
    return nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0, WATCHED: 0},  # the last two only where they are asked for
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=length,
        unroll=min(unroll, length),
    )


def single_block(block: type[nn.Module], *, remat: str) -> type[nn.Module]:
    """Returns `block` for use outside a stack, rematerialised by the policy that `remat` names."""
    return block if remat == "none" else nn.remat(block, policy=REMAT_POLICIES[remat])


def loop_advice(config: Config, platform: str) -> str | None:
    """Returns a sentence of advice if a run may be faster without a loop over blocks; else None. `platform` is one of
    `attention.ALL_PLATFORMS`."""
    if platform != "cuda" or config.train.unroll != 1 or config.model.depth == 1:
        return None
    return (
        "on a GPU the step may be up to 1.4 times as fast without a loop over blocks, and need less memory: "
        "config.train.unroll=0; it compiles for longer (docs/speed.md)"
    )
