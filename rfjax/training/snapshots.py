"""Stores a run's power-function averages from time to time, and makes the average of another width from them.

An average gives the parameters of each step a weight. A linear combination of the stored averages approximates the
wanted average: its coefficients give the weights with the least square error (EDM2, arXiv 2312.02696, appendix C.3;
`power_averages.py` says what these averages are).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rfjax.config_rules import LEAST_UPDATES
from rfjax.errors import ConfigError, RfjaxError
from rfjax.training import checkpoint, run_folder
from rfjax.training.checkpoint import Checkpoints
from rfjax.training.checkpoint_facts import AVERAGES
from rfjax.training.power_averages import Mixture, Snapshot, exponent_of, mix, name_of, snapshot_steps
from rfjax.training.processes import distributed
from rfjax.training.shared_settings import differing_settings
from rfjax.training.state import State
from rfjax.weight_names import weights_name

SAME_AS_TRUNK = ("params", "corpus_fingerprint")  # of a branch's run.json, besides the settings of its config
# The largest relative error that is allowed for the weights over steps, as the root of the mean square. From two
# averages of widths 0.05 and 0.1 with 16 evenly spread snapshots, a width of 0.15 has an error of 0.009, 0.2 of 0.023,
# 0.03 of 0.039, and 0.25 of 0.079.
MISFIT = 0.03


class Held(NamedTuple):
    """An average that is stored: where, its width, and the step of its last update."""

    folder: Path  # `checkpoint.restore_step` reads the step `at` from it
    at: int
    width: float
    updated: int


def save_snapshot(
    workdir: Path,
    state: State,
    step: int,
    facts: dict,
    steps: Collection[int],
    wait: Callable[[], None] = lambda: None,
) -> None:
    """Stores the averages if `step` is among `steps`, and waits until they are on disk. `wait` waits for a save that is
    not done, since only one save may be under way.

    To be called before the checkpoint of the same step is saved: then no snapshot is lost if the run resumes from that
    checkpoint. Raises `SaveFailed`.
    """
    folder = workdir / AVERAGES
    if step not in steps:
        return
    wait()
    if distributed.from_first(lambda: step in checkpoint.steps_saved(folder)):
        return  # stored by an earlier attempt, in which saving the checkpoint itself then failed
    with Checkpoints(folder, keep_last=1, kept=lambda step: True) as writer:
        writer.save(Snapshot(state.power, state.power_step), step, facts)


def drop_later(workdir: Path, step: int, steps: Collection[int]) -> None:
    """Removes the snapshots of steps after the one from which a run goes on; the run makes them again. Does nothing for
    a run that makes none, whose `steps` are empty."""
    if not steps:
        return
    if distributed.is_first():
        for later in checkpoint.steps_saved(workdir / AVERAGES):
            if later > step:
                checkpoint.drop(workdir / AVERAGES, later)
    distributed.together("snapshots after the step to go on from removed")


def held_by(workdir: Path, step: int) -> tuple[list[Held], list[str]]:
    """Lists the stored averages of a run up to `step`: its snapshots, those of its trunk up to where the run left it,
    and the averages in the checkpoint of `step` itself. Returns (the averages, what is missing, in words).

    Raises `ConfigError` for a run that keeps no power-function averages, and for a step by which they had fewer than
    `LEAST_UPDATES` updates. A branch goes on with its trunk's averages, so updates are counted from step 0.
    """
    config = run_folder.read_config(workdir)
    widths = config.train.power_averages
    if not widths:
        lack = f"the run in {workdir} keeps no power-function averages, of which others are made"
        raise ConfigError(f"{lack}; train it with --config.train.power_averages=0.05,0.1, or evaluate ema or raw")
    updates, least = step // config.train.average_every, LEAST_UPDATES * config.train.average_every
    if updates < LEAST_UPDATES:
        lack = f"by step {step} the averages of {workdir} had {updates} updates, and a width is right from"
        raise ConfigError(f"{lack} {LEAST_UPDATES} on; give a --step of at least {least}")
    found: dict[tuple[int, float], Held] = {}
    places, lacking = distributed.from_first(lambda: _places(workdir, step))
    for name, at in places:
        updated = _updated(Path(name), at)
        for width in widths if updated else ():
            found.setdefault((updated, width), Held(Path(name), at, width, updated))
    if not found:
        raise ConfigError(f"the averages of {workdir} were not updated before step {step}; give a later --step")
    return list(found.values()), lacking


def _places(workdir: Path, step: int) -> tuple[list[tuple[str, int]], list[str]]:
    """Returns (where averages are stored, what is missing, in words). The first list has (folder, step) of the run's
    checkpoint at `step` and of each snapshot up to it. Snapshots of the run's trunk up to the departure are included,
    and so are those of the trunk's own trunk."""
    found, lacking, folder, last = [(str(workdir), step)], [], workdir, step
    while folder is not None:
        saved, record = checkpoint.steps_saved(folder / AVERAGES), run_folder.read_run(folder) or {}
        found += [(str(folder / AVERAGES), at) for at in saved if at <= last]
        trunk = record.get("trunk")
        begun = trunk["step"] if trunk else 0
        expected = snapshot_steps(run_folder.read_config(folder).train)
        missing = [at for at in expected if begun < at <= last and at not in saved]
        lacking += [f"{len(missing)} snapshots are missing in {folder / AVERAGES}"] if missing else []
        folder, last = (_trunk_of(folder, record, trunk), begun) if trunk else (None, 0)
        if trunk and folder is None:
            lacking.append(f"its trunk {trunk['run']} is neither at {trunk['path']} nor beside it")
    return found, lacking


def _trunk_of(folder: Path, record, trunk) -> Path | None:
    """The trunk's folder: where it was when the branch left it, or beside the branch, if the study was moved. None if
    neither is that trunk."""
    path, config = Path(trunk["path"]), run_folder.read_config(folder)
    for place in (path, folder.absolute().parent / path.name):
        there = run_folder.read_run(place) if (place / "run.json").is_file() else None
        if there is None or (theirs := run_folder.read_config(place)) is None or there["run"] != trunk["run"]:
            continue
        same_warmup = max(1, theirs.train.warmup) == max(1, config.train.warmup)  # the rate is constant after it
        if (
            same_warmup
            and not differing_settings(theirs, config)
            and all(there[name] == record[name] for name in SAME_AS_TRUNK)
        ):
            return place
    return None


def _updated(folder: Path, at: int) -> int:
    """Returns the step of the last update of the averages that are stored at step `at`. Returns 0 if they were not yet
    updated, and for a checkpoint of weights alone."""
    shapes = checkpoint.stored_shapes(folder, at)
    if "power_step" not in shapes:
        return 0
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return int(_read(folder, at, checkpoint.laid_out({"power_step": shapes["power_step"]}, here))["power_step"])


def _read(folder: Path, at: int, abstract):
    try:
        return checkpoint.restore_step(folder, at, abstract)[0]
    except RfjaxError as error:
        if folder.name != AVERAGES:
            raise
        move = f"move {folder / checkpoint.FOLDER / str(at)} away: the average is then made from the others"
        raise RfjaxError(f"{error}; {move}") from None


def check_widths(workdir: Path, step: int, widths: Collection[float]) -> None:
    """Raises `ConfigError` as `restore` does for a width that cannot be made at a checkpoint's step. Reads no
    parameters."""
    if widths:
        held, lacking = held_by(workdir, step)
        for width in widths:
            _mixture(held, lacking, width, f"step {step} of {workdir}")


def _mixture(held: Sequence[Held], lacking: Sequence[str], width: float, where: str) -> Mixture:
    """Finds how the average of a width is made from the stored averages `held`. Raises `ConfigError` if the error of
    the weights over steps is above `MISFIT`; the message says what is `lacking`."""
    end = float(max(each.updated for each in held))
    ends, exponents = zip(*((float(each.updated), exponent_of(each.width)) for each in held), strict=True)
    mixture = mix(ends, exponents, end, exponent_of(width))
    if mixture.misfit > MISFIT:
        kept = ", ".join(f"{each:g}" for each in sorted({each.width for each in held}))
        missing = f" ({'; '.join(lacking)})" if lacking else ""
        raise ConfigError(
            f"{weights_name(width)} cannot be made at {where}: the {len(set(ends))} stored averages "
            f"of widths {kept}{missing} give its weights over steps with an error of {mixture.misfit:.1%} (at most "
            f"{MISFIT:.0%}); choose a width nearer to theirs, or train with more --config.train.average_snapshots"
        )
    return mixture


def restore(workdir: Path, step: int, width: float, sharding: Callable | None = None) -> Any:
    """Makes the average of a width at a checkpoint's step. `sharding` is a function from the tree of its arrays' shapes
    to a tree of shardings; by default arrays go to the first device.

    Raises `ConfigError` as `held_by` does, and for a width whose weights over steps the stored averages cannot make.
    Raises `RfjaxError` for a snapshot that is damaged or of another run.
    """
    held, lacking = held_by(workdir, step)
    mixture = _mixture(held, lacking, width, f"step {step} of {workdir}")
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
    stored = checkpoint.stored_shapes(folder, at)["power"]
    abstract = {name: checkpoint.laid_out(stored[name], sharding) for name in names}
    return _read(folder, at, {"power": abstract})["power"]
