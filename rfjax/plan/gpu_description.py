"""Descriptions of GPUs, with which XLA compiles for a GPU that is not at hand. No JAX here.

For a GPU without a row in `DESCRIPTIONS`, plans are made from formulas alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Description:
    """What XLA's compiler is told about a GPU. A "core" is a streaming multiprocessor."""

    device: str  # the driver's name
    capability: tuple[int, int]  # compute capability
    cores: int
    units: int = 128  # float32 units per core
    clock: float  # GHz
    memory_bytes: int
    bandwidth: int  # bytes a second
    cache_bytes: int  # L2 cache
    threads: int = 2048  # most threads per core
    shared_bytes: int  # shared memory per core; a block may ask for 1 KiB less
    by_hand: bool = False  # True: written from white papers; False: XLA publishes the same numbers

    def fields(self) -> dict[str, object]:
        """Returns the fields of XLA's GpuTargetConfigProto, nested as in the message."""
        major, minor = self.capability
        return {
            "gpu_device_info": {
                "cuda_compute_capability": {"major": major, "minor": minor},
                "core_count": self.cores,
                "fpus_per_core": self.units,
                "clock_rate_ghz": self.clock,
                "device_memory_size": self.memory_bytes,
                "memory_bandwidth": self.bandwidth,
                "l2_cache_size": self.cache_bytes,
                "threads_per_warp": 32,
                "threads_per_block_limit": 1024,
                "threads_per_core_limit": self.threads,
                "block_dim_limit_x": 2**31 - 1,
                "block_dim_limit_y": 2**16 - 1,
                "block_dim_limit_z": 2**16 - 1,
                "registers_per_block_limit": 2**16,
                "registers_per_core_limit": 2**16,
                "shared_memory_per_block": 48 * 2**10,
                "shared_memory_per_block_optin": self.shared_bytes - 2**10,
                "shared_memory_per_core": self.shared_bytes,
            },
            "platform_name": "CUDA",
            "dnn_version_info": {"major": 9, "minor": 12},
            "device_description_str": self.device,
        }


_HOPPER = {"capability": (9, 0), "cores": 132, "clock": 1.98, "cache_bytes": 50 * 2**20, "shared_bytes": 228 * 2**10}

# Keys are the chips' names in `training/chips.py`. XLA publishes a100_sxm_80, h100_sxm, h200, b200 and gb200 (.txtpb,
# in its target_config/specs). The description of the RTX 4090 is written by hand, from NVIDIA's white paper on Ada and
# the limits of compute capability 8.9 in the CUDA C++ programming guide.
DESCRIPTIONS: Mapping[str, Description] = {
    "a100": Description(
        device="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        cores=108,
        units=64,
        clock=1.41,
        memory_bytes=85_100_068_864,
        bandwidth=2_039_040_000_000,
        cache_bytes=40 * 2**20,
        shared_bytes=164 * 2**10,
    ),
    "h100": Description(
        device="NVIDIA H100 80GB HBM3", memory_bytes=84_942_979_072, bandwidth=3_352_320_000_000, **_HOPPER
    ),
    "h200": Description(device="NVIDIA H200", memory_bytes=151_397_597_184, bandwidth=4_800_000_000_000, **_HOPPER),
    "b200": Description(
        device="NVIDIA B200",
        capability=(10, 0),
        cores=148,
        clock=1.965,
        memory_bytes=191_514_411_008,
        bandwidth=7_672_320_000_000,
        cache_bytes=132_644_864,
        shared_bytes=228 * 2**10,
    ),
    "gb200": Description(
        device="NVIDIA GB200",
        capability=(10, 0),
        cores=152,
        clock=2.062,
        memory_bytes=197_897_748_480,
        bandwidth=7_928_064_000_000,
        cache_bytes=135_528_448,
        shared_bytes=228 * 2**10,
    ),
    "rtx4090": Description(
        device="NVIDIA GeForce RTX 4090",
        capability=(8, 9),
        cores=128,
        clock=2.52,
        memory_bytes=24 * 2**30,
        bandwidth=1_008_000_000_000,
        cache_bytes=72 * 2**20,
        threads=1536,
        shared_bytes=100 * 2**10,
        by_hand=True,
    ),
}


def text_proto(fields: Mapping[str, object]) -> str:
    """Writes the fields as a message in protobuf's text format."""
    parts = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            parts.append(f"{name} {{ {text_proto(value)} }}")
        else:
            parts.append(f'{name}: "{value}"' if isinstance(value, str) else f"{name}: {value}")
    return " ".join(parts)
