"""The size and cost of a study's runs, computed from shapes alone."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from rfjax.config import Config
from rfjax.models.flops import PARAMETER_BYTES
from rfjax.study.planned_runs import PlannedRun
from rfjax.training.cohort import check_may_be_together
from rfjax.training.optimizer import optimizer_bytes
from rfjax.training.run import Run, plan_run


@dataclass(frozen=True)
class Size:
    """The size and cost of a run, or of a point's longest run. FLOPs of training are three forward passes."""

    params: int
    flops_forward_per_image: int
    flops_per_image: int
    flops: float  # of the whole training; for a branch, the trunk's FLOPs up to the departure are included
    images: int  # training images, repeats included; for a branch, the trunk's up to the departure are included
    state_bytes: int  # one copy of the parameters, averages and the optimiser's moments


def size_of(config: Config) -> Size:
    """Returns the parameters, FLOPs and state of a run, without allocating anything. For a point with branches, these
    are the numbers of its longest branch."""
    run = plan_run(config)
    check_may_be_together(config, run.corpus)
    images = run.stream.examples_before(config.train.steps)
    return Size(
        params=run.parameter_count,
        flops_forward_per_image=run.flops_forward_per_image,
        flops_per_image=run.flops_per_image,
        flops=float(flops_before(run, config.train.steps)),
        images=images,
        state_bytes=(PARAMETER_BYTES + 4 * len(config.train.power_averages)) * run.parameter_count
        + optimizer_bytes(config, run.backbone),
    )


def flops_before(run: Run, step: int) -> int:
    """Returns the training FLOPs of a run's steps before `step`."""
    return sum(map(operator.mul, run.stream.examples_of_parts(step), run.flops_of_parts))


def describe(id: str, config: Config, size: Size) -> str:
    """Returns one line on a point or a run: its id, size and cost."""
    return (
        f"{id}: depth {config.model.depth}, width {config.model.width}, {size.params:,} parameters, "
        f"{size.images:,} images, {size.flops:.3g} FLOPs"
    )


def spent_flops(run: PlannedRun, size: Size) -> float:
    """Returns the training FLOPs of a run's own steps; for a branch, of those after it left the trunk."""
    return size.flops * run.own_steps / run.config.train.steps
