"""The targets of a plan: slices of TPUs and nodes of GPUs, by the names that their vendors give them.

Names of v4 and v5p slices count TensorCores, two a chip; those of v5e and v6e count chips; those of GPU nodes count
GPUs. The speed, memory and links of a chip are in `training/chips.py`. No JAX here.
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
    """A slice of TPUs or a set of GPU nodes; `name` is the vendor's."""

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
        """The platform's name in `models/attention.py`."""
        return self.chip.kind

    @property
    def closed(self) -> tuple[bool, ...]:
        """Which sides of a TPU slice close into rings. Those of a 3D slice do only if it is made of whole cubes."""
        sides = [side % self.chip.torus_side == 0 for side in self.shape]
        return tuple(sides) if len(self.shape) == 2 else (all(sides),) * len(sides)

    def describe(self) -> str:
        """The target in words."""
        if self.chip.kind != "tpu":
            return f"{self.name}: {self.chips} GPUs in {self.shape[0]} node(s) of {self.shape[1]}"
        shape = "x".join(map(str, self.shape))
        return f"{self.name}: {self.chips} chips, {self.cores} TensorCores, topology {shape}"

    def bandwidth(self, ways: int) -> float:
        """Bytes a second that a device can send in a collective over `ways` devices.

        On a torus a ring runs along each side that the group covers, in both directions where the side closes. A group
        that is no product of sides has one link. For a group of GPUs the slowest link counts.
        """
        link = self.chip.link_bandwidth
        if self.chip.kind != "tpu":
            return self.chip.node_bandwidth if ways <= self.shape[1] else link
        rings = [1]
        for covered in itertools.product((False, True), repeat=len(self.shape)):
            sides = [(side, closed) for side, closed, on in zip(self.shape, self.closed, covered, strict=True) if on]
            if math.prod(side for side, _ in sides) == ways:
                rings.append(sum(2 if closed else 1 for side, closed in sides if side > 1))
        return link * max(rings)


def parse_target(name: str, option: str = "--target") -> Target:
    """`v5p-256`, `v5e-256`, `v6e-64`, `v4-128` by the vendor's count, or `h100x8` by GPUs.

    `option` is the option that gave the name. Raises `ConfigError` for an unknown chip, with the nearest, and for a
    size that is not sold.
    """
    match = re.fullmatch(r"([a-z]+\d*[a-z]*)(?:-(\d+)|x(\d+))", name.lower())
    examples = [_name(chip) for chip in PLANNED.values()]
    known = ", ".join(examples)
    if not match:
        hint = _nearest(name.lower(), examples)
        raise ConfigError(f"{option} is {name!r}; write the chip and the size as its vendor does: {known}{hint}")
    family, size = match[1], int(match[2] or match[3])
    if family not in PLANNED:
        unknown = f"unknown chip {family!r}: its peak and its links are not known"
        raise ConfigError(f"{option} {name}: {unknown}{_nearest(family, PLANNED) or '.'} Known: {known}")
    chip = PLANNED[family]
    sizes = {math.prod(shape) * chip.cores: shape for shape in chip.shapes}
    if size not in sizes:
        counted = "TensorCores, two a chip" if chip.cores == 2 else "chips"
        sold = ", ".join(map(str, sizes))
        raise ConfigError(f"{option} {name}: there is no {family} of {size} {counted}; the sizes are {sold}")
    return Target(_name(chip, size), chip, sizes[size])


def _name(chip, size=None):
    """The vendor's name of a slice, by default one of a usual size."""
    return f"{chip.name}x{size or 64}" if chip.kind != "tpu" else f"{chip.name}-{size or 256}"


def _nearest(text, known):
    near = difflib.get_close_matches(text, known, 1, 0.3)
    return f"; did you mean {near[0]}?" if near else ""
