"""What the run stands on: devices, and the peak of those whose peak is known."""

from __future__ import annotations

from collections.abc import Sequence

import jax

# Dense bf16 FLOP/s of one JAX device, by `device_kind`. A kind that is not here has no peak: MFU
# is then null, never a guess.
PEAK_FLOPS: dict[str, tuple[float, str]] = {
    "TPU v4": (275e12, "cloud.google.com/tpu/docs/v4"),
    "TPU v5 lite": (197e12, "cloud.google.com/tpu/docs/v5e"),
    "TPU v5e": (197e12, "cloud.google.com/tpu/docs/v5e"),
    "TPU v5": (459e12, "cloud.google.com/tpu/docs/v5p"),
    "TPU v5p": (459e12, "cloud.google.com/tpu/docs/v5p"),
    "TPU v6 lite": (918e12, "cloud.google.com/tpu/docs/v6e"),
    "TPU v6e": (918e12, "cloud.google.com/tpu/docs/v6e"),
    "TPU7x": (2307e12 / 2, "cloud.google.com/tpu/docs/tpu7x: 2307 a chip, two devices a chip"),
    "NVIDIA A100-SXM4-40GB": (312e12, "NVIDIA A100 datasheet"),
    "NVIDIA A100-SXM4-80GB": (312e12, "NVIDIA A100 datasheet"),
    "NVIDIA A100 80GB PCIe": (312e12, "NVIDIA A100 datasheet"),
    "NVIDIA H100 80GB HBM3": (989e12, "NVIDIA H100 datasheet: SXM, without sparsity"),
    "NVIDIA H100 PCIe": (756e12, "NVIDIA H100 datasheet: PCIe, without sparsity"),
    "NVIDIA H200": (989e12, "NVIDIA H200 datasheet, without sparsity"),
    "NVIDIA B200": (2250e12, "NVIDIA DGX B200 datasheet, without sparsity"),
}


def peak_flops(device_kinds: Sequence[str]) -> float | None:
    """Peak dense bf16 FLOP/s of devices of these kinds together; None where one is unknown."""
    known = [PEAK_FLOPS[kind][0] for kind in device_kinds if kind in PEAK_FLOPS]
    return sum(known) if len(known) == len(device_kinds) else None


def describe(devices: Sequence[jax.Device]) -> dict:
    """The `hardware` entry of run.json."""
    return {
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
    }
