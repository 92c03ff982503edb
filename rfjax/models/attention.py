"""Joint softmax attention without a mask: one function, and the table of its implementations.

The implementation is chosen before anything is traced, by `config.train.attention` or by the platform of the devices
that will run the network. The network is built with the implementation's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float

from rfjax import limits
from rfjax.errors import ConfigError
from rfjax.models import sharding
from rfjax.models.attention_kernels import cudnn_attention, splash_attention
from rfjax.models.attention_xla import xla_attention, xla_blocks_attention

ALL_PLATFORMS = ("tpu", "cuda", "rocm", "cuda_before_ampere", "cpu")


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """A way to compute attention, and where it runs."""

    name: str
    # (queries, keys, values) -> output, all [batch, tokens, heads, head_size]. The number of queries may differ from
    # the number of keys.
    function: Callable
    platforms: tuple[str, ...]
    dtypes: tuple[str, ...] = ("float32", "bfloat16")  # of queries, keys and values
    head_size_multiple: int = 1
    largest_head_size: int | None = None
    partitioned: bool = False  # whether the compiler can split it over a mesh; else `sharding.by_head` does

    def why_not(self, platform: str, dtype: str, head_size: int) -> str | None:
        """The reason why this implementation does not run with these settings; None if it runs."""
        if platform not in self.platforms:
            return f"it runs on {' and '.join(self.platforms)}, and this is {platform}"
        if dtype not in self.dtypes:
            return f"it computes in {' or '.join(self.dtypes)}, and config.train.compute_dtype is {dtype}"
        if head_size % self.head_size_multiple or head_size > (self.largest_head_size or head_size):
            limit = f" up to {self.largest_head_size}" if self.largest_head_size else ""
            return f"it takes head sizes in multiples of {self.head_size_multiple}{limit}, and this one is {head_size}"
        return None


# In order of preference: `auto` takes the first row that runs.
IMPLEMENTATIONS: dict[str, Implementation] = {
    row.name: row
    for row in (
        Implementation(name="splash", function=splash_attention, platforms=("tpu",)),
        # cuDNN's training kernels take half precision only, and have these limits.
        Implementation(
            name="cudnn",
            function=cudnn_attention,
            platforms=("cuda",),
            dtypes=("bfloat16",),
            head_size_multiple=8,
            largest_head_size=128,
        ),
        Implementation(name="xla", function=xla_attention, platforms=ALL_PLATFORMS, partitioned=True),
        Implementation(name="xla_blocks", function=xla_blocks_attention, platforms=ALL_PLATFORMS, partitioned=True),
    )
}


def platform_of(device: jax.Device) -> str:
    """Returns the device's platform, one of `ALL_PLATFORMS`. JAX calls every GPU `gpu`; here GPUs have three names,
    because fused kernels need an NVIDIA GPU of the Ampere generation or later."""
    if device.platform not in ("gpu", "cuda", "rocm"):
        return device.platform
    if device.platform == "rocm" or "rocm" in device.client.platform_version.lower():
        return "rocm"
    return "cuda" if float(getattr(device, "compute_capability", 0)) >= 8.0 else "cuda_before_ampere"


def choose(requested: str, platform: str, *, dtype: str, head_size: int) -> str:
    """Returns the name of the implementation to use on `platform`: `requested`, or for `auto` the first row of
    `IMPLEMENTATIONS` that runs there.

    Raises `ConfigError` if `requested` is unknown or does not run there. The message names the implementations that do.
    """
    limits.check_choice("train.attention", requested)
    able = [row.name for row in IMPLEMENTATIONS.values() if row.why_not(platform, dtype, head_size) is None]
    if requested == "auto":
        return able[0]
    reason = IMPLEMENTATIONS[requested].why_not(platform, dtype, head_size)
    if reason:
        remedy = f"use {' or '.join(able)}, or auto, which takes {able[0]}"
        raise ConfigError(f"config.train.attention is {requested!r}, which cannot run here: {reason}; {remedy}")
    return requested


def attention(
    queries: Float[Array, "batch tokens heads head_size"],
    keys: Float[Array, "batch attended heads head_size"],
    values: Float[Array, "batch attended heads head_size"],
    implementation: str = "xla",
) -> Float[Array, "batch tokens heads head_size"]:
    """Returns softmax(q k^T / sqrt(head_size)) v, computed by the row of `IMPLEMENTATIONS` called `implementation`.
    Every query attends to every key.

    Over a mesh each device computes its own examples and heads.
    """
    row = IMPLEMENTATIONS[implementation]
    if row.partitioned:
        return row.function(queries, keys, values)
    return sharding.by_head(row.function, queries, keys, values)
