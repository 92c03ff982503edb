"""The table of known chips: what a chip computes, holds and sends, and what JAX calls it.

Training (the peak in MFU), benchmarks and plans read this one table. A chip that is not in it has no peak: MFU is
then null, never a guess. A row without `shapes` has a peak and nothing else, so nothing can be planned for it. No JAX
here.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip. Bandwidths are in bytes a second; a link's bandwidth is that of one direction."""

    name: str
    kind: str  # tpu | cuda | rocm, as `models/attention.py` names platforms
    device_kinds: tuple[str, ...]  # `jax.Device.device_kind` of its devices
    devices: int = 1  # that JAX shows of one chip
    peak_flops: float  # dense bf16, of the chip
    hbm_bytes: int = 0  # what a program may use
    hbm_bandwidth: float = 0.0
    link_bandwidth: float = 0.0  # of a TPU's one link; of a GPU's share of its node's network
    node_bandwidth: float = 0.0  # of a GPU to those of its node
    shapes: tuple[tuple[int, ...], ...] = ()  # of the slices that can be had, or (nodes, GPUs of a node)
    cores: int = 1  # TensorCores that the vendor's slice names count per chip; 1 where they count chips
    torus_side: int = 1  # a side of this multiple closes into a ring
    topology: str = ""  # the TPU compiler's name of the family
    source: str


def _shapes(names: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, name.split("x"))) for name in names.split())


_CUBES = _shapes("2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16")
_SQUARES = _shapes("1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16")
_NODES = _shapes("1x8 2x8 4x8 8x8 16x8 32x8 64x8 128x8")

# Usable HBM of the TPUs is what libtpu's compiler allows a program, which its message names when
# one is too large (95.74, 15.75 GiB); v4's is the documented capacity, v6e's an assumption, 3/4 GiB
# below the documented 32.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            kind="tpu",
            device_kinds=("TPU v4",),
            peak_flops=275e12,
            hbm_bytes=32 * GIB,
            hbm_bandwidth=1200e9,
            link_bandwidth=50e9,
            shapes=_CUBES,
            cores=2,
            torus_side=4,
            topology="v4",
            source="cloud.google.com/tpu/docs/v4; links: Jouppi et al. 2023 (arXiv 2304.01433), table 4: six "
            "of 50 GB/s",
        ),
        Chip(
            name="v5p",
            kind="tpu",
            device_kinds=("TPU v5", "TPU v5p"),
            peak_flops=459e12,
            hbm_bytes=int(95.74 * GIB),
            hbm_bandwidth=2765e9,
            link_bandwidth=100e9,
            shapes=_CUBES,
            cores=2,
            torus_side=4,
            topology="v5",
            source="cloud.google.com/tpu/docs/v5p: 1200 GB/s a chip, both directions of six links together",
        ),
        Chip(
            name="v5e",
            kind="tpu",
            device_kinds=("TPU v5 lite", "TPU v5e"),
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
            kind="tpu",
            device_kinds=("TPU v6 lite", "TPU v6e"),
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
            name="tpu7x",
            kind="tpu",
            device_kinds=("TPU7x",),
            devices=2,
            peak_flops=2307e12,
            source="cloud.google.com/tpu/docs/tpu7x",
        ),
        Chip(
            name="a100",
            kind="cuda",
            device_kinds=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
            peak_flops=312e12,
            source="NVIDIA A100 datasheet",
        ),
        Chip(
            name="h100",
            kind="cuda",
            device_kinds=("NVIDIA H100 80GB HBM3",),
            peak_flops=989e12,
            hbm_bytes=80_000_000_000,
            hbm_bandwidth=3350e9,
            link_bandwidth=50e9,
            node_bandwidth=450e9,
            shapes=_NODES,
            source="NVIDIA H100 SXM datasheet, without sparsity; DGX H100: 400 Gb/s of network a GPU, NVLink 900 "
            "GB/s both ways",
        ),
        Chip(
            name="h100-pcie",
            kind="cuda",
            device_kinds=("NVIDIA H100 PCIe",),
            peak_flops=756e12,
            source="NVIDIA H100 datasheet: PCIe, without sparsity",
        ),
        Chip(
            name="h200",
            kind="cuda",
            device_kinds=("NVIDIA H200",),
            peak_flops=989e12,
            source="NVIDIA H200 datasheet, without sparsity",
        ),
        Chip(
            name="b200",
            kind="cuda",
            device_kinds=("NVIDIA B200",),
            peak_flops=2250e12,
            source="NVIDIA DGX B200 datasheet, without sparsity",
        ),
    )
}


def device_peak(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of one JAX device by what JAX calls it; None where the chip is unknown."""
    return next((chip.peak_flops / chip.devices for chip in CHIPS.values() if device_kind in chip.device_kinds), None)
