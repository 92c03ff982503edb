"""Low-rank adapters of a network's linear maps (LoRA; Hu et al. 2021, arXiv 2106.09685, section 4.1).

An adapter is a tree of its own, beside the parameters: for each adapted kernel W it has `a` and `b`, and the network is
called with W + scale * (a b), merged before the forward pass. So every backbone, scan, rematerialisation and mesh
serves an adapted network unchanged. `b` starts at zero. So before any training step, and at scale 0 always, the merged
network equals the network without the adapter, bit for bit.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rfjax.models.sharding import dimensions, path_name

Params = Any  # nested dict of float32 arrays
Adapter = Any  # the same dict with {"a", "b"} in place of each adapted kernel, and nothing else


class MatrixAxes(NamedTuple):
    """How a kernel is read as matrices: which axes are inputs, outputs and separate maps. Axes are counted from the
    end. Axes that are in none of the three groups stand in front, and count stacked layers."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    apart: tuple[int, ...] = ()  # these count maps with factors of their own, such as queries, keys and values


# (end of a kernel's path, its axes). The first match counts. Each linear map that `sharding.RULES` names has a row,
# except the patch embedding. Convolutions have no row.
MATRICES: tuple[tuple[str, MatrixAxes], ...] = (
    (r"/(qkv2?|cross_kv)/kernel$", MatrixAxes((-4,), (-2, -1), (-3,))),
    (r"/cross_q/kernel$", MatrixAxes((-3,), (-2, -1))),
    (r"/(cross_)?proj2?/kernel$", MatrixAxes((-3, -2), (-1,))),
    (r"/modulation/kernel$", MatrixAxes((-3,), (-2, -1))),
    (r"/(mlp_in|mlp_out|(down|up)\d+_linear)/kernel$", MatrixAxes((-2,), (-1,))),
    (r"(context|class)_embed/kernel$", MatrixAxes((-2,), (-1,))),
    (r"(time|pooled|context)_embed/(in|out)/kernel$", MatrixAxes((-2,), (-1,))),
    (r"final/linear/kernel$", MatrixAxes((-2,), (-1,))),
)


def matrix_axes(path: str) -> MatrixAxes | None:
    """The `MatrixAxes` of the kernel at this path; None for a parameter that adapters leave alone."""
    if not dimensions(path):
        return None
    return next((axes for pattern, axes in MATRICES if re.search(pattern, "/" + path)), None)


class MatrixShape(NamedTuple):
    """A kernel's shape in groups of axes: stacked layers, separate maps (such as queries, keys and values), inputs,
    outputs."""

    stacked: tuple[int, ...]
    apart: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def sides(self) -> tuple[int, int]:
        """The number of inputs and of outputs of one map."""
        return math.prod(self.inputs), math.prod(self.outputs)

    @property
    def maps(self) -> tuple[int, ...]:
        """The shape of the leading axes of the factors a and b: one index for each layer and each separate map."""
        return self.stacked + self.apart


def matrix_shape(shape: tuple[int, ...], axes: MatrixAxes) -> MatrixShape:
    named = len(axes.inputs) + len(axes.outputs) + len(axes.apart)
    parts = (tuple(shape[axis] for axis in part) for part in (axes.apart, axes.inputs, axes.outputs))
    return MatrixShape(tuple(shape[: len(shape) - named]), *parts)


def rank_of(shape: MatrixShape, rank: int) -> int:
    """Returns the rank of a kernel's factors: `rank`, but at most half the smaller side, and at least 1. With a rank
    above half its side, the factors of a square kernel would hold more numbers than the kernel."""
    return max(1, min(rank, min(shape.sides) // 2))


def init_adapter(key: Array, params: Params, rank: int) -> Adapter:
    """Returns a new adapter, with factors for every kernel in `params` that `MATRICES` lists. Of `params` only the
    paths and shapes matter.

    `a` [maps..., inputs, rank] is uniform in +-1/sqrt(inputs), and `b` [maps..., rank, outputs] is zero. The numbers in
    `a` depend on `key` and on the kernel's path and shape, not on the other kernels.
    """
    adapter: dict = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        axes = matrix_axes(name)
        if axes is None:
            continue
        shape = matrix_shape(leaf.shape, axes)
        inputs, outputs = shape.sides
        own, limit = rank_of(shape, rank), 1.0 / math.sqrt(inputs)
        a = jax.random.uniform(
            jax.random.fold_in(key, zlib.crc32(name.encode())), (*shape.maps, inputs, own), jnp.float32, -limit, limit
        )
        node = adapter
        for part in name.split("/"):
            node = node.setdefault(part, {})
        node |= {"a": a, "b": jnp.zeros((*shape.maps, own, outputs), jnp.float32)}
    return adapter


def product(
    factors: Mapping[str, Float[Array | np.ndarray, " ..."]], path: str, shape: tuple[int, ...]
) -> Float[Array | np.ndarray, " ..."]:
    """Returns the product a b of the factors of the kernel at `path`, in the kernel's `shape`."""
    axes = matrix_axes(path)
    parts = matrix_shape(shape, axes)
    delta = jnp.matmul(factors["a"], factors["b"], precision="highest")
    delta = delta.reshape(*parts.maps, *parts.inputs, *parts.outputs)
    if not axes.apart:
        return delta
    first = len(parts.stacked)
    return jnp.moveaxis(delta, first, len(shape) + axes.apart[0])


def merge(params: Params, adapter: Adapter, scale: Float[Array, ""] | float) -> Params:
    """Returns the parameters W + scale * (a b). Leaves for which `adapter` has no factors stay as in `params`."""

    def merged(path, leaf):
        node = adapter
        for part in path:
            if part.key not in node:
                return leaf
            node = node[part.key]
        return leaf + scale * product(node, path_name(path), leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(merged, params)


def adapted_leaves(params: Params) -> dict[str, MatrixShape]:
    """Returns {path: `MatrixShape`} of every kernel that an adapter has factors for."""
    leaves = ((path_name(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(params))
    axes = ((name, shape, matrix_axes(name)) for name, shape in leaves)
    return {name: matrix_shape(shape, found) for name, shape, found in axes if found}


def cut_ranks(params: Params, rank: int) -> dict[int, list[str]]:
    """Returns {lower rank: paths of the kernels whose factors have it}, in ascending order. It lists only kernels that
    are too small for factors of rank `rank` (`rank_of`)."""
    cut: dict[int, list[str]] = {}
    for path, shape in adapted_leaves(params).items():
        if (own := rank_of(shape, rank)) < rank:
            cut.setdefault(own, []).append(path)
    return dict(sorted(cut.items()))
