"""A study on TPU VMs: a queued resource for each point, by gcloud."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from rfjax.errors import ConfigError
from rfjax.launch.accelerators import (
    accelerator_option,
    accelerator_type,
    parse_accelerator,
    smallest,
    spot_option,
    where,
)
from rfjax.launch.target import HOPELESS, PREEMPTED, Launch, Plan, Task, option
from rfjax.launch.templates import fill


@dataclass(frozen=True, kw_only=True)
class TpuVm:
    """Cloud TPU VMs, a `Target`, with the options of their slices."""

    executable: ClassVar[str] = "gcloud"
    shares_folders: ClassVar[bool] = False

    accelerator: str = accelerator_option()
    spot: bool = spot_option()
    zone: str = option("the zone of the slices", metavar="ZONE", needed=True)
    project: str | None = option("default: gcloud's own", metavar="ID")
    runtime_version: str | None = option("default: Google's for JAX on this kind of TPU")
    gcloud: tuple[str, ...] = option(
        "any other option of gcloud compute tpus queued-resources create; may be given several times",
        metavar="--FLAG=VALUE",
        default=(),
    )

    def config_path(self, config: Path) -> Path:
        return Path(config.name)  # copied to the folder that commands begin in

    def workdir(self, given: str | None, study: str) -> str:
        remedy = (
            "the absolute path of a folder that outlives them: mount a bucket or a Filestore share there by --setup"
        )
        if given is None:
            raise ConfigError(
                f"--workdir is needed with --on=tpu-vm; it is {remedy}. Give it, or --storage, or fill the field "
                "storage of the site"
            )
        if "://" in given or not PurePosixPath(given).is_absolute():
            raise ConfigError(f"--workdir is {given!r}; on TPU VMs it must be {remedy}")
        return given

    def plan(self, launch: Launch) -> Plan:
        """One script that asks for the slices, runs the points on them, collects, and gives all back.

        The config file is copied to every worker.
        """
        from rfjax.launch.tasks import check_layout

        target, cloud = parse_accelerator(self.accelerator)
        kind = accelerator_type(target)
        for task in launch.points:
            check_layout(task, target.chips, target.describe())
        project = [f"--project={self.project}"] if self.project else []
        runtime = self.runtime_version or cloud.runtime
        create = [f"--runtime-version={runtime}", *(["--spot"] if self.spot else []), *self.gcloud]
        path = launch.out / f"{launch.name}.sh"
        script = fill(
            "tpu_vm.sh",
            place=shlex.join([f"--zone={self.zone}", *project]),
            config=shlex.quote(str(launch.config.absolute())),
            logs=shlex.quote(str(launch.out.absolute())),
            create=shlex.join(create),
            hopeless=" | ".join(map(str, HOPELESS)),
            preempted=str(PREEMPTED),
            names=shlex.join([task.name for task in (*launch.points, launch.collect)]),
            tasks="\n".join(_call(task, kind, "all", launch) for task in launch.points),
            collect=_call(launch.collect, smallest(target), "0", launch),
        )
        summary = (
            where(target),
            f"{path.name}: {len(launch.points)} slice(s) {kind} at once, one a point; then one {smallest(target)} "
            "to collect",
        )
        return Plan(summary, {path: script}, (shlex.join(["bash", str(path)]),))

    def submit(self, plan: Plan, say: Callable[[str], None]) -> None:
        """Becomes the script, which runs until all points have ended."""
        (path,) = plan.files
        say(plan.commands[0])
        sys.stdout.flush()
        os.execvp("bash", ["bash", str(path)])


def _call(task: Task, kind: str, workers: str, launch: Launch) -> str:
    command = shlex.join(task.command)
    if task.point is None:
        command = f"JAX_PLATFORMS=cpu {command}"
    if launch.options.setup:
        command = f"{launch.options.setup}\n{command}"
    return shlex.join(["start", task.name, kind, workers, command])
