"""Branches: runs that leave another run, their trunk, at a step of its constant rate, and anneal from there.

A branch carries on everything: weights, moments, average, data order and noise. So a branch equals the run that is
trained alone with the schedule `wsd` and the branch's number of steps, and it costs only its decay (Haegele et al.
2024, arXiv 2405.18392, section 4).
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

# What may differ between a trunk and its branch: nothing that the steps before the departure depend on. Warm-up, rates
# and the average's cadence are compared as they are computed.
_MAY_DIFFER = (
    "name",
    "evaluation.",
    "mesh.",
    "train.steps",
    "train.branches",
    "train.schedule",
    "train.decay_",
    "train.final_learning_rate_fraction",
    "train.warmup_steps",
    "train.ema_every",
    "train.checkpoint_every",
    "train.keep_",
    "train.log_every",
    "train.diagnostics_every",
    "train.max_skipped_in_row",
    "train.stall_seconds",
    "train.trackers",
    "train.together",
    "train.attention",
    "train.remat",
    "train.unroll",
    "data.prepared.path",
    "data.prepared.models",
)


def departures(train: TrainConfig) -> tuple[int, ...]:
    """The steps at which the branches of `train.branches` leave the trunk, in their order."""
    return tuple(replace(train, steps=length).departure for length in train.branches)


def steps_taken(train: TrainConfig) -> int:
    """The steps that a config trains: those of the run, or of the trunk and of each branch after it left."""
    if not train.branches:
        return train.steps
    leaves = departures(train)
    return max(leaves) + sum(length - step for length, step in zip(train.branches, leaves, strict=True))


def trunk_of(config: Config) -> Config:
    """The config of the trunk of `train.branches`: the constant rate up to the last departure, and no evaluation.

    Warm-up and the average's cadence are those of the longest branch, as numbers of steps: all branches share them.
    """
    train = _shared(config.train, steps=max(departures(config.train)), schedule="constant")
    off = {name: replace(getattr(config.evaluation, name), prompts_per_task=0) for name in SCORES}
    off["geneval"] = replace(off["geneval"], few_prompts_per_task=0)
    off["validation"] = replace(config.evaluation.validation, examples=0)
    return replace(config, train=train, evaluation=replace(config.evaluation, every=0, geneval_every=0, **off))


def branch_of(config: Config, steps: int) -> Config:
    """The config of a branch of `steps` steps in all: that of the same run trained alone with the schedule `wsd`.

    If GenEval has fewer prompts for branches, only the longest branch is also scored with all prompts.
    """
    geneval = config.evaluation.geneval
    if geneval.prompts_per_task and geneval.few_prompts_per_task and steps < config.train.steps:
        geneval = replace(geneval, prompts_per_task=geneval.few_prompts_per_task, few_prompts_per_task=0)
    evaluation = replace(config.evaluation, geneval=geneval)
    return replace(config, train=_shared(config.train, steps=steps, schedule="wsd"), evaluation=evaluation)


def _shared(train: TrainConfig, **changes) -> TrainConfig:
    return replace(train, branches=(), warmup_steps=train.warmup, ema_every=train.average_every, **changes)


class Departure(NamedTuple):
    """What `--branch RUN@STEP` names."""

    trunk: Trunk
    config: Config  # of the trunk


def read_departure(text: str) -> Departure:
    """The trunk and step that `RUN@STEP` names. Raises `ConfigError` naming what there is."""
    folder, step = lineage.parse_origin(text, "--branch")
    config = run_folder.read_config(folder)
    name = (run_folder.read_name(folder) or {}).get("run", folder.name)
    if config is None:
        raise ConfigError(f"--branch={text}: {folder} has no config.json; name the folder of a run")
    return Departure(Trunk(str(folder), name, step), config)


def check_fits(trunk: Trunk, run: Run) -> None:
    """Raises `ConfigError` if the run is no branch of the trunk: up to the departure the two must be the same run.

    It refuses a step other than the one at which the run's rate begins to fall (a branch that passes over batches may
    leave at any step), a missing checkpoint, another config, other rates before the departure, and another corpus.
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
    keys = [key for key in schema.differences(theirs, run.config) if not key.startswith(_MAY_DIFFER)]
    keys += ["train.ema_every"] if theirs.train.average_every != train.average_every else []
    if keys:
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
    """The trunk that a run left, from its run.json. Raises `ConfigError` if the run is now to leave another trunk, or
    none."""
    held = record.get("trunk")
    held = held and Trunk(**{name: held[name] for name in Trunk._fields if name in held})
    if run.trunk and (held is None or held._replace(path=run.trunk.path) != run.trunk):
        left = f"left {_departure_text(held)}" if held else "left no trunk"
        raise ConfigError(f"the run in {run.workdir} {left}, not {_departure_text(run.trunk)}; use another --workdir")
    return run.trunk or held  # the folder of the study may have moved since


def _departure_text(trunk: Trunk) -> str:
    skipped = f" without {trunk.skip_batches} batches" if trunk.skip_batches else ""
    return f"{trunk.run}@{trunk.step}{skipped}"


def restore(trunk: Trunk, abstract) -> tuple[object, dict]:
    """(tree, facts) of the trunk's checkpoint at the departure, on the shardings of `abstract`."""
    try:
        return checkpoint.restore_step(Path(trunk.path), trunk.step, abstract)
    except RfjaxError as error:
        raise RfjaxError(f"the trunk's checkpoint cannot be read: {error}") from None


def copy_curve(trunk: Trunk, workdir: Path) -> None:
    """Gives a new branch the trunk's rows of training and diagnostics; the writer drops those after the departure."""
    if not distributed.is_first() or (workdir / CURVE).exists():
        return
    for name in (DIAGNOSTICS, CURVE):
        if (Path(trunk.path) / name).is_file():
            (workdir / name).write_bytes((Path(trunk.path) / name).read_bytes())
