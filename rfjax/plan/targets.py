"""The targets of a plan: slices of TPUs and nodes of GPUs, by the names that their vendors give them.

Vendors count differently: v4 and v5p slices are named by TensorCores, two a chip; v5e and v6e by
chips; GPU nodes by GPUs. What a chip computes, holds and sends is in `training/chips.py`. No JAX here.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from dataclasses import dataclass

from rfjax.errors import ConfigError
from rfjax.training.chips import CHIPS, Chip

PLANNED = {name: chip for name, chip in CHIPS.items() if chip.shapes}


@dataclass(frozen=True)
class Target:
    """A slice or a set of nodes: `name` is the vendor's."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def cores(self) -> int:
        return self.chips * self.chip.cores

    @property
    def platform(self) -> str:
        """As `models/attention.py` names it."""
        return self.chip.kind

    @property
    def closed(self) -> tuple[bool, ...]:
        """Which sides of a TPU slice are rings. A 3D slice closes only where it is made of whole cubes."""
        sides = [side % self.chip.torus_side == 0 for side in self.shape]
        return tuple(sides) if len(self.shape) == 2 else (all(sides),) * len(sides)

    def describe(self) -> str:
        shape = "x".join(map(str, self.shape))
        if self.chip.kind != "tpu":
            return f"{self.name}: {self.chips} GPUs in {self.shape[0]} node(s) of {self.shape[1]}"
        return f"{self.name}: {self.chips} chips, {self.cores} TensorCores, topology {shape}"

    def bandwidth(self, ways: int) -> float:
        """Bytes a second that a device can send in a collective over `ways` devices.

        On a torus a ring runs along each side that the group covers, both ways where it closes.
        A group that is no product of sides shares one. The worst link of a group of GPUs counts.
        """
        link = self.chip.link_bandwidth
        if self.chip.kind != "tpu":
            return self.chip.node_bandwidth if ways <= self.shape[1] else link
        sides = [
            group
            for size in range(len(self.shape), 0, -1)
            for group in itertools.combinations(range(len(self.shape)), size)
            if math.prod(self.shape[i] for i in group) == ways
        ]
        rings = [sum(2 if self.closed[i] else 1 for i in group if self.shape[i] > 1) for group in sides]
        return link * max(rings, default=1)


def parse_target(name: str, option: str = "--target") -> Target:
    """`v5p-256`, `v5e-256`, `v6e-64`, `v4-128` by the vendor's count, or `h100x8` by GPUs.

    `option` is what the user gave it with. Raises `ConfigError` for an unknown chip, with the nearest, and for a
    size that is not sold.
    """
    match = re.fullmatch(r"([a-z]+\d*[a-z]*)(?:-(\d+)|x(\d+))", name.lower())
    known = ", ".join(_example(chip) for chip in PLANNED.values())
    if not match:
        near = difflib.get_close_matches(name.lower(), [_example(chip) for chip in PLANNED.values()], 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{option} is {name!r}; write the chip and the size as its vendor does: {known}{hint}")
    family, size = match[1], int(match[2] or match[3])
    if family not in PLANNED:
        near = difflib.get_close_matches(family, PLANNED, 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{option} {name}: unknown chip {family!r}: its peak and its links are not known{hint} Known: {known}"
        )
    chip = PLANNED[family]
    sizes = {math.prod(shape) * chip.cores: shape for shape in chip.shapes}
    if size not in sizes:
        counted = "TensorCores, two a chip" if chip.cores == 2 else "chips"
        raise ConfigError(
            f"{option} {name}: there is no {family} of {size} {counted}; the sizes are {', '.join(map(str, sizes))}"
        )
    return Target(_example(chip, size), chip, sizes[size])


def _example(chip, size=None):
    return f"{chip.name}x{size or 64}" if chip.kind != "tpu" else f"{chip.name}-{size or 256}"
