"""Makes the tasks of a launch, the same for all schedulers: `rfjax study --point` for each point, then `--collect`."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import AbstractMesh

from rfjax.errors import ConfigError
from rfjax.evaluation.evaluate import due_at
from rfjax.evaluation.generate import check_batch_size
from rfjax.launch.target import CommonOptions, Launch, Task
from rfjax.mesh_axes import AXES, batch_ways
from rfjax.study.study import Study
from rfjax.training.mesh import check_batch, mesh_sizes, shardings
from rfjax.training.run import plan_run

LONGEST_NAME = 40  # Kubernetes and Google Cloud allow 63 characters, but append to the name


def make_launch(
    study: Study,
    overrides: Mapping[str, str],
    *,
    config: Path,
    config_there: Path,
    workdir: str,
    out: Path,
    options: CommonOptions,
    points: Sequence[str] = (),
) -> Launch:
    """Returns the launch of a study: a task for each point, in the study's order, and the task that collects. If
    `points` names any, only these points get tasks.

    `config` is the config file's path on this machine, and `config_there` is its path where the tasks run. `overrides`
    come from the command line. Raises `ConfigError` for a point that the study does not have.
    """
    chosen = {study.point(id).id for id in points} or {point.id for point in study.points}
    base = ("rfjax", "study", f"--config={config_there}")
    base += tuple(f"--config.{key}={value}" for key, value in overrides.items())
    after = f"--workdir={workdir}"
    tasks = tuple(
        Task(scheduler_name(f"{study.name}-{point.id}"), (*base, f"--point={point.id}", after), point.id, point.config)
        for point in study.points
        if point.id in chosen
    )
    name, collect = (
        scheduler_name(study.name),
        Task(scheduler_name(f"{study.name}/collect"), (*base, after, "--collect")),
    )
    return Launch(study=study.name, name=name, points=tasks, collect=collect, config=config, out=out, options=options)


def scheduler_name(text: str) -> str:
    """Turns a text into a name of lower-case letters, digits and hyphens that begins with a letter (RFC 1035).

    If the text has to be changed, a hash of it is appended, so that different texts get different names.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"r-{plain}".rstrip("-")
    if plain == text and len(plain) <= LONGEST_NAME:
        return plain
    mark = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{plain[: LONGEST_NAME - 7].rstrip('-')}-{mark}"


def check_layout(task: Task, devices: int, where: str, shown_slices: int | None = None) -> None:
    """Raises `ConfigError` unless the mesh, the batches and the parameters of the task's point divide over `devices`:
    the batch of training, and those of the evaluations that are due at the last step.

    `where` names the devices in the error. `shown_slices` is the number of TPU slices that JAX's devices show; None for
    CPUs and GPUs, which show none.
    """
    try:
        config = task.config
        mesh = AbstractMesh(tuple(mesh_sizes(config.mesh, devices, shown_slices).values()), AXES)
        check_batch(mesh, config.train.batch_size, config.train.accumulate)
        for kind in {evaluation.kind: None for evaluation in due_at(config, task.point, config.train.steps)}:
            check_batch_size(config, kind, batch_ways(mesh.shape))
        shardings(mesh, jax.eval_shape(plan_run(config).backbone.init, jax.random.key(0)))
    except ConfigError as error:
        raise ConfigError(f"point {task.point} on {where}: {error}") from None


def check_executable(name: str) -> None:
    """Raises `ConfigError` unless the program is on the PATH."""
    if shutil.which(name) is None:
        remedy = "install it, or run this where it is; --dry-run shows what would be run"
        raise ConfigError(f"there is no {name} on the PATH: {remedy}")
