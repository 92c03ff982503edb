"""Searches for layouts of a config that fit: meshes, rematerialisation policies and numbers of microbatches."""

from __future__ import annotations

from collections.abc import Iterator

from rfjax import config as configs
from rfjax.config import Config
from rfjax.errors import ConfigError
from rfjax.limits import CHOICES
from rfjax.mesh_axes import DATA, FSDP, TENSOR
from rfjax.plan.estimate import WIDEST_SCATTER, StepEstimate, estimate
from rfjax.plan.targets import Target

TENSOR_SIZES = (1, 2, 4, 8)
ACCUMULATE = (1, 2, 4, 8, 16, 32)
SLACK = 1.15  # a layout whose estimate is up to this many times the memory may still fit


def layouts(config: Config, target: Target) -> Iterator[dict[str, object]]:
    """Yields a config's overrides for each layout of a grid.

    The mesh axis tensor has one of `TENSOR_SIZES` that divides the heads, and fsdp has at most `WIDEST_SCATTER` devices
    and divides the width; together they divide the devices of a slice. Each mesh comes with every number of
    microbatches in `ACCUMULATE` and every policy of rematerialisation.
    """
    for tensor in TENSOR_SIZES:
        if config.model.heads % tensor or target.devices // target.slices % tensor:
            continue
        rows = target.devices // tensor
        per_slice = rows // target.slices
        for fsdp in range(1, WIDEST_SCATTER + 1):
            if per_slice % fsdp or config.model.width % fsdp:
                continue
            mesh = {f"mesh.{DATA}": rows // fsdp, f"mesh.{FSDP}": fsdp, f"mesh.{TENSOR}": tensor}
            for accumulate in ACCUMULATE:
                for remat in CHOICES["train.remat"]:
                    # A point is planned alone, even if it is trained together with others.
                    yield mesh | {"train.accumulate": accumulate, "train.remat": remat, "train.together": 1}


def candidates(config: Config, target: Target, slack: float = SLACK) -> list[tuple[Config, StepEstimate]]:
    """Returns (config with the layout, its estimate) for each layout whose estimated peak is at most `slack` times a
    device's memory, sorted by step time, then by memory.

    Nothing in a config changes but the layout, so the experiment stays the same.
    """
    found = []
    for overrides in layouts(config, target):
        changed = configs.apply_overrides(config, overrides)
        try:
            estimated = estimate(changed, target)
        except ConfigError:  # the batch or the parameters do not divide
            continue
        if estimated.peak_bytes <= slack * target.chip.device_bytes:
            found.append((changed, estimated))
    # Step times are compared to three digits: the roofline is too coarse for differences below a percent.
    return sorted(found, key=lambda pair: (float(f"{pair[1].roofline.step:.2e}"), pair[1].peak_bytes))
