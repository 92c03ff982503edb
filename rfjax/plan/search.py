"""Meshes, rematerialisation policies and microbatches for a config that does not fit as it is."""

from __future__ import annotations

from collections.abc import Iterator

from rfjax import config as configs
from rfjax.config import Config
from rfjax.errors import ConfigError
from rfjax.limits import CHOICES
from rfjax.plan.estimate import WIDEST_SCATTER, StepEstimate, estimate
from rfjax.plan.targets import Target

TENSOR = (1, 2, 4, 8)
ACCUMULATE = (1, 2, 4, 8, 16, 32)
SLACK = 1.15  # an estimate this far above what there is may still be wrong


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def settings(config: Config, target: Target) -> Iterator[dict[str, object]]:
    """Overrides of a config: every way to lay it out on the target's devices that divides evenly."""
    for tensor in TENSOR:
        if config.model.heads % tensor or target.chips % tensor:
            continue
        for fsdp in _divisors(target.chips // tensor):
            if config.model.width % fsdp or fsdp > WIDEST_SCATTER:
                continue
            mesh = {"mesh.data": target.chips // tensor // fsdp, "mesh.fsdp": fsdp, "mesh.tensor": tensor}
            for accumulate in ACCUMULATE:
                for remat in CHOICES["train.remat"]:
                    # one point is planned, whatever it may be trained together with
                    yield mesh | {"train.accumulate": accumulate, "train.remat": remat, "train.together": 1}


def candidates(config: Config, target: Target, slack: float = SLACK) -> list[tuple[Config, StepEstimate]]:
    """Layouts that should fit by the estimate, the cheapest first; of equally cheap ones the
    smallest in memory. `slack` is how much more than there is an estimate may ask for.

    One study's point must stay the same experiment, so nothing else of the config changes.
    """
    found = []
    for overrides in settings(config, target):
        changed = configs.apply_overrides(config, overrides)
        try:
            estimated = estimate(changed, target)
        except ConfigError:  # batch or parameters do not divide
            continue
        if estimated.peak_bytes <= slack * target.chip.hbm_bytes:
            found.append((changed, estimated))
    # a percent is below what the roofline can tell apart
    return sorted(
        found,
        key=lambda pair: (round(pair[1].roofline.step, 2 - _magnitude(pair[1].roofline.step)), pair[1].peak_bytes),
    )


def _magnitude(value: float) -> int:
    """The power of ten of a positive number, so that rounding keeps three digits."""
    return int(f"{value:e}".partition("e")[2])
