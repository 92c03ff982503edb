"""The table of known chips: each chip's speed, memory and bandwidths, and its name in JAX.

Training (the peak in MFU), benchmarks and plans all read this table. For a chip that is not in it, the peak is unknown
and MFU is null, never a guess. A chip whose row has no `shapes` has only a peak, so `rfjax plan` cannot plan for it.
Peaks are for dense products summed in float32, without sparsity. No JAX here.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip. Bandwidths are in bytes a second; a link's bandwidth is that of one direction.

    The fields describe the whole chip, which JAX may show as several devices. The properties describe one such device.
    """

    name: str
    aliases: tuple[str, ...] = ()  # other names of the chip
    kind: str  # tpu | cuda | rocm, as `models/attention.py` names platforms
    device_kinds: tuple[str, ...]  # `jax.Device.device_kind` of its devices
    devices: int = 1  # how many devices JAX shows for one chip
    peak_flops: float  # dense bf16, of the chip
    hbm_bytes: int = 0  # what a program may use
    hbm_bandwidth: float = 0.0
    link_bandwidth: float = 0.0  # TPU: one link; GPU: one GPU's share of the network between nodes
    node_bandwidth: float = 0.0  # GPU: to the other GPUs of the node; TPU: between the devices of a chip
    slice_bandwidth: float = 0.0  # TPU: one chip's share of the data centre's network between slices; 0 if unknown
    shapes: tuple[tuple[int, ...], ...] = ()  # TPU: the slices that exist; GPU: (nodes, GPUs per node)
    node: str = "node"  # what GPUs that are joined by `node_bandwidth` are called
    cores: int = 1  # what one chip adds to the number in a slice's name: its TensorCores, or 1 if names count chips
    torus_side: int = 1  # if a side of a slice is a multiple of this, the links along it form a ring
    topology: str = ""  # the TPU compiler's name of the family
    core_name: str = ""  # what the TPU compiler calls a chip whose cores are one device
    source: str

    @property
    def device_flops(self) -> float:
        return self.peak_flops / self.devices

    @property
    def device_bytes(self) -> int:
        return self.hbm_bytes // self.devices

    @property
    def device_bandwidth(self) -> float:
        return self.hbm_bandwidth / self.devices

    @property
    def device_slice_bandwidth(self) -> float:
        return self.slice_bandwidth / self.devices


def _shapes(names: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, name.split("x"))) for name in names.split())


_CUBES = _shapes("2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16")
_SQUARES = _shapes("1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16")
_CARDS = _shapes("1x1 1x2 1x4 1x8")  # one machine only
_NODES = _CARDS + _shapes("2x8 4x8 8x8 16x8 32x8 64x8 128x8")
_RACKS = _shapes("1x4 1x8 1x16 1x32 1x36 1x64 1x72 2x64 2x72 4x64 4x72 8x64 8x72")

# A TPU's usable HBM is what libtpu's compiler allows a program; its error for a program that is too large names the
# number. A GPU's is the datasheet's capacity, in GB of 10^9 bytes.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            kind="tpu",
            device_kinds=("TPU v4",),
            peak_flops=275e12,
            hbm_bytes=int(30.75 * GIB),
            hbm_bandwidth=1200e9,
            link_bandwidth=50e9,
            shapes=_CUBES,
            cores=2,
            torus_side=4,
            topology="v4",
            core_name="megacore",
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
            slice_bandwidth=6.25e9,
            shapes=_CUBES,
            cores=2,
            torus_side=4,
            topology="v5",
            core_name="megacore",
            source="cloud.google.com/tpu/docs/v5p: 1200 GB/s a chip, both directions of six links together; 50 Gb/s a "
            "chip between slices",
        ),
        Chip(
            name="v5e",
            aliases=("v5litepod",),
            kind="tpu",
            device_kinds=("TPU v5 lite", "TPU v5e"),
            peak_flops=197e12,
            hbm_bytes=int(15.75 * GIB),
            hbm_bandwidth=819e9,
            link_bandwidth=50e9,
            slice_bandwidth=3.125e9,
            shapes=_SQUARES,
            torus_side=16,
            topology="v5e",
            source="cloud.google.com/tpu/docs/v5e: 400 GB/s a chip, both directions of four links together; 200 Gb/s "
            "between slices for a host of eight chips",
        ),
        Chip(
            name="v6e",
            kind="tpu",
            device_kinds=("TPU v6 lite", "TPU v6e"),
            peak_flops=918e12,
            hbm_bytes=int(31.25 * GIB),
            hbm_bandwidth=1638e9,
            link_bandwidth=100e9,
            slice_bandwidth=12.5e9,
            shapes=_SQUARES,
            torus_side=16,
            topology="v6e",
            source="cloud.google.com/tpu/docs/v6e: 800 GB/s a chip, both directions of four links together; 100 Gb/s a "
            "chip between slices",
        ),
        Chip(
            name="tpu7x",
            aliases=("v7x", "ironwood"),
            kind="tpu",
            device_kinds=("TPU7x",),
            devices=2,
            peak_flops=2307e12,
            hbm_bytes=2 * int(94.75 * GIB),
            hbm_bandwidth=7380e9,
            link_bandwidth=100e9,
            node_bandwidth=600e9,
            slice_bandwidth=12.5e9,
            shapes=_CUBES,
            cores=2,
            torus_side=4,
            topology="tpu7x",
            source="cloud.google.com/tpu/docs/tpu7x: 1200 GB/s a chip, both directions of six links together; two "
            "chiplets, each a device, joined six times as fast as by one link; 100 Gb/s a chip between slices",
        ),
        Chip(
            name="a100",
            kind="cuda",
            device_kinds=("NVIDIA A100-SXM4-80GB",),
            peak_flops=312e12,
            hbm_bytes=80_000_000_000,
            hbm_bandwidth=2039e9,
            link_bandwidth=25e9,
            node_bandwidth=300e9,
            shapes=_NODES,
            source="NVIDIA A100 80GB SXM datasheet, without sparsity; DGX A100: 200 Gb/s of network a GPU, NVLink 600 "
            "GB/s both ways",
        ),
        Chip(
            name="a100-40gb",
            kind="cuda",
            device_kinds=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
            peak_flops=312e12,
            source="NVIDIA A100 datasheet, without sparsity",
        ),
        Chip(
            name="a100-pcie",
            kind="cuda",
            device_kinds=("NVIDIA A100 80GB PCIe",),
            peak_flops=312e12,
            source="NVIDIA A100 datasheet, without sparsity",
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
            hbm_bytes=141_000_000_000,
            hbm_bandwidth=4800e9,
            link_bandwidth=50e9,
            node_bandwidth=450e9,
            shapes=_NODES,
            source="NVIDIA H200 SXM datasheet, without sparsity; DGX H200: 400 Gb/s of network a GPU, NVLink 900 "
            "GB/s both ways",
        ),
        Chip(
            name="b200",
            kind="cuda",
            device_kinds=("NVIDIA B200",),
            peak_flops=2250e12,
            hbm_bytes=180_000_000_000,
            hbm_bandwidth=8000e9,
            link_bandwidth=50e9,
            node_bandwidth=900e9,
            shapes=_NODES,
            source="NVIDIA DGX B200 datasheet, without sparsity, an eighth for a GPU: 1,440 GB, 64 TB/s; NVLink 1.8 "
            "TB/s both ways, 400 Gb/s of network a GPU",
        ),
        Chip(
            name="gb200",
            kind="cuda",
            device_kinds=("NVIDIA GB200",),
            peak_flops=2500e12,
            hbm_bytes=186_000_000_000,
            hbm_bandwidth=8000e9,
            link_bandwidth=50e9,
            node_bandwidth=900e9,
            shapes=_RACKS,
            node="NVLink domain",
            source="NVIDIA GB200 NVL72 datasheet, without sparsity, a 72nd for a GPU: 180 PFLOP/s, 13.4 TB, 576 TB/s; "
            "NVLink 1.8 TB/s both ways; 400 Gb/s of network a GPU",
        ),
        Chip(
            name="l40s",
            kind="cuda",
            device_kinds=("NVIDIA L40S",),
            peak_flops=362e12,
            hbm_bytes=48_000_000_000,
            hbm_bandwidth=864e9,
            link_bandwidth=32e9,
            node_bandwidth=32e9,
            shapes=_CARDS,
            source="NVIDIA L40S datasheet, without sparsity; PCIe 4.0 x16, 64 GB/s both ways",
        ),
        Chip(
            name="rtx4090",
            aliases=("4090",),
            kind="cuda",
            device_kinds=("NVIDIA GeForce RTX 4090",),
            peak_flops=165.2e12,
            hbm_bytes=24_000_000_000,
            hbm_bandwidth=1008e9,
            link_bandwidth=32e9,
            node_bandwidth=32e9,
            shapes=_CARDS,
            source="NVIDIA Ada architecture white paper: bf16 summed in float32, without sparsity; PCIe 4.0 x16 "
            "through the host, 64 GB/s both ways",
        ),
        Chip(
            name="rtx5090",
            aliases=("5090",),
            kind="cuda",
            device_kinds=("NVIDIA GeForce RTX 5090",),
            peak_flops=209.5e12,
            hbm_bytes=32_000_000_000,
            hbm_bandwidth=1792e9,
            link_bandwidth=64e9,
            node_bandwidth=64e9,
            shapes=_CARDS,
            source="NVIDIA RTX Blackwell architecture white paper: bf16 summed in float32, without sparsity; PCIe 5.0 "
            "x16 through the host, 128 GB/s both ways",
        ),
        Chip(
            name="mi300x",
            aliases=("mi300",),
            kind="rocm",
            device_kinds=("AMD Instinct MI300X",),
            peak_flops=1307.4e12,
            hbm_bytes=192_000_000_000,
            hbm_bandwidth=5300e9,
            link_bandwidth=50e9,
            node_bandwidth=448e9,
            shapes=_NODES,
            source="AMD Instinct MI300X data sheet, without sparsity: seven Infinity Fabric links of 128 GB/s both "
            "ways; 400 Gb/s of network a GPU, as machines with eight are sold",
        ),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip whose JAX devices have this `device_kind`; None if no chip of the table has it."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)


def device_peak(device_kind: str) -> float | None:
    """Returns the peak of one JAX device of this `device_kind`, in dense bf16 FLOP/s; None if the chip is unknown."""
    chip = chip_of(device_kind)
    return None if chip is None else chip.device_flops
