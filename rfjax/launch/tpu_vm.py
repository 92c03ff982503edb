"""A study on TPU VMs: a queued resource for each point, by gcloud."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from rfjax.errors import ConfigError
from rfjax.launch.accelerators import accelerator_type, parse_accelerator, smallest, where
from rfjax.launch.tasks import HOPELESS, PREEMPTED, Launch, Plan, Task, check_layout
from rfjax.launch.templates import fill

EXECUTABLE = "gcloud"


def workdir(given: str, study: str) -> str:
    """The study's folder on the workers; `ConfigError` where it would be lost with them."""
    if "://" in given or not PurePosixPath(given).is_absolute():
        raise ConfigError(
            f"--workdir is {given!r}; on TPU VMs it must be the absolute path of a folder that outlives them: "
            "mount a bucket or a Filestore share there by --setup"
        )
    return given


def plan(launch: Launch, args: argparse.Namespace, out: Path, config: Path) -> Plan:
    """One script that asks for the slices, runs the points on them, collects, and gives all back.

    `config` is the file here that is copied to every worker. Raises `ConfigError` for a slice that
    does not exist, or whose chips are not the mesh of every point.
    """
    target, cloud = parse_accelerator(args.accelerator)
    kind = accelerator_type(target)
    for task in launch.points:
        check_layout(task.point, target.chips, target.describe())
    project = [f"--project={args.project}"] if args.project else []
    create = [f"--runtime-version={args.runtime_version or cloud.runtime}"]
    create += (["--spot"] if args.spot else []) + (args.gcloud or [])
    path = out / f"{launch.name}.sh"
    script = fill(
        "tpu_vm.sh",
        place=shlex.join([f"--zone={args.zone}", *project]),
        config=shlex.quote(str(config.absolute())),
        logs=shlex.quote(str(out.absolute())),
        create=shlex.join(create),
        hopeless=" | ".join(map(str, HOPELESS)),
        preempted=str(PREEMPTED),
        names=shlex.join([task.name for task in (*launch.points, launch.collect)]),
        tasks="\n".join(_call(task, kind, "all", args) for task in launch.points),
        collect=_call(launch.collect, smallest(target), "0", args),
    )
    summary = (
        where(target),
        f"{path.name}: {len(launch.points)} slice(s) {kind} at once, one a point; then one {smallest(target)} "
        "to collect",
    )
    return Plan(summary, {path: script}, (shlex.join(["bash", str(path)]),))


def submit(plan: Plan, say: Callable[[str], None]) -> None:
    """Becomes the script, which runs until all points have ended."""
    (path,) = plan.files
    say(plan.commands[0])
    sys.stdout.flush()
    os.execvp("bash", ["bash", str(path)])


def _call(task: Task, kind: str, workers: str, args) -> str:
    command = shlex.join(task.command)
    if task.point is None:
        command = f"JAX_PLATFORMS=cpu {command}"
    if args.setup:
        command = f"{args.setup}\n{command}"
    return shlex.join(["start", task.name, kind, workers, command])
