"""Measures the FLOP/s of matrix products on these devices, the peak that a step's FLOP/s are compared with."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# platform -> sides of the square matrices. The fastest product gives the peak. On a CPU large products take seconds.
SIDES = {"cpu": (1024, 2048)}
ACCELERATOR_SIDES = (4096, 8192, 16384)
ROUNDS = 7


def median_seconds(function: Callable, rounds: int) -> float:
    """Returns the median seconds, over `rounds` calls, from a call until its results are ready. One untimed call comes
    first."""
    jax.block_until_ready(function())
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def matmul_flops_per_second(devices: Sequence[jax.Device], dtype: str, sides: Sequence[int] | None = None) -> dict:
    """Measures the FLOP/s of all devices together, while each device multiplies two square matrices of type `dtype`.

    `sides` are the sides of the matrices that are tried; None means the default sides of the platform. A product has
    2 side^3 operations, and is timed by the median of `ROUNDS` rounds. Products use JAX's default matmul precision in
    the caller's context, as a training step does. Returns a dict: `dtype`, `flops_per_second` (the best rate),
    `by_side` ({side: rate}) and `devices` (their number).
    """
    place = NamedSharding(Mesh(np.asarray(devices), ("device",)), P("device"))
    make = jax.jit(jax.random.normal, static_argnums=(1, 2), out_shardings=place)
    rates = {}
    for side in sides or SIDES.get(devices[0].platform, ACCELERATOR_SIDES):
        left, right = (make(jax.random.key(seed), (len(devices), side, side), jnp.dtype(dtype)) for seed in (0, 1))
        product = jax.jit(jnp.matmul, out_shardings=place).lower(left, right).compile()
        seconds = median_seconds(functools.partial(product, left, right), ROUNDS)
        rates[side] = 2.0 * side**3 * len(devices) / seconds
    return {"dtype": dtype, "flops_per_second": max(rates.values()), "by_side": rates, "devices": len(devices)}
