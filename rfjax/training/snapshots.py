"""Stores a run's power-function averages from time to time, and makes the average of another width from them.

The weights over steps of the wanted average are approximated by a sum of those of the snapshots, with the least square
error (EDM2, arXiv 2312.02696, appendix C.3; `power_averages.py` says what these averages are).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rfjax.config import TrainConfig
from rfjax.errors import ConfigError, RfjaxError
from rfjax.limits import MOST_WIDTH
from rfjax.training import checkpoint, run_folder
from rfjax.training.checkpoint import Checkpoints
from rfjax.training.power_averages import Snapshot, exponent_of, mix, name_of, snapshot_steps
from rfjax.training.processes import distributed
from rfjax.training.state import State

FOLDER = "averages"  # of a run's folder: the snapshots
# Largest relative error of the weights over steps, as the root of the mean square. Two averages of widths 0.05 and 0.1
# with 16 evenly spread snapshots give an error of 0.009 for a width of 0.15, 0.023 for 0.2, 0.039 for 0.03, 0.079 for
# 0.25.
MISFIT = 0.03


class Held(NamedTuple):
    """An average that is stored: where, its width, and the step of its last update."""

    folder: Path  # `checkpoint.restore_step` reads the step `at` from it
    at: int
    width: float
    updated: int


def parse_widths(text: str) -> tuple[float, ...]:
    """Parses the widths of `--average`, such as "0.08,0.12". Raises `ConfigError` for anything else."""
    try:
        widths = tuple(float(word) for word in text.split(","))
    except ValueError:
        widths = ()
    known = f"it must be widths (sigma_rel) between 0 and {MOST_WIDTH}, such as 0.12 or 0.05,0.1,0.15"
    if not widths or not all(0 < width < MOST_WIDTH for width in widths) or len(set(widths)) < len(widths):
        raise ConfigError(f"--average is {text!r}; {known}")
    return widths


def save_snapshot(workdir: Path, state: State, step: int, facts: dict, config: TrainConfig) -> None:
    """Stores the averages if `step` is one of the `snapshot_steps`, and waits until they are on disk.

    Snapshots of other steps, left by a run whose length was changed, are removed. To be called before the checkpoint of
    the same step is saved: then no snapshot is lost if the run resumes from that checkpoint. Raises `SaveFailed`.
    """
    steps = snapshot_steps(config)
    folder = workdir / FOLDER
    if step not in steps or distributed.from_first(lambda: step in checkpoint.steps_saved(folder)):
        return
    with Checkpoints(folder, keep_last=1, kept=steps.__contains__) as writer:
        writer.save(Snapshot(state.power, state.power_step), step, facts)


def held_by(workdir: Path, step: int) -> list[Held]:
    """Lists the stored averages of a run up to `step`: its snapshots, those of its trunk up to where the run left it,
    and the averages in the checkpoint of `step` itself.

    Raises `ConfigError` for a run that keeps no power-function averages.
    """
    config = run_folder.read_config(workdir)
    widths = config.train.power_averages
    if not widths:
        lack = f"the run in {workdir} keeps no power-function averages"
        raise ConfigError(f"{lack}; train it with --config.train.power_averages=0.05,0.1, or leave out --average")
    found: dict[tuple[int, float], Held] = {}
    for name, at in distributed.from_first(lambda: _places(workdir, step)):
        updated = _updated(Path(name), at)
        if updated:
            for width in widths:
                found.setdefault((updated, width), Held(Path(name), at, width, updated))
    return list(found.values())


def _places(workdir: Path, step: int) -> list[tuple[str, int]]:
    """(folder, step) of the checkpoint, and of the snapshots of the run and of its trunks that lie before it."""
    found, folder, last = [(str(workdir), step)], workdir, step
    while folder is not None:
        found += [(str(folder / FOLDER), at) for at in checkpoint.steps_saved(folder / FOLDER) if at <= last]
        trunk = (run_folder.read_run(folder) or {}).get("trunk")
        folder, last = (_trunk_of(folder, trunk), trunk["step"]) if trunk else (None, 0)
    return found


def _trunk_of(folder: Path, trunk) -> Path:
    """The trunk's folder; if the study was moved, the folder of that name beside the branch."""
    path = Path(trunk["path"])
    return path if path.is_dir() else folder.absolute().parent / path.name


def _updated(folder: Path, at: int) -> int:
    """The step after which the averages stored at a step were last updated."""
    abstract = {"power_step": jax.ShapeDtypeStruct((), np.int32, sharding=_first_device())}
    return int(checkpoint.restore_step(folder, at, abstract)[0]["power_step"])


def _first_device():
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def restore(workdir: Path, step: int, width: float, sharding: Callable | None = None) -> Any:
    """Makes the average of a width at a checkpoint's step. `sharding` is a function from the tree of its arrays' shapes
    to a tree of shardings; by default arrays go to the first device.

    Raises `ConfigError` for a run without power-function averages, and for a width whose weights over steps the stored
    averages cannot make. Raises `RfjaxError` for a snapshot that is damaged or of another network.
    """
    held = held_by(workdir, step)
    if not held:
        raise ConfigError(f"the averages of {workdir} were not updated before step {step}; give a later --step")
    end = max(each.updated for each in held)
    mixture = mix(
        [float(each.updated) for each in held],
        [exponent_of(each.width) for each in held],
        float(end),
        exponent_of(width),
    )
    if mixture.misfit > MISFIT:
        kept = ", ".join(f"{each:g}" for each in sorted({each.width for each in held}))
        raise ConfigError(
            f"--average is {width:g}, and the {len({each.updated for each in held})} stored averages of widths {kept} "
            f"in {workdir} give its weights over steps with an error of {mixture.misfit:.1%} (at most {MISFIT:.0%}); "
            "give a width nearer to theirs, or train with more --config.train.average_snapshots"
        )
    total = form = None
    rows = zip(held, map(np.float32, mixture.coefficients), strict=True)
    for (folder, at), stored in itertools.groupby(rows, key=lambda row: (row[0].folder, row[0].at)):
        factors = {name_of(each.width): factor for each, factor in stored}
        for name, tree in _restore_all(folder, at, tuple(factors), sharding).items():
            if form not in (None, found := jax.tree.map(lambda leaf: leaf.shape, tree)):
                remedy = f"move {folder} away, or give a width that the run itself keeps"
                raise RfjaxError(f"the averages in {folder} are those of another network than {workdir}; {remedy}")
            form, part = found, jax.tree.map(lambda leaf, factor=factors[name]: factor * leaf, tree)
            total = part if total is None else jax.tree.map(lambda a, b: a + b, total, part)
    return total


def _restore_all(folder: Path, at: int, names: Sequence[str], sharding) -> dict[str, Any]:
    """Reads the averages with these names that are stored at a step."""
    shapes = {name: checkpoint.stored_shapes(folder, at)["power"][name] for name in names}
    places = {name: sharding(tree) if sharding else _everywhere(tree) for name, tree in shapes.items()}
    abstract = jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, places)
    return checkpoint.restore_step(folder, at, {"power": abstract})[0]["power"]


def _everywhere(tree):
    return jax.tree.map(lambda _: _first_device(), tree)
