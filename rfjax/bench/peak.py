"""What matrix products reach on these devices: the mark that a step's FLOP/s are held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Sides of the square products, by platform; the fastest counts. Large ones take seconds on a CPU.
SIDES = {"cpu": (1024, 2048)}
ACCELERATOR_SIDES = (4096, 8192, 16384)
ROUNDS = 7


def matmul_flops_per_second(devices: Sequence[jax.Device], dtype: str, sides: Sequence[int] | None = None) -> dict:
    """FLOP/s of all devices together, each multiplying two square matrices of its own at the same time.

    Operations are 2 side^3 a product; the rate of a side is that of the median of its rounds. The
    precision is JAX's default where this is called, as a step's is.
    """
    sides = sides or SIDES.get(devices[0].platform, ACCELERATOR_SIDES)
    mesh = Mesh(np.asarray(devices), ("device",))
    rates = {}
    for side in sides:
        place = NamedSharding(mesh, P("device"))
        make = jax.jit(
            lambda key: jax.random.normal(key, (len(devices), side, side), jnp.dtype(dtype)),  # noqa: B023
            out_shardings=place,
        )
        left, right = make(jax.random.key(0)), make(jax.random.key(1))
        product = jax.jit(jnp.matmul, out_shardings=place).lower(left, right).compile()
        jax.block_until_ready(product(left, right))
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            jax.block_until_ready(product(left, right))
            times.append(time.perf_counter() - began)
        rates[side] = 2.0 * side**3 * len(devices) / statistics.median(times)
    return {"dtype": dtype, "flops_per_second": max(rates.values()), "by_side": rates, "devices": len(devices)}
