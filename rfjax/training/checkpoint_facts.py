"""What a checkpoint says of itself beside its arrays: its step, its run and its costs, under one checksum.

A checkpoint that was copied from another run, renamed to another step, or changed by one digit would else be taken at
its folder's word, and its results written down as those of the run it lies in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from rfjax.errors import RfjaxError
from rfjax.inputs import seals
from rfjax.inputs.json_files import WrongJson, check_json, read_json

# What makes a run another one, as its run.json has it. A run may be moved, renamed or copied.
OWNER = "depth hidden heads seed learning_rate params batch_size steps corpus corpus_fingerprint".split()


class Sums(TypedDict):
    """The sums of a row of the training curve that a checkpoint came amid (`rfjax.training.metrics.Window`)."""

    steps: int
    loss: float
    grad_norm: float
    bins: list[float]
    counts: list[float]


class Facts(TypedDict):
    """What every checkpoint says beside its arrays; those with a seal also have their step and owner."""

    images: int
    flops: float
    train_seconds: float
    checksums: dict[str, int]
    skipped_in_row: NotRequired[int]
    window: NotRequired[Sums]
    weights_alone: NotRequired[bool]
    step: NotRequired[int]
    owner: NotRequired[dict[str, object] | None]
    seal: NotRequired[str]


def seal(facts: Mapping, workdir: Path, step: int) -> dict:
    """The facts with their step, the run that `workdir` holds, and the checksum of all of them."""
    about = {"step": step, "owner": owner_of(workdir)}
    return seals.seal({**facts, **about})


def check(facts: object, workdir: Path, step: int, path: Path) -> None:
    """Raises `RfjaxError` for the facts of another step or another run, and for facts that were changed or are no
    `Facts`.

    Facts without a seal are those of an earlier version, which had none.
    """
    try:
        check_json(facts, Facts, "facts")
    except WrongJson as problem:
        raise RfjaxError(f"checkpoint {path} is damaged: {problem}") from None
    if seals.SEAL not in facts:
        return
    if seals.is_broken(facts):
        raise RfjaxError(f"checkpoint {path} is damaged: the checksum of its facts differs")
    if facts.get("step") != step:
        remedy = "give the folder its name back, or remove it"
        raise RfjaxError(f"checkpoint {path} is that of step {facts.get('step')}, under another name; {remedy}")
    here = owner_of(workdir)
    if facts.get("owner") and here and facts["owner"] != here:
        differs = ", ".join(name for name in here if facts["owner"].get(name) != here[name])
        raise RfjaxError(f"checkpoint {path} is that of another run: {differs} differ; move it back, or remove it")


def owner_of(workdir: Path) -> dict | None:
    """What tells the run in a folder from others; None where its run.json is not there or cannot be read."""
    try:
        record = read_json(workdir / "run.json")
        parent = record["parent"] and {name: record["parent"][name] for name in ("run", "step")}
        return {name: record[name] for name in OWNER} | {"parent": parent}
    except (OSError, RfjaxError, KeyError, TypeError):
        return None  # another reader refuses it, by name
