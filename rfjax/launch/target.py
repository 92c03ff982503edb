"""`Target`, the protocol of a scheduler that runs a study, and the values that it takes and returns. No JAX here.

Every file that `Target.plan` returns must contain "Made by `rfjax launch`" or, if it is a manifest of Kubernetes, the
label `app.kubernetes.io/name: rfjax`; a second launch replaces only files with such a mark. docs/README.md lists what a
new scheduler needs, file by file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from rfjax.config import Config
from rfjax.errors import ConfigError, Diverged, Preempted

PREEMPTED = Preempted.exit_status  # start the task again
HOPELESS = (ConfigError.exit_status, Diverged.exit_status)  # starting the task again cannot help


def option(
    help: str,
    *,
    metavar: str | None = None,
    least: int | None = None,
    path: bool = False,
    default=None,
    needed: bool = False,
) -> Any:
    """Returns a dataclass field that is both a flag of `rfjax launch` and a field of site files.

    The field's type decides how it is read: text, a whole number, true or false, or a tuple of texts, whose flag may be
    repeated. A `path` is a path on the machines that run the tasks. `least` is the smallest number allowed. A `needed`
    option has no default, and its `help` must say what to give.
    """
    metadata = {"help": help, "metavar": metavar, "least": least, "path": path}
    return dataclasses.field(default=dataclasses.MISSING if needed else default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """The options that every scheduler takes."""

    setup: str | None = option("shell commands that each task runs first: modules, an environment, a mount")
    storage: str | None = option(
        "a lasting folder that all machines share; --workdir defaults to a folder in it", metavar="DIR", path=True
    )
    grace: int = option("time that a run gets to save and stop (default 300)", metavar="SECONDS", least=1, default=300)


@dataclass(frozen=True)
class Task:
    """A command for a scheduler to run. `name` has a form that every scheduler accepts."""

    name: str
    command: tuple[str, ...]
    point: str | None = None  # the id of the point that the task trains; None for the task that collects
    config: Config | None = None  # of that point


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A study's tasks: one for each point, and one that collects after all of them."""

    study: str
    name: str
    points: tuple[Task, ...]
    collect: Task
    config: Path  # the config file on this machine
    out: Path  # the folder on this machine for scripts, manifests and logs
    options: CommonOptions


@dataclass(frozen=True)
class Plan:
    """What a launch does on one target: files to write, then commands to run in order, as shown to the user."""

    summary: tuple[str, ...]
    files: Mapping[Path, str]
    commands: tuple[str, ...]


@runtime_checkable
class Target(Protocol):
    """A scheduler with its options: a frozen dataclass whose fields are all made by `option`.

    Flags, site files, their checks and `--help` follow from the fields. `--help` imports the module of a target, so
    only functions of the module may import JAX.
    """

    executable: ClassVar[str]  # the program that `submit` starts on this machine; must be on the PATH
    shares_folders: ClassVar[bool]  # whether this machine sees the study's folder by the path that the tasks use

    def config_path(self, config: Path) -> Path:
        """Returns where the tasks find this machine's config file `config`."""

    def workdir(self, given: str | None, study: str) -> str:
        """Returns the study's folder as the tasks see it: `given`, or the default.

        Raises `ConfigError` for a folder that does not outlive the machines.
        """

    def plan(self, launch: Launch) -> Plan:
        """Returns the files and commands of a launch. Writes no file and runs no command.

        Raises `ConfigError` for machines that do not exist, or that a point's mesh does not fit.
        """

    def submit(self, plan: Plan, say: Callable[[str], None]) -> None:
        """Submits a plan whose files have been written. Raises `RfjaxError` if the scheduler refuses it."""
