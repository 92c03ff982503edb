"""Runs a study on TPU VMs: `gcloud` requests a queued resource for each point."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from rfjax.errors import ConfigError
from rfjax.launch import accelerators
from rfjax.launch.target import HOPELESS, PREEMPTED, Launch, Plan, Task, option
from rfjax.launch.templates import fill

FOLDER = "the absolute path of a folder that outlives them: mount a bucket or a Filestore share there by --setup"


@dataclass(frozen=True, kw_only=True)
class TpuVm:
    """The `Target` for Cloud TPU VMs; its fields are the options of their slices."""

    executable: ClassVar[str] = "gcloud"
    shares_folders: ClassVar[bool] = False

    accelerator: str = accelerators.accelerator_option()
    spot: bool = accelerators.spot_option()
    zone: str = option("the zone of the slices", needed=True)
    project: str | None = option("default: gcloud's own", metavar="ID")
    runtime_version: str | None = option("default: Google's for JAX on this kind of TPU")
    gcloud: tuple[str, ...] = option(
        "any other option of gcloud compute tpus queued-resources create; may be repeated",
        metavar="--FLAG=VALUE",
        default=(),
    )

    def config_path(self, config: Path) -> Path:
        return Path(config.name)  # the script copies the file to the folder where commands start

    def workdir(self, given: str | None, study: str) -> str:
        if given is None:
            remedy = "give it, or --storage, or fill the field storage of the site"
            raise ConfigError(f"--on=tpu-vm needs --workdir ({FOLDER}); {remedy}")
        if not PurePosixPath(given).is_absolute():
            raise ConfigError(f"--workdir is {given!r}; on TPU VMs it must be {FOLDER}")
        return given

    def plan(self, launch: Launch) -> Plan:
        """Plans one script that requests the slices, runs the points on them, collects, and deletes the slices.

        The script copies the config file to every worker.
        """
        from rfjax.launch.tasks import check_layout

        target, cloud = accelerators.parse_accelerator(self.accelerator)
        kind, smallest = accelerators.accelerator_type(target), accelerators.smallest_slice(target)
        for task in launch.points:
            check_layout(task, target.devices, target.describe(), target.shown_slices)
        project = [f"--project={self.project}"] if self.project else []
        create = [f"--runtime-version={self.runtime_version or cloud.runtime}", *(["--spot"] if self.spot else [])]
        path = launch.out / f"{launch.name}.sh"
        script = fill(
            "tpu_vm.sh",
            place=shlex.join([f"--zone={self.zone}", *project]),
            config=shlex.quote(str(launch.config.absolute())),
            logs=shlex.quote(str(launch.out.absolute())),
            create=shlex.join([*create, *self.gcloud]),
            hopeless=" | ".join(map(str, HOPELESS)),
            preempted=str(PREEMPTED),
            names=shlex.join([task.name for task in (*launch.points, launch.collect)]),
            tasks="\n".join(_start(task, kind, target.slices, "all", launch) for task in launch.points),
            collect=_start(launch.collect, smallest, 1, "0", launch),
        )
        total, each = len(launch.points) * target.slices, "one" if target.slices == 1 else target.slices
        slices = f"{total} slice(s) {kind} at once, {each} a point; then one {smallest} to collect"
        summary = (accelerators.describe_slice(target), f"{path.name}: {slices}")
        return Plan(summary, {path: script}, (shlex.join(["bash", str(path)]),))

    def submit(self, plan: Plan, say: Callable[[str], None]) -> None:
        """Replaces this process with the script, which runs until all points and the task that collects have ended."""
        (path,) = plan.files
        say(plan.commands[0])
        sys.stdout.flush()
        os.execvp("bash", ["bash", str(path)])


def _start(task: Task, kind: str, slices: int, workers: str, launch: Launch) -> str:
    """Returns the script's line that starts a task on `slices` slices of gcloud's accelerator type `kind`. `workers`
    are the workers (machines) of a slice that run the command: "all", or a number."""
    command = shlex.join(task.command)
    if task.point is None:
        command = f"JAX_PLATFORMS=cpu {command}"
    if launch.options.setup:
        command = f"{launch.options.setup}\n{command}"
    return shlex.join(["start", task.name, kind, str(slices), workers, command])
