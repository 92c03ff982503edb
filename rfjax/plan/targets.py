"""The targets of a plan: slices of TPUs and nodes of GPUs, by their vendors' names.

The number in a name counts TensorCores for v4, v5p and tpu7x (two a chip), chips for v5e and v6e, and GPUs for GPU
nodes. `2xv5p-256` is two slices, which the data centre's network joins. The speed, memory and links of a chip are in
`training/chips.py`. No JAX here.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import re
from dataclasses import dataclass

from rfjax.errors import ConfigError
from rfjax.training.chips import CHIPS, Chip

PLANNED = {name: chip for name, chip in CHIPS.items() if chip.shapes}
_NAMES = {name: chip for chip in PLANNED.values() for name in (chip.name, *chip.aliases)}


@dataclass(frozen=True)
class Target:
    """The hardware of a plan: TPU slices or GPU nodes. `name` is the vendor's name of a slice, such as `v5p-256`. The
    name of several slices begins with their number, as `2xv5p-256`."""

    name: str
    chip: Chip
    shape: tuple[int, ...]  # of one slice
    slices: int = 1

    @property
    def slice_chips(self) -> int:
        return math.prod(self.shape)

    @property
    def chips(self) -> int:
        return self.slice_chips * self.slices

    @property
    def devices(self) -> int:
        """The number of devices that JAX shows: two for each chip of tpu7x, else one."""
        return self.chips * self.chip.devices

    @property
    def cores(self) -> int:
        return self.chips * self.chip.cores

    @property
    def shown_slices(self) -> int | None:
        """The number of slices that JAX's devices show; None for GPUs, which show none (`training/mesh.py`)."""
        return self.slices if self.chip.kind == "tpu" else None

    @property
    def one_slice(self) -> Target:
        """One of the target's slices."""
        return dataclasses.replace(self, name=self.name.removeprefix(f"{self.slices}x"), slices=1)

    @property
    def platform(self) -> str:
        """The platform's name in `models/attention.py`."""
        return self.chip.kind

    @property
    def closed(self) -> tuple[bool, ...]:
        """Says for each side of a TPU slice's torus whether the side closes into a ring. A 3D slice closes all sides if
        each is a multiple of the chip's `torus_side`, else none. A 2D slice closes each side that is a multiple."""
        sides = [side % self.chip.torus_side == 0 for side in self.shape]
        return tuple(sides) if len(self.shape) == 2 else (all(sides),) * len(sides)

    @property
    def facts(self) -> dict[str, object]:
        """What a plan's JSON says about the target."""
        facts = {"target": self.name, "slices": self.slices, "chips": self.chips, "cores": self.cores}
        facts["devices"] = self.devices
        return facts | {"hbm_bytes": self.chip.device_bytes, "source": self.chip.source}

    def describe(self) -> str:
        """Describes the target in words."""
        if self.chip.kind != "tpu":
            return f"{self.name}: {self.chips} GPUs in {self.shape[0]} {self.chip.node}(s) of {self.shape[1]}"
        shape = "x".join(map(str, self.shape))
        devices = "" if self.chip.devices == 1 else f", {self.devices} devices"
        slices = "" if self.slices == 1 else f"{self.slices} slices, "
        return f"{self.name}: {slices}{self.chips} chips, {self.cores} TensorCores{devices}, topology {shape}"

    def bandwidth(self, ways: int, stride: int = 1) -> float:
        """Returns the bytes a second that a device can send in a collective over `ways` devices of one slice.

        Neighbours of a group are `stride` devices apart, in the order of the devices.

        On a torus a ring runs along each side that the group covers, and in both directions if the side closes. A group
        that is not a product of sides has one link. If a chip has two devices, a ring through both uses all of the
        chip's links; a ring through one device has half of them. `stride` makes no difference to a TPU. GPUs are in the
        order of their nodes, and the slowest link of all groups counts: the network, unless each group is in one node.
        """
        link, split = self.chip.link_bandwidth, self.chip.devices
        if self.chip.kind != "tpu":
            nodes, node = self.shape
            return self.chip.node_bandwidth if nodes == 1 or node % (ways * stride) == 0 else link
        if 1 < ways == split:
            return self.chip.node_bandwidth
        rings = [1 / split]
        for covered in itertools.product((False, True), repeat=len(self.shape)):
            sides = [(side, closed) for side, closed, on in zip(self.shape, self.closed, covered, strict=True) if on]
            for together in {1, split}:
                if math.prod(side for side, _ in sides) * together == ways:
                    rings.append(sum(2 if closed else 1 for side, closed in sides if side > 1) * together / split)
        return link * max(rings)


def check_network(target: Target) -> None:
    """Raises `ConfigError` if the bandwidth between the target's slices is not known."""
    if target.slices > 1 and not target.chip.slice_bandwidth:
        known = ", ".join(name for name, chip in PLANNED.items() if chip.slice_bandwidth)
        unknown = f"the bandwidth between slices of {target.chip.name} is not published"
        raise ConfigError(f"--target {target.name}: {unknown}; it is known for {known}")


def parse_target(name: str, option: str = "--target") -> Target:
    """Parses a target's name, such as `v5p-256` or `v6e-64` (the vendor's count), `2xv5p-256` (two such slices) or
    `h100x8` (GPUs).

    A chip's aliases are accepted too. `option` is the option that gave the name. Raises `ConfigError` for an unknown
    chip, with the most similar names; for a size that is not sold; and for several slices of GPUs.
    """
    several = re.fullmatch(r"(\d{1,4})x([a-z0-9-]+?[-x]\d{1,9})", name.lower())
    if several:
        one, slices = parse_target(several[2], option), int(several[1])
        if one.chip.kind != "tpu" or not slices:
            remedy = "give one or more" if one.chip.kind == "tpu" else "count the GPUs of all nodes, as h100x64"
            raise ConfigError(f"{option} {name}: there are no {slices} slices of {one.name}; {remedy}")
        return one if slices == 1 else dataclasses.replace(one, name=f"{slices}x{one.name}", slices=slices)
    match = re.fullmatch(r"([a-z0-9-]+?)[-x](\d{1,9})", name.lower())
    examples = [_name(chip) for chip in PLANNED.values()]
    known = ", ".join(examples)
    if not match:
        hint = _nearest(name.lower(), examples)
        raise ConfigError(f"{option} is {name!r}; write the chip and the size as its vendor does: {known}{hint}")
    family, size = match[1], int(match[2])
    if family not in _NAMES:
        unknown = f"unknown chip {family!r}: its peak and its links are not known"
        if family in CHIPS:
            unknown = f"of {family} only the peak is known, not its memory and its links"
        raise ConfigError(f"{option} {name}: {unknown}{_nearest(family, _NAMES) or '.'} Known: {known}")
    chip = _NAMES[family]
    sizes = {math.prod(shape) * chip.cores: shape for shape in chip.shapes}
    if size not in sizes:
        counted = "GPUs" if chip.kind != "tpu" else "TensorCores, two a chip" if chip.cores == 2 else "chips"
        sold = ", ".join(map(str, sizes))
        raise ConfigError(f"{option} {name}: there is no {chip.name} of {size} {counted}; the sizes are {sold}")
    return Target(_name(chip, size), chip, sizes[size])


def _name(chip, size=None):
    """Returns the vendor's name of a slice of this size. Without a size, returns the name of a slice as an example."""
    usual = size or (256 if chip.kind == "tpu" else min(64, math.prod(chip.shapes[-1])))
    return f"{chip.name}{'-' if chip.kind == 'tpu' or chip.name.endswith('x') else 'x'}{usual}"


def _nearest(text, known):
    near = difflib.get_close_matches(text, known, 3, 0.5)
    *first, last = near or [""]
    return f"; did you mean {', '.join(first)}{' or ' if first else ''}{last}?" if near else ""
