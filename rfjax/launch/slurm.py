"""Runs a study as SLURM arrays: one task for each point, requeued when pre-empted, then a job that collects."""

from __future__ import annotations

import math
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs.paths import local_text
from rfjax.launch.target import HOPELESS, PREEMPTED, Launch, Plan, Task, option
from rfjax.launch.templates import fill
from rfjax.mesh_axes import AXES

AFTER = "afterany"  # collect even if a point failed: the report names the failed point, and uses the other points


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """The `Target` for SLURM; its fields are options of sbatch."""

    executable: ClassVar[str] = "sbatch"
    shares_folders: ClassVar[bool] = True

    gpus_per_node: int = option("GPUs of a node; 0 for nodes without", metavar="N", least=0, needed=True)
    nodes: int | None = option("nodes of each point (default: the fewest that its mesh takes)", metavar="N", least=1)
    partition: str | None = option("the partition of all jobs")
    account: str | None = option("the account that pays for all jobs")
    time: str | None = option(
        "time limit of a job; a run saves before the limit and is queued again", metavar="D-HH:MM:SS"
    )
    sbatch: tuple[str, ...] = option(
        "any other option of sbatch for the points; may be repeated", metavar="--FLAG=VALUE", default=()
    )

    def config_path(self, config: Path) -> Path:
        return config

    def workdir(self, given: str | None, study: str) -> str:
        return f"runs/{study}" if given is None else local_text(given, "--workdir")  # all nodes share the home folder

    def plan(self, launch: Launch) -> Plan:
        """Plans a job array for each number of nodes that points need, and the job that collects the results.

        Raises `ConfigError` for a mesh that does not fill whole nodes.
        """
        sizes: dict[int, list[Task]] = {}
        for task in launch.points:
            sizes.setdefault(self._nodes(task), []).append(task)
        files, commands, summary, arrays = {}, [], [], []
        for nodes, tasks in sizes.items():
            name = launch.name if len(sizes) == 1 else f"{launch.name}-{nodes}-nodes"
            files[path := launch.out / f"{name}.sh"] = self._array(name, nodes, tasks, launch)
            commands.append(shlex.join(["sbatch", "--parsable", str(path)]))
            arrays.append(f"<job of {path.name}>")
            each = f"each on {nodes} node(s) of {self.gpus_per_node} GPU(s)"
            summary.append(f"{path.name}: {len(tasks)} point(s), {each}")
        files[path := launch.out / f"{launch.collect.name}.sh"] = self._collect(launch)
        dependency = f"--dependency={AFTER}:" + ":".join(arrays)
        commands.append(f"sbatch --parsable {dependency} {shlex.quote(str(path))}")
        summary.append(f"{path.name}: when all have ended")
        return Plan(tuple(summary), files, tuple(commands))

    def submit(self, plan: Plan, say: Callable[[str], None]) -> None:
        """Submits the written scripts. Raises `RfjaxError`, naming the jobs submitted so far, if sbatch refuses a
        script."""
        *arrays, collect = plan.files
        jobs: list[str] = []
        for script in arrays:
            jobs.append(_sbatch([str(script)], jobs, say))
        jobs.append(_sbatch([f"--dependency={AFTER}:{':'.join(jobs)}", str(collect)], jobs, say))
        say(f"watch them with: squeue --job={','.join(jobs)}; withdraw them with: scancel {' '.join(jobs)}")

    def _nodes(self, task: Task) -> int:
        """Returns a point's number of nodes: `self.nodes`, by default the fewest whose GPUs the point's mesh can fill,
        or 1 for nodes without GPUs."""
        from rfjax.launch.tasks import check_layout

        mesh, gpus = task.config.mesh, self.gpus_per_node
        if not gpus:
            return self.nodes or 1  # XLA_FLAGS decides how many devices a CPU counts as
        sizes = [getattr(mesh, axis) for axis in AXES]
        fixed = math.prod(max(size, 1) for size in sizes)
        nodes = self.nodes or (math.lcm(fixed, gpus) // gpus if -1 in sizes else math.ceil(fixed / gpus))
        check_layout(task, nodes * gpus, f"{nodes} node(s) of {gpus} GPUs")
        return nodes

    def _array(self, name: str, nodes: int, tasks: Sequence[Task], launch: Launch) -> str:
        options = [f"--job-name={name}", f"--array=0-{len(tasks) - 1}", f"--nodes={nodes}", "--ntasks-per-node=1"]
        options += [f"--gpus-per-node={self.gpus_per_node}"] if self.gpus_per_node else []
        options += self._queue() + ([f"--time={self.time}"] if self.time else [])
        options += ["--requeue", "--open-mode=append", f"--signal=B:TERM@{launch.options.grace}"]
        options.append(_log(launch.out, "%x-%A_%a.out"))
        return fill(
            "slurm_points.sh",
            directives=_directives([*options, *self.sbatch]),
            cases="\n".join(f"{i}) command=({shlex.join(task.command)}) ;;" for i, task in enumerate(tasks)),
            setup=launch.options.setup or "",
            preempted=str(PREEMPTED),
            hopeless=" | ".join(map(str, HOPELESS)),
            grace=str(launch.options.grace),
        )

    def _collect(self, launch: Launch) -> str:
        options = [f"--job-name={launch.collect.name}", "--nodes=1", "--ntasks=1", *self._queue(), "--requeue"]
        directives = _directives([*options, _log(launch.out, "%x-%j.out")])
        command, setup = shlex.join(launch.collect.command), launch.options.setup or ""
        return fill("slurm_collect.sh", directives=directives, setup=setup, command=command)

    def _queue(self) -> list[str]:
        return [f"--{name}={value}" for name in ("partition", "account") if (value := getattr(self, name))]


def _sbatch(arguments: Sequence[str], before: Sequence[str], say) -> str:
    """Submits a script; returns its job's id. If sbatch refuses, the error lists the jobs submitted `before`."""
    command = ["sbatch", "--parsable", *arguments]
    say(shlex.join(command))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        rest = f"; withdraw what was submitted before it with: scancel {' '.join(before)}" if before else ""
        raise RfjaxError(f"sbatch refused {arguments[-1]} ({done.stderr.strip() or done.returncode}){rest}")
    job = done.stdout.strip().split(";")[0]  # JOB or JOB;CLUSTER
    say(f"job {job}")
    return job


def _log(out: Path, name: str) -> str:
    return f"--output={str(out).replace('%', '%%')}/{name}"


def _directives(options: Sequence[str]) -> str:
    """Returns options as a script's `#SBATCH` lines, with quotes where needed. Raises `ConfigError` for an option that
    does not begin with a hyphen, or that has a line break, which sbatch does not understand."""
    for word in options:
        if not word.startswith("-") or "\n" in word:
            raise ConfigError(f"{word!r} cannot be an option of sbatch; write it as --FLAG=VALUE, on one line")
    return "\n".join(f"#SBATCH {shlex.quote(word)}" for word in options)
