"""Writes and reads a run's checkpoints: asynchronously, atomically, and with checksums.

No other file uses Orbax. A checkpoint is a folder `checkpoints/<step>` with the state and a JSON file of facts. The
facts hold a checksum of every array, and everything else that resuming needs. Checksums are computed on device and do
not depend on the sharding, so a checkpoint written on one mesh can be verified on any other. If the newest checkpoint
is damaged, a run resumes from the one before, and says so; any other reader of a damaged checkpoint raises an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Shaped
from orbax.checkpoint import checkpoint_managers as policies

from rfjax.errors import ConfigError, RfjaxError
from rfjax.training import checkpoint_facts
from rfjax.training.checksums import checksums, host_checksums
from rfjax.training.disk_errors import brief, is_full, may_pass
from rfjax.training.mesh import path_name
from rfjax.training.processes import distributed, watch
from rfjax.training.state import State

FOLDER = "checkpoints"
_STEP = re.compile(r"0|[1-9][0-9]*", re.ASCII)  # the name of a checkpoint's folder; not 0010, nor other digits
CHUNK_BYTES = 2**26  # an array is stored in chunks of this size; a reader holds whole chunks beside the array
SAVE_AGAIN_SECONDS = (1.0, 5.0, 25.0)  # pauses before trying again to write a checkpoint
ASIDE = "damaged"  # where a run moves checkpoints it cannot read, for a person to look at

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every save


class Weights(NamedTuple):
    """The content of a checkpoint that has no optimiser state, such as one that `rfjax import` makes."""

    params: Any
    ema: Any


class Restored(NamedTuple):
    step: int
    tree: Any  # the arrays and shardings that were asked for; None for a checkpoint with weights only
    facts: dict
    messages: tuple[str, ...]  # one for each damaged checkpoint passed over
    damaged: tuple[int, ...]  # the steps of these checkpoints


def steps_saved(workdir: Path) -> list[int]:
    """Returns the steps of the complete checkpoints, ascending. The folder of an incomplete checkpoint has another
    name."""
    folder = Path(workdir) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if _STEP.fullmatch(path.name) and path.is_dir())


def choose_step(workdir: Path, step: int | None) -> int:
    """Returns `step`, by default the newest checkpoint's. Raises `ConfigError` if there is no such checkpoint."""
    saved = steps_saved(workdir)
    if not saved:
        raise ConfigError(f"no checkpoint in {Path(workdir) / FOLDER}; train that run first")
    if step not in (None, *saved):
        known = ", ".join(map(str, saved))
        raise ConfigError(f"no checkpoint of step {step} in {Path(workdir) / FOLDER}; it has {known}")
    return saved[-1] if step is None else step


# Reading


def _reader() -> ocp.Checkpointer:
    """Makes a reader that does not wait for other processes. Each process reads what its devices need, and may fail
    alone."""
    index = jax.process_index()
    processes = ocp.options.MultiprocessingOptions(index, {index}, f"reader{index}")
    alone = {"multiprocessing_options": processes if distributed.many() else ocp.options.MultiprocessingOptions()}
    handlers = {"state": ocp.PyTreeCheckpointHandler(**alone), "facts": ocp.JsonCheckpointHandler(**alone)}
    options = ocp.CompositeOptions(**alone)
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(composite_options=options, **handlers), **alone)


def _path(workdir: Path, step: int) -> Path:
    return Path(workdir).absolute() / FOLDER / str(step)  # Orbax refuses relative paths


def spent(facts: dict) -> dict[str, int | float]:
    """Returns what training has cost up to a checkpoint (images, FLOPs, seconds), from the checkpoint's facts."""
    return {name: facts[name] for name in ("images", "flops", "train_seconds")}


def read_facts(workdir: Path, step: int) -> dict:
    """The facts of one checkpoint. Raises `RfjaxError` if they cannot be read."""
    path = _path(workdir, step)
    try:
        with _reader() as reader:
            facts = reader.restore(path, args=ocp.args.Composite(facts=ocp.args.JsonRestore())).facts
        checkpoint_facts.check(facts, path.parents[1], step, path)
        return facts
    except RfjaxError:
        raise
    except Exception as error:
        raise RfjaxError(f"the facts of checkpoint {path} cannot be read: {brief(error)}") from error


def stored_shapes(workdir: Path, step: int) -> dict:
    """Returns the tree of a checkpoint's arrays as `ShapeDtypeStruct`s without shardings. Raises `RfjaxError` if the
    checkpoint cannot be read."""
    try:
        with _reader() as reader:
            tree = reader.metadata(_path(workdir, step)).item_metadata["state"].tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    except Exception as error:
        raise RfjaxError(f"checkpoint {_path(workdir, step)} cannot be read: {brief(error)}") from error


def restore_step(workdir: Path, step: int, abstract) -> tuple[Any, dict]:
    """Reads and verifies one checkpoint. Returns (tree, facts).

    `abstract` is a tree of `ShapeDtypeStruct`s with the shardings wanted; stored shardings are never used. `abstract`
    may describe only a part of the saved tree. Raises `RfjaxError` if anything is missing, unreadable or differs from
    what was saved. If this happens in one process, all processes raise.
    """
    with _reader() as reader:
        return _restore(reader, _path(workdir, step), abstract)


def _restore(reader, path, abstract, restore_args=None, checksums=checksums, agree=True) -> tuple[Any, dict]:
    restore_args = restore_args or ocp.checkpoint_utils.construct_restore_args(abstract)
    arguments = ocp.args.Composite(
        state=ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=True),
        facts=ocp.args.JsonRestore(),
    )
    failure = None
    try:
        restored = reader.restore(path, args=arguments)
        tree, facts = restored.state, restored.facts
        checkpoint_facts.check(facts, path.parents[1], int(path.name), path)
        saved = facts["checksums"]
    except RfjaxError as error:
        failure = error
    except Exception as error:  # Orbax, TensorStore and JSON raise exceptions of their own
        failure = RfjaxError(f"checkpoint {path} cannot be read: {brief(error)}")
        failure.__cause__ = error
    if agree and (told := distributed.first_failure(failure)) and failure is None:
        failure = RfjaxError(told)
    if failure is not None:
        raise failure
    try:
        found = checksums(tree)
    except Exception as error:
        raise RfjaxError(f"checkpoint {path} cannot be read: {brief(error)}") from error
    wrong = [name for name, value in found.items() if saved.get(name) != value]
    if wrong:
        of = f"{len(wrong)} of {len(found)} arrays"
        raise RfjaxError(f"checkpoint {path} is damaged: the checksum of {wrong[0]} differs ({of})")
    return tree, facts


def read_arrays(workdir: Path, step: int, key: str) -> Iterator[tuple[str, Shaped[np.ndarray, " ..."]]]:
    """Yields (path, array) for each array of `params` or `ema`, verified, with one array in host memory at a time.

    `key` is `params` or `ema`. Raises `RfjaxError` as `restore_step` does.
    """
    shapes = stored_shapes(workdir, step)[key]
    on_host = ocp.RestoreArgs(restore_type=np.ndarray)
    with _reader() as reader:
        for path, shape in jax.tree_util.tree_leaves_with_path(shapes):
            tree, arguments = {key: shape}, {key: on_host}
            for part in reversed(path):
                tree[key], arguments[key] = {part.key: tree[key]}, {part.key: arguments[key]}
            tree, _ = _restore(reader, _path(workdir, step), tree, arguments, host_checksums, agree=False)
            yield path_name(path), jax.tree.leaves(tree)[0]
            del tree  # else memory would hold two arrays at once


def restore_newest(workdir: Path, abstract) -> Restored | None:
    """Restores the newest undamaged checkpoint; returns None if there is no checkpoint at all.

    For an imported checkpoint, which has weights but no optimiser state, the result's `tree` is None. Raises
    `RfjaxError` if there are checkpoints but none can be restored.
    """
    messages, damaged = [], []
    for step in reversed(distributed.from_first(lambda: steps_saved(workdir))):
        try:
            facts = distributed.from_first(lambda: read_facts(workdir, 0)) if step == 0 else {}
            if facts.get("weights_alone"):
                tree = None
            else:
                tree, facts = restore_step(workdir, step, abstract)
            messages = [f"{message}; fell back to the checkpoint of step {step}" for message in messages]
            return Restored(step, tree, facts, tuple(messages), tuple(damaged))
        except RfjaxError as error:
            messages.append(str(error))
            damaged.append(step)
    if messages:
        raise RfjaxError(
            f"none of the {len(messages)} checkpoints in {Path(workdir) / FOLDER} can be restored; the newest: "
            f"{messages[0]}. Use another --workdir, or move that folder away to start afresh"
        )
    return None


def restore_params(workdir: Path, step: int | None = None, weights: str = "ema", sharding=None) -> tuple[Any, dict]:
    """Reads the parameters of a checkpoint, by default the newest. Returns (parameters, facts).

    `weights` is `ema`, for the average, or `raw`. If the checkpoint is damaged, this raises an error instead of reading
    another one: a result must not silently belong to another step. `sharding` is one sharding for all arrays, or a
    function from the tree of their shapes to a tree of shardings. By default arrays go to the first device.
    """
    if weights not in ("ema", "raw"):
        raise ConfigError(f"weights is {weights!r}; it must be ema or raw")
    step = distributed.from_first(lambda: choose_step(workdir, step))
    key = {"ema": "ema", "raw": "params"}[weights]
    tree, facts = restore_step(workdir, step, laid_out({key: stored_shapes(workdir, step)[key]}, sharding))
    return tree[key], facts


def laid_out(shapes, sharding=None):
    """Returns a tree of shapes with shardings added, as `restore_step` takes it. `sharding` is one for all arrays, a
    function from the shapes to a tree of shardings, or None for the first device."""
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    targets = sharding(shapes) if callable(sharding) else jax.tree.map(lambda _: sharding, shapes)
    return jax.tree.map(lambda s, t: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=t), shapes, targets)


def set_aside(workdir: Path, steps: Sequence[int]) -> None:
    """Moves damaged checkpoints to `damaged/`, so that their steps can be saved again."""
    if distributed.is_first():
        for step in steps:
            target = Path(workdir) / ASIDE / str(step)
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(_path(workdir, step), target)
    distributed.together("damaged checkpoints set aside")


def drop(workdir: Path, step: int) -> None:
    """Removes a checkpoint. Its folder is renamed first, so a half-removed checkpoint does not look complete."""
    gone = _path(workdir, step).with_name(f"{step}.dropped")
    os.replace(_path(workdir, step), gone)
    shutil.rmtree(gone, ignore_errors=True)


# Writing


class _KeptForGood(policies.PreservationPolicy):
    def __init__(self, kept: Callable[[int], bool]):
        self._kept = kept

    def should_preserve(self, checkpoints, *, context):
        return [self._kept(checkpoint.step) for checkpoint in checkpoints]


class SaveFailed(RfjaxError):
    """A checkpoint could not be written. `may_pass` says whether trying again may help."""

    may_pass = True


def save_again(save: Callable[[bool], None], note: Callable[[str], None]) -> None:
    """Calls `save(again)` until it succeeds, with pauses between attempts. `again` is false only in the first attempt.

    `note` is called with the text of each failure. The failure is raised after the last pause, or at once if trying
    again cannot help. With many processes it is always raised at once: some processes may have saved their part, so all
    must start again from the last complete checkpoint.
    """
    for tries, pause in enumerate((*SAVE_AGAIN_SECONDS, None)):
        try:
            return save(tries > 0)
        except SaveFailed as error:
            if pause is None or not error.may_pass or distributed.many():
                raise
            note(f"{error}. Trying again in {pause:g} s")
            time.sleep(pause)


def _remove_torn(folder: Path) -> None:
    """Removes the folders of saves that were not completed.

    Orbax would also remove them, but in the background. A manager that is closed before its first save does not wait
    for this removal. It could then delete the folder that the next manager's save has just begun.
    """
    for torn in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(torn, ignore_errors=True)


class Checkpoints:
    """Writes the checkpoints of one run. This is a context manager: at its end it waits for saves that are not done.

    The last `keep_last` checkpoints are kept, and also the checkpoints of steps for which `kept(step)` is true. An
    older checkpoint is removed only once a newer one is complete.
    """

    def __init__(self, workdir: Path, *, keep_last: int, kept: Callable[[int], bool]):
        self._workdir, self._step = Path(workdir), 0
        self._policy = policies.AnyPreservationPolicy([policies.LatestN(keep_last), _KeptForGood(kept)])
        if distributed.is_first():
            (self._workdir / FOLDER).mkdir(parents=True, exist_ok=True)
            _remove_torn(self._workdir / FOLDER)
        distributed.together("the folder of checkpoints")
        self._open()

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            # A run's snapshots and its checkpoints are two managers, which must not wait at one barrier.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self._workdir.name),
            save_root_metadata=False,
        )
        # All devices that hold a replicated array write a slice each, if the array is large enough to be worth
        # compiling the slicing. Stored shardings are never read.
        arrays = ocp.type_handlers.ArrayHandler(
            min_slice_bytes_for_replica_parallel=2**20, enable_write_sharding_file=False
        )
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            "facts": ocp.JsonCheckpointHandler(),
        }
        folder = _path(self._workdir, 0).parent
        self._manager = ocp.CheckpointManager(folder, options=options, item_handlers=handlers)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None and distributed.many():
            return  # closing could wait for ever for other processes; the unfinished save stays incomplete
        try:
            with self._saving():
                self._manager.close()
        except Exception as error:
            if kind is None:  # else the first error is raised
                raise self._failed(error) from error

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, state: State | Weights, step: int, facts: dict) -> None:
        """Starts saving; returns once the device may overwrite `state`.

        Raises `SaveFailed` if this save cannot start, or if the previous save failed.
        """
        facts = facts | {"checksums": checksums(state._asdict())}
        facts = checkpoint_facts.seal(facts, self._workdir, step)
        try:
            with self._saving():  # waits until the previous save is on disk
                tree = state._asdict()
                chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree)
                items = {"state": ocp.args.PyTreeSave(tree, save_args=chunks), "facts": ocp.args.JsonSave(facts)}
                self._step = step
                if not self._manager.save(step, args=ocp.args.Composite(**items)):
                    raise RfjaxError(f"there is a checkpoint of a later step than {step}, or of this one")
        except Exception as error:
            raise self._failed(error) from error

    def check(self) -> None:
        """Raises `SaveFailed` if a save in the background has failed."""
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Waits until all saves are on disk. Raises `SaveFailed` if one could not be written."""
        try:
            with self._saving():
                self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def open_again(self) -> None:
        """Drops the remains of a failed save, so that the same step can be saved again."""
        with contextlib.suppress(Exception):
            self._manager.close()
        _remove_torn(self._workdir / FOLDER)  # only a job of one process comes here
        self._open()

    def _saving(self):
        return watch.doing(f"saving the checkpoint of step {self._step} to {self._workdir / FOLDER}")

    def _failed(self, error: Exception) -> SaveFailed:
        folder = self._workdir / FOLDER
        saved = steps_saved(self._workdir)
        good = f"the last complete one is of step {saved[-1]}" if saved else "there is none yet"
        remedy = "Mend that"
        if is_full(error):
            remedy = f"Free some space there, where {shutil.disk_usage(folder).free / 2**30:.2f} GiB are left"
        failed = SaveFailed(
            f"a checkpoint could not be written to {folder}: {brief(error)}; {good}. "
            f"{remedy}, then give the same command again"
        )
        failed.may_pass = may_pass(error)
        return failed
