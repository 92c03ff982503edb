"""Describes the devices that a run uses, and gives their peak FLOP/s if it is known."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from rfjax.training.chips import device_peak


def peak_flops(device_kinds: Sequence[str]) -> float | None:
    """The sum of the devices' peaks, in dense bf16 FLOP/s; None if the peak of any kind is unknown."""
    peaks = [device_peak(kind) for kind in device_kinds]
    return None if None in peaks else sum(peaks)


def describe(devices: Sequence[jax.Device]) -> dict:
    """The `hardware` entry of run.json."""
    return {
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
    }
