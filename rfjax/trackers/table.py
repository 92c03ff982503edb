"""Lists the trackers, and checks that the trackers which a config names can be used on this machine."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rfjax.errors import ConfigError
from rfjax.trackers.items import Item

EXTRA = "trackers"


@dataclass(frozen=True, kw_only=True)
class About:
    """The facts about a run that a tracker gets."""

    id: str  # the same for every start of the run
    name: str
    group: str  # the study, or ""
    workdir: Path
    config: Mapping[str, object]  # dotted key -> value
    begun: bool  # whether an earlier start has made the run at the tracker


class Tracker(Protocol):
    """A run that is open at a tracker. Its methods may raise any exception; `feeding` then tries again later."""

    def send(self, items: Iterable[Item], number: int) -> None:
        """Sends items. `number` is the number of the run's items that were sent before."""

    def flush(self) -> None:
        """Waits until everything sent so far is stored, so that it survives the end of this process."""

    def close(self, done: bool) -> None:
        """Ends this start of the run; `done` says whether the run is complete."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kind of tracker.

    Its module has two functions: `open_run(about)` returns a `Tracker`, and `why_not()` says what is missing to use the
    tracker, with the remedy, or returns "".
    """

    module: str  # imported when the tracker is chosen
    package: str  # the library that the module imports
    extra: str = ""  # the extra of rfjax that installs the library; "" if none does


TRACKERS: dict[str, Row] = {
    "tensorboard": Row(module="rfjax.trackers.event_files", package="tensorboardX"),
    "wandb": Row(module="rfjax.trackers.wandb_runs", package="wandb", extra=EXTRA),
    "mlflow": Row(module="rfjax.trackers.mlflow_runs", package="mlflow", extra=EXTRA),
}


def check(names: Iterable[str]) -> None:
    """Raises `ConfigError` for a tracker whose library is not installed, or for which there is no login or address."""
    for name in names:
        row, leave = TRACKERS[name], f"or leave {name} out of config.train.trackers"
        if importlib.util.find_spec(row.package) is None:
            install = f"pip install 'rfjax[{row.extra}]'" if row.extra else f"pip install {row.package}"
            given = f"config.train.trackers has {name}, and the package {row.package} is not installed"
            raise ConfigError(f"{given}; {install}, {leave}")
        if why := importlib.import_module(row.module).why_not():
            raise ConfigError(f"config.train.trackers has {name}: {why}, {leave}")


def opener(name: str) -> Callable[[About], Tracker]:
    """Returns the function that opens a run at the tracker `name`."""
    return importlib.import_module(TRACKERS[name].module).open_run
