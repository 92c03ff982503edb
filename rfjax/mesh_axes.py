"""The axes of the device mesh: the one table that configs, networks, training, plans and launchers read. No JAX here.

Devices may be in several slices (groups with fast links inside, joined by a slow network). Only an axis that
`spans_slices` goes over the slow network; every other axis stays inside a slice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of the mesh, with what it splits."""

    name: str  # also the field of `config.mesh` that has its size
    splits_batch: bool = False
    dimensions: tuple[str, ...] = ()  # the named dimensions of parameters and activations (`models/sharding.py`)
    spans_slices: bool = False


MESH_AXES: tuple[Axis, ...] = (
    Axis(name="data", splits_batch=True, spans_slices=True),
    Axis(name="fsdp", splits_batch=True, dimensions=("hidden",)),
    Axis(name="tensor", dimensions=("heads", "mlp")),
)
AXES = DATA, FSDP, TENSOR = tuple(axis.name for axis in MESH_AXES)
BATCH_AXES = tuple(axis.name for axis in MESH_AXES if axis.splits_batch)
(SLICE_AXIS,) = (axis.name for axis in MESH_AXES if axis.spans_slices)
INNER_AXES = tuple(name for name in AXES if name != SLICE_AXIS)
DIMENSION_AXIS = {dimension: axis.name for axis in MESH_AXES for dimension in axis.dimensions}
LAYOUT = " x ".join(AXES)  # the order in which a mesh's sizes are written


def batch_ways(sizes: Mapping[str, int]) -> int:
    """Returns the number of parts that a mesh of these sizes splits a batch into."""
    return math.prod(sizes[axis] for axis in BATCH_AXES)


def strides_of(sizes: Mapping[str, int]) -> dict[str, int]:
    """Returns for each axis of a mesh of these sizes how many devices apart neighbours along the axis are."""
    return {axis: math.prod(sizes[inner] for inner in AXES[place + 1 :]) for place, axis in enumerate(AXES)}
