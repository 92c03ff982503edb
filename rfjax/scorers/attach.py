"""Writes a score as an evaluation record of a run's checkpoint, so that it enters the results table. No torch here."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from rfjax.errors import ConfigError
from rfjax.evaluation.geneval.rules import GenEvalScore
from rfjax.evaluation.records import (
    Measured,
    check_may_record,
    check_still_run,
    geneval_record,
    make_record,
    read_records,
    record_key,
    write_record,
)
from rfjax.inputs.json_files import read_json


class _RunName(TypedDict):
    run: str


@dataclass(frozen=True)
class Checkpoint:
    """The source of the images: a run's checkpoint, the sampler, and the seed of the sampler's noise."""

    workdir: Path
    step: int
    weights: str
    sampler: str
    seed: int


def attach(
    checkpoint: Checkpoint,
    evaluation: str,
    corpus: str,
    values: Sequence[Measured] | GenEvalScore,
    *,
    seconds: float,
    extra: Mapping[str, object],
) -> Path:
    """Writes `values` as a record into the run's folder, in place of a record with the same key; returns the path.

    `corpus` names the prompts or the reference images. What training spent (images, FLOPs, seconds) comes from another
    record of the checkpoint, else from the checkpoint itself. Raises `ConfigError` if the run has neither.
    """
    name, spent = run_facts(checkpoint)
    key = record_key(
        run=name,
        step=checkpoint.step,
        evaluation=evaluation,
        corpus=corpus,
        weights=checkpoint.weights,
        sampler=checkpoint.sampler,
        seed=checkpoint.seed,
    )
    if isinstance(values, GenEvalScore):
        record = geneval_record(key, {"geneval": values}, seconds=seconds, extra=extra, **spent)
    else:
        record = make_record(key, values, seconds=seconds, extra=extra, **spent)
    check_still_run(checkpoint.workdir)
    return write_record(checkpoint.workdir, record)


def run_facts(checkpoint: Checkpoint) -> tuple[str, dict]:
    """Returns the run's name, and what training spent up to the checkpoint: images, flops, train_seconds.

    `rfjax score` also calls this before it scores, to refuse a wrong run before hours of work. Raises `ConfigError` for
    a folder that is not a run's, and for a step of which the run has neither a record nor a checkpoint.
    """
    path = checkpoint.workdir / "run.json"
    try:
        name = read_json(path, _RunName, remedy="restore it", error=ConfigError)["run"]
    except FileNotFoundError:
        raise ConfigError(
            f"--run={checkpoint.workdir} is not a run's folder: it has no run.json; give its --workdir"
        ) from None
    check_may_record(checkpoint.workdir)
    for record in read_records(checkpoint.workdir):
        if record["key"]["step"] == checkpoint.step and record["key"]["run"] == name and record["flops"] is not None:
            return name, {field: record[field] for field in ("images", "flops", "train_seconds")}
    if "jax" not in sys.modules:  # JAX only reads files here; on a GPU it would take most of the memory from torch
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from rfjax.training import checkpoint as checkpoints

    step = checkpoints.choose_step(checkpoint.workdir, checkpoint.step)
    return name, checkpoints.spent(checkpoints.read_facts(checkpoint.workdir, step))


def file_revision(path: str | os.PathLike, sha256: str) -> dict:
    """Returns how a record names a model: the last part of its path, for readers, and the hash of its content."""
    return {"name": Path(path).name, "sha256": sha256}
