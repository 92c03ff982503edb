"""The runs that a study trains for a point: one run or, with `train.branches`, a trunk and a branch of each length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rfjax.config import Config
from rfjax.training.branches import branch_of, departures, trunk_of
from rfjax.training.run import Trunk


@dataclass(frozen=True)
class PlannedRun:
    """One run that a study trains: its folder's name, its point, its config and its role."""

    id: str
    point: str
    config: Config
    role: str = "run"
    departs: int = 0  # for a branch: the step at which it leaves the trunk
    keeps: tuple[int, ...] = ()  # for a trunk: the steps at which branches leave it

    @property
    def stage(self) -> int:
        """A number that sorts runs into the order of training: 0 for runs and trunks, which come first; for a branch
        its last step, so that shorter branches come before longer ones."""
        return self.config.train.steps if self.role == "branch" else 0

    @property
    def trunk_id(self) -> str:
        """The id of the point's trunk."""
        return trunk_id(self.point)

    def trunk(self, root: Path, study: str) -> Trunk | None:
        """Returns the `Trunk` that this branch leaves; the trunk's folder is in the study's folder `root`. Returns None
        if this run is no branch."""
        if self.role != "branch":
            return None
        return Trunk(str(root / self.trunk_id), f"{study}/{self.trunk_id}", self.departs)

    @property
    def own_steps(self) -> int:
        """The number of steps that the run itself takes; for a branch, those after it left the trunk."""
        return self.config.train.steps - self.departs


def trunk_id(point: str) -> str:
    """Returns the id of a point's trunk, which is the name of the trunk's folder."""
    return f"{point}-trunk"


def runs_of(point: str, config: Config) -> tuple[PlannedRun, ...]:
    """Returns the runs of a point in the order in which they are trained: the trunk first, then its branches."""
    lengths = config.train.branches
    if not lengths:
        return (PlannedRun(point, point, config, config.train.role),)
    steps = departures(config.train)
    trunk = PlannedRun(trunk_id(point), point, trunk_of(config), "trunk", keeps=steps)
    branches = (
        PlannedRun(f"{point}-steps{length}", point, branch_of(config, length), "branch", departs)
        for length, departs in zip(lengths, steps, strict=True)
    )
    return (trunk, *branches)
