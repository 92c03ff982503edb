"""Finds the job of many processes that this process belongs to, if any. Contacts nothing but a cluster's metadata.

The command's options --coordinator, --processes and --process-id come first. Without them, JAX's own detection decides:
SLURM, Kubernetes, TPU metadata or Open MPI. A job of one process counts as no job, since it has no other process to
wait for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from rfjax.errors import ConfigError, RfjaxError
from rfjax.training.processes.jax_internals import cluster_kinds

CONNECT_SECONDS = 300  # nodes of a job start minutes apart


@dataclass(frozen=True)
class Job:
    """The facts that JAX needs to connect the processes of a job."""

    origin: str  # where these facts come from, for messages
    processes: int
    process_id: int
    coordinator: str  # HOST:PORT of process 0
    local_device_ids: tuple[int, ...] | None = None  # None: all of them


def find_job(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Job | None:
    """Returns the job that the options describe; without options, the job in which this process was started.

    Returns None if there is no job, and for a job of one process.

    Raises `ConfigError` for options that are incomplete or contradict each other, and `RfjaxError` if the cluster's
    metadata cannot be read.
    """
    if (coordinator, processes, process_id) != (None, None, None):
        return _from_flags(coordinator, processes, process_id)
    if "SLURM_JOB_ID" in environ and _whole(environ, "OMPI_COMM_WORLD_SIZE", 1) > 1:
        return _from_mpirun(environ)
    if "SLURM_STEP_NUM_TASKS" in environ:
        return _from_slurm(environ)
    if "SLURM_JOB_ID" in environ:  # the script of a batch job is no task, though it has a task's variables
        return None
    return _from_cluster(environ)


def _from_flags(coordinator, processes, process_id) -> Job | None:
    given = {"--coordinator": coordinator, "--processes": processes, "--process-id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        there = ", ".join(name for name, value in given.items() if value is not None)
        raise ConfigError(
            f"{there} given without {' and '.join(missing)}; many processes take all three, as "
            "--coordinator=HOST:PORT --processes=N --process-id=I, with I from 0 to N-1"
        )
    if (
        not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:]+):\d{1,5}", coordinator)
        or int(coordinator.rpartition(":")[2]) > 65535
    ):
        raise ConfigError(f"--coordinator is {coordinator!r}; it must be HOST:PORT of process 0, such as node001:41234")
    if processes < 1:
        raise ConfigError(f"--processes is {processes}; it must be at least 1")
    if not 0 <= process_id < processes:
        raise ConfigError(
            f"--process-id is {process_id}; with --processes={processes} it must be from 0 to {processes - 1}"
        )
    return Job("the flags", processes, process_id, coordinator) if processes > 1 else None


def _whole(environ, name: str, default: int | None = None) -> int:
    """Returns the whole number in an environment variable, or `default` if the variable is unset. Raises `ConfigError`,
    naming the variable, for any other text, and if the variable is unset and has no default."""
    text = environ.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"[0-9]+", text, re.ASCII):
        remedy = "unset it, or give --coordinator, --processes and --process-id"
        raise ConfigError(f"the environment's {name} is {text!r}, which is no whole number; {remedy}")
    return int(text)


def _from_mpirun(environ) -> Job | None:
    """The job of a rank that `mpirun` started inside a SLURM job. SLURM's variables then describe mpirun's daemons, one
    per node, and would give several ranks the same number."""
    if "ompi" in cluster_kinds() and cluster_kinds()["ompi"].is_env_present():
        return _from_cluster(environ, only="ompi")
    raise ConfigError(
        f"mpirun started {environ['OMPI_COMM_WORLD_SIZE']} processes inside the SLURM job {environ['SLURM_JOB_ID']} "
        "and does not say where the first is; start them with srun, or give --coordinator, --processes and --process-id"
    )


def _from_slurm(environ) -> Job | None:
    """Returns the job of a task that `srun` started; None if the task is alone.

    The number of processes is the number of tasks of the SLURM step, not SLURM_NTASKS. In a shell of an allocation, and
    in a step of one task, SLURM_NTASKS is the number of tasks of the whole SLURM job.
    """
    processes = _whole(environ, "SLURM_STEP_NUM_TASKS")
    if processes == 1:
        return None
    address = cluster_kinds()["slurm"].get_coordinator_address(CONNECT_SECONDS, environ.get("JAX_COORDINATOR_PORT"))
    return Job("SLURM", processes, _whole(environ, "SLURM_PROCID"), address, _slurm_devices(environ))


def _slurm_devices(environ) -> tuple[int, ...] | None:
    """Returns the GPUs of this task, an equal share of those that it sees. Returns None if the number of GPUs or of
    tasks is unknown.

    JAX would take the one GPU with the task's own number. With one task per node this leaves seven of eight GPUs idle,
    and if each task sees only its own GPU, JAX finds none.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    count = (
        len([word for word in visible.split(",") if word])
        if visible
        else _whole({name: text for name, text in environ.items() if text}, "SLURM_GPUS_ON_NODE", 0)
    )
    tasks = _tasks_on_node(environ)
    if not count or not tasks:
        return None
    if count < tasks:  # each task sees only its own GPUs
        return tuple(range(count))
    share, place = count // tasks, _whole(environ, "SLURM_LOCALID")
    return tuple(range(place * share, (place + 1) * share))


def _tasks_on_node(environ) -> int | None:
    """Returns the number of SLURM tasks on this node; None if SLURM does not give it. SLURM_STEP_TASKS_PER_NODE lists
    the nodes' numbers of tasks, as in "2(x3),1"."""
    counts = []
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(number)] * int(times or 1)
    node = _whole(environ, "SLURM_NODEID", 0)
    return counts[node] if node < len(counts) else None


def _from_cluster(environ, only: str | None = None) -> Job | None:
    """Returns the job that JAX detects by a kind of cluster other than SLURM, or by the kind `only`. Returns None if
    there is none, or it has one process. A Kubernetes pod counts only if it belongs to an indexed job."""
    passed_over = {"slurm"} | (set() if "JOB_COMPLETION_INDEX" in environ else {"k8s"})
    for name, kind in cluster_kinds().items():
        if only not in (None, name) or kind.opt_in_only_method or name in passed_over or not kind.is_env_present():
            continue
        try:
            processes = kind.get_process_count()
            if processes == 1:
                return None
            address = kind.get_coordinator_address(CONNECT_SECONDS, environ.get("JAX_COORDINATOR_PORT"))
            local = kind.get_local_process_id()
            return Job(name, processes, kind.get_process_id(), address, None if local is None else (local,))
        except Exception as error:  # requests, kubernetes and sockets raise exceptions of their own
            raise RfjaxError(
                f"this is one of a job's processes by {name}, but the others could not be found "
                f"({type(error).__name__}: {error}); give --coordinator, --processes and --process-id"
            ) from error
    return None
