"""Computes checksums of arrays. A checksum is the same on any device, under any sharding, and in host memory."""

from __future__ import annotations

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, UInt32

from rfjax.training.mesh import path_name


@functools.partial(jax.jit, static_argnames="mesh")
def _checksum(leaf: Array, salt: UInt32[Array, ""], mesh: Mesh | None) -> UInt32[Array, ""]:
    """Returns the sum over the elements of bits * odd(position), modulo 2^32. Positions are counted from `salt` on.

    Addition modulo 2^32 is associative, so the sharding cannot change the sum. Multiplication by an odd factor is
    invertible, so a single changed element always changes the sum. The factors differ by position, so swapping elements
    changes it, too. All arrays of one shape share one program, so there is little to compile.
    """
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    position = jnp.full(bits.shape, salt, jnp.uint32)
    stride = 1
    for axis in reversed(range(bits.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position += index * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    mixed = position * jnp.uint32(0x9E3779B1)
    total = jnp.sum(bits * ((mixed ^ (mixed >> 16)) | 1), dtype=jnp.uint32)
    return total if mesh is None else jax.lax.with_sharding_constraint(total, NamedSharding(mesh, P()))


def checksums(tree) -> dict[str, int]:
    """Returns a uint32 checksum of each array's bits and their positions, by path.

    Each checksum is fetched before the next is started. XLA's CPU client runs at most 32 programs on a device at a
    time, and many small programs that all sum over devices could wait for each other for ever.
    """
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {
        name: int(_checksum(leaf, np.uint32(zlib.crc32(name.encode())), getattr(leaf.sharding, "mesh", None)))
        for name, leaf in leaves.items()
    }


def host_checksums(tree) -> dict[str, int]:
    """Computes, for NumPy arrays in host memory, the checksums that `checksums` computes for arrays on devices.

    An array is summed in parts along its first axis, because memory may be too small for the intermediate values of a
    whole large array.
    """
    sums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name, leaf = path_name(path), np.atleast_1d(leaf)
        salt, stride = zlib.crc32(name.encode()), math.prod(leaf.shape[1:])
        parts = leaf[None] if leaf.ndim == 1 else leaf  # the salt of a part is the position of its first element
        totals = [_checksum(part, np.uint32((salt + i * stride) % 2**32), None) for i, part in enumerate(parts)]
        sums[name] = sum(map(int, totals)) % 2**32
    return sums
