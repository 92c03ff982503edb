"""A study as SLURM arrays: one task a point, requeued when pre-empted, and a job that collects after them."""

from __future__ import annotations

import argparse
import math
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from rfjax.errors import ConfigError, RfjaxError
from rfjax.launch.tasks import HOPELESS, PREEMPTED, Launch, Plan, Task, check_layout
from rfjax.launch.templates import fill

EXECUTABLE = "sbatch"
AFTER = "afterany"  # a failed point is named in the report, and keeps nobody from reading the others


def workdir(given: str | None, study: str) -> str:
    return given or f"runs/{study}"


def plan(launch: Launch, args: argparse.Namespace, out: Path, config: Path) -> Plan:
    """One array for each number of nodes that the points take, and the job that collects.

    Raises `ConfigError` for a mesh that whole nodes do not make.
    """
    sizes: dict[int, list[Task]] = {}
    for task in launch.points:
        sizes.setdefault(_nodes(task, args), []).append(task)
    files, commands, summary, arrays = {}, [], [], []
    for nodes, tasks in sizes.items():
        name = launch.name if len(sizes) == 1 else f"{launch.name}-{nodes}-nodes"
        files[path := out / f"{name}.sh"] = _array(name, nodes, tasks, args, out)
        commands.append(shlex.join(["sbatch", "--parsable", str(path)]))
        arrays.append(f"<job of {path.name}>")
        summary.append(f"{path.name}: {len(tasks)} point(s), each on {nodes} node(s) of {args.gpus_per_node} GPU(s)")
    files[path := out / f"{launch.collect.name}.sh"] = _collect(launch.collect, args, out)
    dependency = f"--dependency={AFTER}:" + ":".join(arrays)
    commands.append(f"sbatch --parsable {dependency} {shlex.quote(str(path))}")
    summary.append(f"{path.name}: when all have ended")
    return Plan(tuple(summary), files, tuple(commands))


def submit(plan: Plan, say: Callable[[str], None]) -> None:
    """Submits what has been written; raises `RfjaxError` with what was submitted before sbatch refused."""
    *arrays, collect = plan.files
    jobs: list[str] = []
    for script in arrays:
        jobs.append(_sbatch([str(script)], jobs, say))
    jobs.append(_sbatch([f"--dependency={AFTER}:{':'.join(jobs)}", str(collect)], jobs, say))
    say(f"watch them with: squeue --job={','.join(jobs)}; withdraw them with: scancel {' '.join(jobs)}")


def _sbatch(arguments: Sequence[str], before: Sequence[str], say) -> str:
    command = ["sbatch", "--parsable", *arguments]
    say(shlex.join(command))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        rest = f"; withdraw what was submitted before it with: scancel {' '.join(before)}" if before else ""
        raise RfjaxError(f"sbatch refused {arguments[-1]} ({done.stderr.strip() or done.returncode}){rest}")
    job = done.stdout.strip().split(";")[0]  # JOB or JOB;CLUSTER
    say(f"job {job}")
    return job


def _nodes(task: Task, args) -> int:
    """The nodes of a point: as asked for, or the fewest whose GPUs its mesh divides."""
    mesh, gpus = task.point.config.mesh, args.gpus_per_node
    if not gpus:
        return args.nodes or 1  # XLA_FLAGS decides how many devices a CPU is
    sizes = (mesh.data, mesh.fsdp, mesh.tensor)
    fixed = math.prod(max(size, 1) for size in sizes)
    nodes = args.nodes or (math.lcm(fixed, gpus) // gpus if -1 in sizes else math.ceil(fixed / gpus))
    check_layout(task.point, nodes * gpus, f"{nodes} node(s) of {gpus} GPUs")
    return nodes


def _array(name, nodes, tasks, args, out) -> str:
    options = [f"--job-name={name}", f"--array=0-{len(tasks) - 1}", f"--nodes={nodes}", "--ntasks-per-node=1"]
    if args.gpus_per_node:
        options.append(f"--gpus-per-node={args.gpus_per_node}")
    options += _queue(args) + ([f"--time={args.time}"] if args.time else [])
    options += ["--requeue", "--open-mode=append", f"--signal=B:TERM@{args.grace}", _log(out, "%x-%A_%a.out")]
    cases = [f"{index}) command=({shlex.join(task.command)}) ;;" for index, task in enumerate(tasks)]
    return fill(
        "slurm_points.sh",
        directives=_directives([*options, *(args.sbatch or [])]),
        cases="\n".join(cases),
        setup=args.setup or "",
        preempted=str(PREEMPTED),
        hopeless=" | ".join(map(str, HOPELESS)),
        grace=str(args.grace),
    )


def _collect(task: Task, args, out) -> str:
    options = [f"--job-name={task.name}", "--nodes=1", "--ntasks=1", *_queue(args), "--requeue", _log(out, "%x-%j.out")]
    return fill(
        "slurm_collect.sh", directives=_directives(options), setup=args.setup or "", command=shlex.join(task.command)
    )


def _queue(args) -> list[str]:
    return [f"--{option}={value}" for option in ("partition", "account") if (value := getattr(args, option))]


def _log(out: Path, name: str) -> str:
    return f"--output={str(out).replace('%', '%%')}/{name}"


def _directives(options: Sequence[str]) -> str:
    """Options as the comments that sbatch reads; it knows quotes, but no line ends in them."""
    for option in options:
        if not option.startswith("-") or "\n" in option:
            raise ConfigError(f"{option!r} cannot be an option of sbatch; write it as --FLAG=VALUE, on one line")
    return "\n".join(f"#SBATCH {shlex.quote(option)}" for option in options)
