"""Makes the device mesh, and the shardings of a whole state over it.

The table in `models/sharding.py` says which mesh axis splits which dimension of a parameter. Optimiser moments and
averages are split like their parameters, because the rules match the end of a path: the rule for `qkv/kernel` also
matches `opt_state/1/mu/blocks/image/qkv/kernel`.
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
from rfjax.mesh_axes import AXES, BATCH_AXES, DIMENSION_AXIS, SLICE_AXIS, batch_ways
from rfjax.models.sharding import dimensions, path_name

BATCH = P(BATCH_AXES)  # the leading axis of every array of a batch


def slice_count(config: MeshConfig, shown: int | None) -> int:
    """Returns the number of slices that a mesh covers: `shown`, or if that is None, the config's number, at least 1.

    `shown` is the number of slices that the devices' attributes give; None for CPUs and GPUs, which have no such
    attribute. Raises `ConfigError` for a config that contradicts the devices.
    """
    if shown is None:
        return max(config.slices, 1)
    if config.slices not in (-1, shown):
        raise ConfigError(
            f"config.mesh.slices is {config.slices}, but the devices are in {shown} slice(s); set it to {shown} or -1"
        )
    return shown


def mesh_sizes(config: MeshConfig, devices: int, shown_slices: int | None = None) -> dict[str, int]:
    """The number of devices along each axis of a mesh of `devices` devices. An axis of -1 takes all remaining devices.

    `shown_slices` is the number of slices that the devices' attributes give; None for CPUs and GPUs. Raises
    `ConfigError` for an axis of another size below 1, for two axes of -1, if the product of the axes is not the number
    of devices, or if the number of slices does not divide the axis that goes over slices.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    described = ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ConfigError(f"{described}; sizes must be positive, and at most one may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = devices // fixed
    if math.prod(sizes.values()) != devices:
        raise ConfigError(
            f"{described} takes {'a multiple of ' if free else ''}{fixed} devices, but there are "
            f"{devices}; change the sizes, or set one to -1 to take what is left"
        )
    slices = slice_count(config, shown_slices)
    if sizes[SLICE_AXIS] % slices:
        inside = math.prod(sizes.values()) // sizes[SLICE_AXIS]
        raise ConfigError(
            f"{described}: only {SLICE_AXIS} goes over slices, and {SLICE_AXIS}={sizes[SLICE_AXIS]} is not divisible "
            f"by {slices} slices; the other axes take {inside} devices, which must divide the {devices / slices:g} of "
            "a slice"
        )
    return sizes


def slice_places(owners: Sequence[int], slices: int) -> list[list[int]]:
    """Groups devices into slices. Returns, for each slice, the positions of its devices in `owners`.

    `owners` has the owner of each device: for a TPU its slice, for any other device its process. Processes are grouped
    in order: a slice is several consecutive processes, or a process holds several slices. Raises `ConfigError` for
    owners that cannot be grouped in this way.
    """
    order = sorted(range(len(owners)), key=owners.__getitem__)  # a stable sort: an owner's devices keep their order
    each, names = len(order) // slices, set(owners)
    groups = [order[place * each : (place + 1) * each] for place in range(slices)]
    pairs = {(place, owners[device]) for place, group in enumerate(groups) for device in group}
    if len(pairs) > max(len(names), slices):
        counts = [list(owners).count(name) for name in sorted(names)]
        raise ConfigError(
            f"config.mesh.slices is {slices}, but processes or TPU slices of {counts} devices do not form as many "
            "equal slices; use machines of one size, and a number of slices that divides their number"
        )
    return groups


def shown_slices(devices: Sequence[jax.Device]) -> int | None:
    """The number of TPU slices that `devices` belong to, from their `slice_index`; None for devices other than TPUs."""
    return len({_slice_of(device) for device in devices}) if devices[0].platform == "tpu" else None


def _slice_of(device: jax.Device) -> int:
    return getattr(device, "slice_index", 0)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh over `devices` (all by default), with the axes of `mesh_axes.py`.

    Devices are ordered by slice: along the axis that goes over slices, all devices of one slice come before those of
    the next. Raises `ConfigError` if the product of the axes is not the number of devices, and for slices that do not
    fit.
    """
    devices = jax.devices() if devices is None else list(devices)
    shown = shown_slices(devices)
    sizes, slices = mesh_sizes(config, len(devices), shown), slice_count(config, shown)
    inside = tuple((sizes | {SLICE_AXIS: sizes[SLICE_AXIS] // slices}).values())
    groups = [devices]
    if slices > 1:
        owners = [device.process_index if shown is None else _slice_of(device) for device in devices]
        groups = [[devices[place] for place in places] for places in slice_places(owners, slices)]
    split = shown is not None  # a mesh axis may be part of one side of a TPU's slice
    blocks = [mesh_utils.create_device_mesh(inside, group, allow_split_physical_axes=split) for group in groups]
    return Mesh(np.concatenate(blocks, axis=AXES.index(SLICE_AXIS)), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shardings(mesh: Mesh | AbstractMesh, tree):
    """Returns a tree of `NamedSharding`s for `tree`, the arrays or shapes of parameters or of a whole state.

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
    """The places of the global batch that this process's devices hold, ascending.

    The places need not be consecutive. If the axis `tensor` spans processes, several processes hold the same places.
    """
    parts = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in parts]))


def put_batch(mesh: Mesh, batch_size: int, places: Int[np.ndarray, " rows"], local):
    """Makes the global batch, a tree of arrays. `local` has this process's rows of it; `places` are the places of these
    rows, from `places_here`."""
    sharding = NamedSharding(mesh, BATCH)

    def put(array):
        def rows(index):
            wanted = np.arange(batch_size)[index[0]]
            first = np.searchsorted(places, wanted[0])
            return array[first : first + len(wanted)]  # the rows of one device are consecutive

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, rows)

    return jax.device_put(local, sharding) if sharding.is_fully_addressable else jax.tree.map(put, local)


def spread(tree, sharding: NamedSharding | None):
    """Puts arrays on the devices by `sharding`. Every process holds the whole arrays, and supplies its own devices'
    part.

    Without a sharding, the arrays are returned unchanged.
    """
    if sharding is None:
        return tree
    return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, sharding, lambda index: a[index]), tree)


def check_batch(mesh: Mesh | AbstractMesh, batch_size: int, accumulate: int) -> None:
    """Raises `ConfigError` unless every device gets whole examples of every microbatch."""
    ways = batch_ways(mesh.shape)
    if batch_size % (ways * accumulate):
        sizes = [*(mesh.shape[axis] for axis in BATCH_AXES), accumulate]
        raise ConfigError(
            f"config.train.batch_size={batch_size} is not divisible by {'*'.join((*BATCH_AXES, 'accumulate'))} = "
            f"{'*'.join(map(str, sizes))} = {ways * accumulate}; choose a multiple of {ways * accumulate}"
        )
