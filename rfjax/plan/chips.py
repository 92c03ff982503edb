"""The targets of a plan: what one chip computes, holds and sends, and how slices are named.

Vendors count differently: v4 and v5p slices are named by TensorCores, two a chip; v5e and v6e by
chips; GPU nodes by GPUs. JAX shows one device a chip for all of them here. No JAX in this file.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from dataclasses import dataclass

from rfjax.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip. Bandwidths are bytes a second; a link's is that of one direction."""

    name: str
    cores: int  # TensorCores that the vendor's slice names count per chip; 1 where they count chips
    peak_flops: float  # dense bf16
    hbm_bytes: int  # what a program may use
    hbm_bandwidth: float
    link_bandwidth: float  # one link, one direction
    shapes: tuple[tuple[int, ...], ...]  # of the slices or nodes that can be had
    torus_side: int  # a side of this multiple closes into a ring
    topology: str  # the compiler's name of the family
    source: str


_CUBES = (
    (2, 2, 1),
    (2, 2, 2),
    (2, 2, 4),
    (2, 4, 4),
    (4, 4, 4),
    (4, 4, 8),
    (4, 8, 8),
    (8, 8, 8),
    (8, 8, 16),
    (8, 16, 16),
    (16, 16, 16),
)
_SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_NODES = tuple((nodes, 8) for nodes in (1, 2, 4, 8, 16, 32, 64, 128))

# Usable HBM of the TPUs is what libtpu's compiler allows a program, which its message names when
# one is too large (95.74, 15.75 GiB); v4's is the documented capacity, v6e's an assumption, 3/4 GiB
# below the documented 32.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            cores=2,
            peak_flops=275e12,
            hbm_bytes=32 * GIB,
            hbm_bandwidth=1200e9,
            link_bandwidth=50e9,
            shapes=_CUBES,
            torus_side=4,
            topology="v4",
            source="cloud.google.com/tpu/docs/v4; links: Jouppi et al. 2023 (arXiv 2304.01433), table 4: six "
            "of 50 GB/s",
        ),
        Chip(
            name="v5p",
            cores=2,
            peak_flops=459e12,
            hbm_bytes=int(95.74 * GIB),
            hbm_bandwidth=2765e9,
            link_bandwidth=100e9,
            shapes=_CUBES,
            torus_side=4,
            topology="v5",
            source="cloud.google.com/tpu/docs/v5p: 1200 GB/s a chip, both directions of six links together",
        ),
        Chip(
            name="v5e",
            cores=1,
            peak_flops=197e12,
            hbm_bytes=int(15.75 * GIB),
            hbm_bandwidth=819e9,
            link_bandwidth=50e9,
            shapes=_SQUARES,
            torus_side=16,
            topology="v5e",
            source="cloud.google.com/tpu/docs/v5e: 400 GB/s a chip, both directions of four links together",
        ),
        Chip(
            name="v6e",
            cores=1,
            peak_flops=918e12,
            hbm_bytes=int(31.25 * GIB),
            hbm_bandwidth=1638e9,
            link_bandwidth=100e9,
            shapes=_SQUARES,
            torus_side=16,
            topology="v6e",
            source="cloud.google.com/tpu/docs/v6e: 800 GB/s a chip, both directions of four links together",
        ),
        Chip(
            name="h100",
            cores=1,
            peak_flops=989e12,
            hbm_bytes=80_000_000_000,
            hbm_bandwidth=3350e9,
            link_bandwidth=50e9,
            shapes=_NODES,
            torus_side=1,
            topology="cuda",
            source="NVIDIA H100 SXM datasheet, without sparsity; DGX H100: 400 Gb/s of network a GPU, NVLink 900 "
            "GB/s both ways",
        ),
    )
}

NVLINK = 450e9  # bytes a second, one direction, of one GPU inside its node (H100 SXM datasheet: 900 both ways)


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
        return "cuda" if self.chip.name == "h100" else "tpu"

    @property
    def closed(self) -> tuple[bool, ...]:
        """Which sides of a TPU slice are rings. A 3D slice closes only where it is made of whole cubes."""
        sides = [side % self.chip.torus_side == 0 for side in self.shape]
        return tuple(sides) if len(self.shape) == 2 else (all(sides),) * len(sides)

    def describe(self) -> str:
        shape = "x".join(map(str, self.shape))
        if self.chip.name == "h100":
            return f"{self.name}: {self.chips} GPUs in {self.shape[0]} node(s) of 8"
        return f"{self.name}: {self.chips} chips, {self.chips * tensorcores(self.chip)} TensorCores, topology {shape}"

    def bandwidth(self, ways: int) -> float:
        """Bytes a second that a device can send in a collective over `ways` devices.

        On a torus a ring runs along each side that the group covers, both ways where it closes.
        A group that is no product of sides shares one. The worst link of a group of GPUs counts.
        """
        link = self.chip.link_bandwidth
        if self.chip.name == "h100":
            return NVLINK if ways <= 8 else link
        sides = [
            group
            for size in range(len(self.shape), 0, -1)
            for group in itertools.combinations(range(len(self.shape)), size)
            if math.prod(self.shape[i] for i in group) == ways
        ]
        rings = [sum(2 if self.closed[i] else 1 for i in group if self.shape[i] > 1) for group in sides]
        return link * max(rings, default=1)


def tensorcores(chip: Chip) -> int:
    """TensorCores of a chip: v5e and v6e have one, and count it as a chip."""
    return chip.cores


def parse_target(name: str, option: str = "--target") -> Target:
    """`v5p-256`, `v5e-256`, `v6e-64`, `v4-128` by the vendor's count, or `h100x8` by GPUs.

    `option` is what the user gave it with. Raises `ConfigError` for an unknown chip, with the nearest, and for a
    size that is not sold.
    """
    match = re.fullmatch(r"([a-z]+\d*[a-z]*)(?:-(\d+)|x(\d+))", name.lower())
    known = ", ".join(_example(chip) for chip in CHIPS.values())
    if not match:
        near = difflib.get_close_matches(name.lower(), [_example(chip) for chip in CHIPS.values()], 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{option} is {name!r}; write the chip and the size as its vendor does: {known}{hint}")
    family, size = match[1], int(match[2] or match[3])
    if family not in CHIPS:
        near = difflib.get_close_matches(family, CHIPS, 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{option} {name}: unknown chip {family!r}: its peak and its links are not known{hint} Known: {known}"
        )
    chip = CHIPS[family]
    sizes = {math.prod(shape) * chip.cores: shape for shape in chip.shapes}
    if size not in sizes:
        counted = "TensorCores, two a chip" if chip.cores == 2 else "chips"
        raise ConfigError(
            f"{option} {name}: there is no {family} of {size} {counted}; the sizes are {', '.join(map(str, sizes))}"
        )
    return Target(_example(chip, size), chip, sizes[size])


def _example(chip, size=None):
    return f"{chip.name}x{size or 64}" if chip.name == "h100" else f"{chip.name}-{size or 256}"
