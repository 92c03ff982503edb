"""What Google Cloud calls the accelerators of `training/chips.py`, and how many a machine has.

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
    """One family of accelerators. A slice of at most `whole` chips is one machine; larger ones are made of machines
    of four."""

    type: str  # what `--accelerator-type` begins with; empty where there are no TPU VMs
    runtime: str
    label: str  # of GKE nodes
    whole: int


CLOUD: dict[str, Cloud] = {
    "v4": Cloud(type="v4", runtime="tpu-ubuntu2204-base", label="tpu-v4-podslice", whole=4),
    "v5p": Cloud(type="v5p", runtime="v2-alpha-tpuv5", label="tpu-v5p-slice", whole=4),
    "v5e": Cloud(type="v5litepod", runtime="v2-alpha-tpuv5-lite", label="tpu-v5-lite-podslice", whole=8),
    "v6e": Cloud(type="v6e", runtime="v2-alpha-tpuv6e", label="tpu-v6e-slice", whole=8),
    "h100": Cloud(type="", runtime="", label="nvidia-h100-80gb", whole=0),
}


def accelerator_option() -> Any:
    """The option `accelerator` of a target on Google's cloud."""
    return option(
        "the slice of each point: v4-128, v5p-256 (TensorCores), v5litepod-256, v6e-256 (chips), h100x64 (GPUs, gke "
        "only)",
        needed=True,
    )


def spot_option() -> Any:
    return option("cheaper, and pre-empted at any time", default=False)


def parse_accelerator(name: str) -> tuple[Target, Cloud]:
    """`v5p-256`, `v5litepod-256` or `v5e-256`, `v6e-256`, `v4-128` by the vendor's count, `h100x64` by GPUs.

    Raises `ConfigError` for an unknown one, with the nearest, and for a size that is not sold.
    """
    target = parse_target(name.lower().replace("v5litepod", "v5e"), option="--accelerator")
    return target, CLOUD[target.chip.name]


def per_machine(target: Target) -> int:
    """Chips, or GPUs, of one machine of the slice."""
    if target.chip.kind != "tpu":
        return target.shape[-1]
    return target.chips if target.chips <= CLOUD[target.chip.name].whole else 4


def machines(target: Target) -> int:
    return target.chips // per_machine(target)


def where(target: Target) -> str:
    """The slice in words, its machines too."""
    count = machines(target)
    return (
        target.describe()
        if target.chip.kind != "tpu"
        else f"{target.describe()}, {count} machine(s) of {per_machine(target)} chips"
    )


def accelerator_type(target: Target) -> str:
    """The slice as `gcloud` names it; `ConfigError` for what is no TPU."""
    cloud = CLOUD[target.chip.name]
    if not cloud.type:
        raise ConfigError(f"--accelerator {target.name} is no TPU; use --on gke or --on slurm for GPUs")
    return f"{cloud.type}-{target.cores}"


def smallest(target: Target) -> str:
    """The smallest slice of the same family: enough to collect, in the same zone and quota."""
    shape = min(target.chip.shapes, key=math.prod)
    return f"{CLOUD[target.chip.name].type}-{math.prod(shape) * target.chip.cores}"
