"""Branches: runs that leave another run, their trunk, while the trunk's learning rate is constant, and then anneal the
rate.

A branch takes over the trunk's weights, moments, average, data order and noise. So it equals the run that is trained
alone with the schedule `wsd` for the branch's number of steps, but it costs only the steps after it left the trunk
(Haegele et al. 2024, arXiv 2405.18392, section 4).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rfjax import config as schema
from rfjax.config import Config, TrainConfig
from rfjax.errors import ConfigError, RfjaxError
from rfjax.limits import SCORES
from rfjax.training import checkpoint, lineage, run_folder
from rfjax.training.metrics import CURVE, DIAGNOSTICS
from rfjax.training.optimizer import learning_rate
from rfjax.training.processes import distributed
from rfjax.training.run import Run, Trunk
from rfjax.training.shared_settings import differing_settings


def departures(train: TrainConfig) -> tuple[int, ...]:
    """Returns the steps at which the branches of `train.branches` leave the trunk, in the order of the branches."""
    return tuple(replace(train, steps=length).departure for length in train.branches)


def steps_taken(train: TrainConfig) -> int:
    """Returns how many steps it takes to train a config. Without branches, these are the run's steps; with branches,
    the trunk's steps, and each branch's steps after it leaves the trunk."""
    if not train.branches:
        return train.steps
    leaves = departures(train)
    return max(leaves) + sum(length - step for length, step in zip(train.branches, leaves, strict=True))


def trunk_of(config: Config) -> Config:
    """Returns the config of the trunk of `train.branches`. The trunk has a constant rate and no evaluation, and ends at
    the last departure.

    The trunk and all branches have the warm-up, and the steps between updates of the average, of the longest branch.
    """
    train = _shared(config.train, steps=max(departures(config.train)), schedule="constant")
    off = {name: replace(getattr(config.evaluation, name), prompts_per_task=0) for name in SCORES}
    off["geneval"] = replace(off["geneval"], few_prompts_per_task=0)
    off["validation"] = replace(config.evaluation.validation, examples=0)
    return replace(config, train=train, evaluation=replace(config.evaluation, every=0, geneval_every=0, **off))


def branch_of(config: Config, steps: int) -> Config:
    """Returns the config of a branch with `steps` steps in all. The same run trained alone with `wsd` has the same
    config.

    If the config asks for fewer GenEval prompts on branches, only the longest branch is also scored with all prompts.
    """
    geneval = config.evaluation.geneval
    if geneval.prompts_per_task and geneval.few_prompts_per_task and steps < config.train.steps:
        geneval = replace(geneval, prompts_per_task=geneval.few_prompts_per_task, few_prompts_per_task=0)
    evaluation = replace(config.evaluation, geneval=geneval)
    return replace(config, train=_shared(config.train, steps=steps, schedule="wsd"), evaluation=evaluation)


def _shared(train: TrainConfig, **changes) -> TrainConfig:
    return replace(train, branches=(), warmup_steps=train.warmup, ema_every=train.average_every, **changes)


class Departure(NamedTuple):
    """What `--branch RUN@STEP` names: the trunk with the step of departure, and the trunk's config and role."""

    trunk: Trunk
    config: Config
    role: str = "run"


def read_departure(text: str) -> Departure:
    """Returns the `Departure` that `RUN@STEP` names. Raises `ConfigError` if there is no such run or checkpoint."""
    folder, step = lineage.parse_origin(text, "--branch")
    config = run_folder.read_config(folder)
    record = run_folder.read_name(folder) or {}
    if config is None:
        raise ConfigError(f"--branch={text}: {folder} has no config.json; name the folder of a run")
    return Departure(Trunk(str(folder), record.get("run", folder.name), step), config, record.get("role", "run"))


def role_of(left: str, skip_batches: int) -> str:
    """Returns the role of a run that leaves a run of the role `left` (`limits.ROLES`).

    A run that skips batches is the run that it leaves, trained again, so it has that run's role. A branch of a run of a
    sweep has that run's learning rate, so it belongs to the sweep, too. Every other branch has the role `branch`.
    """
    return left if skip_batches or left == "sweep" else "branch"


def check_fits(trunk: Trunk, run: Run) -> None:
    """Raises `ConfigError` if the run cannot be a branch of the trunk. Up to the departure the two must not differ.

    The trunk must have a checkpoint at the departure. The two runs must have equal settings (`shared_settings`),
    equal corpora, and equal learning rates before the departure. The branch must leave at the step where its rate
    begins to fall; a branch that skips batches may leave at any step before its last.
    """
    folder, train, where = Path(trunk.path), run.config.train, f"{trunk.path}@{trunk.step}"
    if trunk.skip_batches:
        if train.steps <= trunk.step:
            raise ConfigError(f"{where}: nothing is left of a run of {train.steps} steps; name an earlier checkpoint")
    elif train.schedule != "wsd" or train.departure != trunk.step:
        given = f"the branch of {train.steps} steps leaves its trunk at step {train.departure}, where the rate of wsd"
        remedy = "name that step, or set config.train.steps or config.train.decay_fraction"
        raise ConfigError(f"{where}: {given} begins to fall; {remedy}")
    saved = checkpoint.steps_saved(folder)
    if trunk.step not in saved:
        there = f"it has {', '.join(map(str, saved))}" if saved else "it has none"
        remedy = "checkpoints at departures are kept by config.train.keep_every, or by a study with train.branches"
        raise ConfigError(
            f"{folder} has no checkpoint of step {trunk.step}, where the branch is to leave ({there}); {remedy}"
        )
    theirs = run_folder.read_config(folder)
    if theirs is None:
        raise ConfigError(f"{folder} has no config.json; name the folder of a run")
    if keys := differing_settings(theirs, run.config):
        held, ours = schema.flatten(theirs), schema.flatten(run.config)
        said = "; ".join(f"config.{key} is {held[key]} in the trunk and {ours[key]} in this run" for key in keys[:4])
        raise ConfigError(f"{where} is no trunk of this run: {said}")
    steps = jnp.arange(trunk.step)
    one, other = (np.broadcast_to(learning_rate(each)(steps), steps.shape) for each in (theirs.train, train))
    if (differing := np.flatnonzero(one != other)).size:
        step = int(differing[0])
        said = f"the rate of step {step} is {one[step]:g} in the trunk and {other[step]:g} in this run"
        remedy = "a trunk has a constant rate after warm-up: config.train.schedule=constant and the same warmup_steps"
        raise ConfigError(f"{where} is no trunk of this run: {said}; {remedy}")
    run_folder.check_corpus(folder, run_folder.read_run(folder), run.corpus)


def trunk_of_record(run: Run, record: run_folder.RunFacts) -> Trunk | None:
    """Returns the trunk that a run left, from its run.json (`record`); None for a run without a trunk.

    Raises `ConfigError` if `run` names a trunk, and run.json names another trunk or none.
    """
    held = record.get("trunk")
    held = held and Trunk(**{name: held[name] for name in Trunk._fields if name in held})
    if run.trunk and (held is None or held._replace(path=run.trunk.path) != run.trunk):
        left = f"left {_departure_text(held)}" if held else "left no trunk"
        raise ConfigError(f"the run in {run.workdir} {left}, not {_departure_text(run.trunk)}; use another --workdir")
    return run.trunk or held  # the path in `held` is old if the study's folder has moved


def _departure_text(trunk: Trunk) -> str:
    skipped = f" without {trunk.skip_batches} batches" if trunk.skip_batches else ""
    return f"{trunk.run}@{trunk.step}{skipped}"


def restore(trunk: Trunk, abstract) -> tuple[object, dict]:
    """Reads the trunk's checkpoint at the departure. Returns (tree with the shardings of `abstract`, facts)."""
    try:
        return checkpoint.restore_step(Path(trunk.path), trunk.step, abstract)
    except RfjaxError as error:
        raise RfjaxError(f"the trunk's checkpoint cannot be read: {error}") from None


def copy_curve(trunk: Trunk, workdir: Path) -> None:
    """Copies the trunk's metrics and diagnostics to a new branch; the writer later drops rows after the departure."""
    if not distributed.is_first() or (workdir / CURVE).exists():
        return
    for name in (DIAGNOSTICS, CURVE):
        if (Path(trunk.path) / name).is_file():
            (workdir / name).write_bytes((Path(trunk.path) / name).read_bytes())
