"""Where arrays live: the device mesh, and the sharding of a whole state over it.

The table of `models/sharding.py` says which axis splits which dimension. Optimiser moments and averages are split like
their parameters, because rules match the end of a path: `opt_state/1/mu/blocks/image/qkv/kernel` is a `qkv/kernel`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from rfjax.config import MeshConfig
from rfjax.errors import ConfigError
from rfjax.models.sharding import AXES, BATCH_AXES, DIMENSION_AXIS, dimensions, path_name

BATCH = P(BATCH_AXES)  # the leading axis of every array of a batch


def mesh_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """The number of devices along each axis of a mesh of `devices` devices. An axis of -1 takes what the others leave.

    Raises `ConfigError` when the axes' product is not the number of devices.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    described = ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ConfigError(f"{described}: sizes must be positive, and at most one may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = devices // fixed
    if math.prod(sizes.values()) != devices:
        raise ConfigError(
            f"{described} takes {'a multiple of ' if free else ''}{fixed} devices, but there are "
            f"{devices}; change the sizes, or set one to -1 to take what is left"
        )
    return sizes


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over `devices` (all by default).

    Raises `ConfigError` when the axes' product is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes(config, len(devices))
    shape, types = tuple(sizes.values()), (AxisType.Auto,) * 3
    if devices[0].platform == "tpu":  # jax.make_mesh refuses an axis that takes only part of a slice's side
        return Mesh(
            mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES, axis_types=types
        )
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)


def shardings(mesh: Mesh | AbstractMesh, tree):
    """A tree of `NamedSharding`s for a tree of arrays or shapes: parameters, or a whole state.

    Raises `ConfigError` for a dimension that its mesh axis does not divide.
    """

    def sharding(path, leaf):
        names = dimensions(path_name(path))[-leaf.ndim or None :] if leaf.ndim else ()
        whole = leaf.ndim - len(names)
        spec = [None] * whole + [DIMENSION_AXIS.get(name) for name in names]
        for dimension, axis in enumerate(spec):
            if axis and leaf.shape[dimension] % mesh.shape[axis]:
                size, label = leaf.shape[dimension], path_name(path).removeprefix("params/")
                raise ConfigError(
                    f"the {names[dimension - whole]} size {size} of parameter {label} {list(leaf.shape)} is not "
                    f"divisible by the mesh axis {axis}={mesh.shape[axis]}; "
                    f"set config.mesh.{axis} to a divisor of {size}"
                )
        return NamedSharding(mesh, P(*spec))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def places_here(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " rows"]:
    """The places of the global batch that this process's devices hold, ascending. The places need not be consecutive.
    Where `tensor` spans processes, several processes hold the same places."""
    slices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in slices]))


def put_batch(mesh: Mesh, batch_size: int, places: Int[np.ndarray, " rows"], local):
    """Makes the global batch, a tree of arrays. Each process gives the rows of its own `places_here`."""
    sharding = NamedSharding(mesh, BATCH)

    def put(array):
        def rows(index):
            wanted = np.arange(batch_size)[index[0]]
            first = np.searchsorted(places, wanted[0])
            return array[first : first + len(wanted)]  # the rows of one device are consecutive

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, rows)

    return jax.device_put(local, sharding) if sharding.is_fully_addressable else jax.tree.map(put, local)


def spread(tree, sharding: NamedSharding | None):
    """Puts arrays that every process holds whole on the devices by `sharding`; each process gives its own part. Without
    a sharding, returns them unchanged."""
    if sharding is None:
        return tree
    return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, sharding, lambda index: a[index]), tree)


def check_batch(mesh: Mesh | AbstractMesh, batch_size: int, accumulate: int) -> None:
    """Raises `ConfigError` unless every device gets whole examples of every microbatch."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (ways * accumulate):
        raise ConfigError(
            f"config.train.batch_size={batch_size} is not divisible by data*fsdp*accumulate = "
            f"{mesh.shape['data']}*{mesh.shape['fsdp']}*{accumulate} = {ways * accumulate}; "
            f"choose a multiple of {ways * accumulate}"
        )
