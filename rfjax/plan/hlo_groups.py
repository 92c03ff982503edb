"""Reads from HLO text which devices exchange arrays with each other. No JAX here."""

from __future__ import annotations

import functools
import math
import re

import numpy as np

_MESH = re.compile(r"replica_groups=(?:@?\w*)?mesh\[([^\]]*)\](.*?)\{((?:'[^}]*)?)\}")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # the numbers from 0 in an array of this shape, its axes in another order
_TILED = re.compile(rf"replica_groups=\[\d+,(\d+)\]<={_IOTA}")
_DEVICES = re.compile(rf"device_ids=\({_IOTA}\)")


def first_group(attributes: str, devices: int) -> list[int]:
    """Returns the devices of an exchange's first group. HLO writes groups in three ways; all are read."""
    mesh = _MESH.search(attributes)
    if mesh:
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        axes = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", mesh[3])
        ordered = _DEVICES.search(mesh[2])
        order = _iota(*ordered.groups()) if ordered else range(math.prod(sizes.values()))
        return [order[place] for place in _places(sizes, axes)] if axes else list(range(devices))
    listed = _LISTED.search(attributes)
    if listed:
        return [int(device) for device in listed[1].split(",")]
    tiled = _TILED.search(attributes)
    return list(_iota(tiled[2], tiled[3])[: int(tiled[1])]) if tiled else list(range(devices))


def _places(sizes: dict[str, int], axes: list[tuple[str, str, str]]) -> list[int]:
    """Returns the places of a mesh's first group. `axes` has (axis, "", "") of each whole axis of the group; of a part
    of an axis, (axis, size of the parts outside it, size of the part)."""
    names, group = list(sizes), [0]
    for axis, outside, part in axes:
        inner = math.prod(sizes[name] for name in names[names.index(axis) + 1 :])
        size = int(part or sizes[axis])
        step = inner * (sizes[axis] // (int(outside or 1) * size))
        group = [first + step * place for first in group for place in range(size)]
    return group


@functools.cache
def _iota(shape: str, axes: str | None) -> tuple[int, ...]:
    sizes = [int(size) for size in shape.split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return tuple(np.transpose(numbers, [int(axis) for axis in axes.split(",")] if axes else None).ravel().tolist())
