"""The description of a GPU from which XLA compiles for it where there is none. No JAX here."""

from __future__ import annotations

from collections.abc import Mapping

# By the chip's name in `training/chips.py`, as nested as XLA's GpuTargetConfigProto.
# H100 SXM5 80 GB: NVIDIA's H100 architecture white paper and the occupancy limits of compute capability
# 9.0 in the CUDA C++ programming guide; XLA publishes the same as h100_sxm.txtpb.
DESCRIPTIONS: Mapping[str, Mapping[str, object]] = {
    "h100": {
        "gpu_device_info": {
            "cuda_compute_capability": {"major": 9, "minor": 0},
            "core_count": 132,
            "fpus_per_core": 128,
            "clock_rate_ghz": 1.98,
            "device_memory_size": 84_942_979_072,
            "memory_bandwidth": 3_352_320_000_000,
            "l2_cache_size": 50 * 2**20,
            "threads_per_warp": 32,
            "threads_per_block_limit": 1024,
            "threads_per_core_limit": 2048,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "registers_per_block_limit": 2**16,
            "registers_per_core_limit": 2**16,
            "shared_memory_per_block": 48 * 2**10,
            "shared_memory_per_block_optin": 227 * 2**10,
            "shared_memory_per_core": 228 * 2**10,
        },
        "platform_name": "CUDA",
        "dnn_version_info": {"major": 9, "minor": 12},
        "device_description_str": "NVIDIA H100 80GB HBM3",
    },
}


def text_proto(fields: Mapping[str, object]) -> str:
    """The fields as a message in protobuf's text form."""
    parts = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            parts.append(f"{name} {{ {text_proto(value)} }}")
        else:
            parts.append(f'{name}: "{value}"' if isinstance(value, str) else f"{name}: {value}")
    return " ".join(parts)
