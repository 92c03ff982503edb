"""Google Cloud's names for the accelerators in `training/chips.py`, and how many chips a machine has.

Sources: cloud.google.com/tpu/docs/runtimes (software versions);
cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus (node labels, chips a node).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rfjax.errors import ConfigError
from rfjax.launch.target import option
from rfjax.plan.targets import Target, parse_target


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Google Cloud's names for one kind of accelerator. A TPU slice of up to `whole` chips is one machine; a larger
    slice has four chips on each machine."""

    type: str  # the start of gcloud's `--accelerator-type`; empty if it is not sold as TPU VMs
    runtime: str  # software version of TPU VMs
    label: str  # node label on GKE
    whole: int  # chips; 0 for GPUs


CLOUD: dict[str, Cloud] = {
    "v4": Cloud(type="v4", runtime="tpu-ubuntu2204-base", label="tpu-v4-podslice", whole=4),
    "v5p": Cloud(type="v5p", runtime="v2-alpha-tpuv5", label="tpu-v5p-slice", whole=4),
    "v5e": Cloud(type="v5litepod", runtime="v2-alpha-tpuv5-lite", label="tpu-v5-lite-podslice", whole=8),
    "v6e": Cloud(type="v6e", runtime="v2-alpha-tpuv6e", label="tpu-v6e-slice", whole=8),
    "tpu7x": Cloud(type="", runtime="", label="tpu7x", whole=4),
    "a100": Cloud(type="", runtime="", label="nvidia-a100-80gb", whole=0),
    "h100": Cloud(type="", runtime="", label="nvidia-h100-80gb", whole=0),
    "h200": Cloud(type="", runtime="", label="nvidia-h200-141gb", whole=0),
    "b200": Cloud(type="", runtime="", label="nvidia-b200", whole=0),
}


def accelerator_option() -> Any:
    """Makes the option `accelerator`, which the launchers for TPU VMs and for GKE have in common."""
    sizes = "v4-128, v5p-256 (TensorCores), v5litepod-256, v6e-256 (chips); gke only: tpu7x-256 (TensorCores), h100x64"
    return option(f"the slice of each point: {sizes}; 2xv5p-256 is two slices", needed=True)


def spot_option() -> Any:
    """Makes the option `spot`, which the launchers for TPU VMs and for GKE have in common."""
    return option("cheaper machines, which may be pre-empted at any time", default=False)


def parse_accelerator(name: str) -> tuple[Target, Cloud]:
    """Reads the name of a slice; returns (its chips, Google Cloud's names for them). TPUs are named as `v5p-256` or
    `v5litepod-256` (also `v5e-256`), GPUs as `h100x64`, and two slices as `2xv5p-256`.

    The number after a TPU is the vendor's count (TensorCores or chips). Raises `ConfigError` for an unknown chip, with
    the most similar name; for a size that is not sold; and for a chip that rfjax cannot ask Google's cloud for.
    """
    target = parse_target(name, option="--accelerator")
    if target.chip.name not in CLOUD:
        known = ", ".join(CLOUD)
        raise ConfigError(
            f"--accelerator {name}: rfjax has no machines of {target.chip.name} on Google's cloud; it has {known}"
        )
    return target, CLOUD[target.chip.name]


def per_machine(target: Target) -> int:
    """Returns how many chips, or GPUs, each machine of the slice has."""
    if target.chip.kind != "tpu":
        return target.shape[-1]
    return target.slice_chips if target.slice_chips <= CLOUD[target.chip.name].whole else 4


def machines(target: Target) -> int:
    """Returns how many machines each slice has."""
    return target.slice_chips // per_machine(target)


def describe_slice(target: Target) -> str:
    """Describes the slices in words, with their number of machines."""
    if target.chip.kind != "tpu":
        return target.describe()
    each = " a slice" if target.slices > 1 else ""
    return f"{target.describe()}, {machines(target)} machine(s){each} of {per_machine(target)} chips"


def accelerator_type(target: Target) -> str:
    """Returns gcloud's name of each slice. Raises `ConfigError` unless its chips are sold as TPU VMs."""
    cloud = CLOUD[target.chip.name]
    if target.chip.kind != "tpu":
        raise ConfigError(f"--accelerator {target.name} is no TPU; use --on gke or --on slurm for GPUs")
    if not cloud.type:
        raise ConfigError(f"--accelerator {target.name} is not sold as TPU VMs; use --on gke")
    return f"{cloud.type}-{target.one_slice.cores}"


def smallest_slice(target: Target) -> str:
    """Returns gcloud's name of the smallest slice of the target's chip. The task that collects results runs on such a
    slice, because it is in the same zone and counts towards the same quota as the points' slices."""
    shape = min(target.chip.shapes, key=math.prod)
    return f"{CLOUD[target.chip.name].type}-{math.prod(shape) * target.chip.cores}"
