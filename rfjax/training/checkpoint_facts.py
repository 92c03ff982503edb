"""The facts that a checkpoint holds beside its arrays: its step, its run and its costs, protected by one checksum.

They reveal a checkpoint that was copied from another run, renamed to another step, or edited. Without them, results of
such a checkpoint would be recorded for the wrong run or step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from rfjax.errors import RfjaxError
from rfjax.inputs import seals
from rfjax.inputs.json_files import WrongJson, check_json, read_json
from rfjax.training.spikes import Memory

AVERAGES = "averages"  # folder of a run, with checkpoints of its power-function averages alone
# The fields of run.json that tell one run from another. They stay the same if a run is moved, renamed or copied.
OWNER = "depth hidden heads seed learning_rate params batch_size steps corpus corpus_fingerprint".split()


class Sums(TypedDict):
    """The sums for the row of the training curve that was unfinished at the checkpoint (`metrics.Window`)."""

    steps: int
    loss: float
    grad_norm: float
    bins: list[float]
    counts: list[float]
    measures: NotRequired[dict[str, float]]


class Facts(TypedDict):
    """What a checkpoint holds beside its arrays. The first four fields are in every checkpoint.

    `skipped_in_row`, `window` and `spikes` are in those that training saves; `weights_alone` marks an imported one,
    without an optimiser's state. `seal` is the checksum of these facts; with it come the `step` and the `owner`, which
    identifies the run (`owner_of`). Checkpoints of an earlier version have no seal.
    """

    images: int
    flops: float
    train_seconds: float
    checksums: dict[str, int]
    skipped_in_row: NotRequired[int]
    window: NotRequired[Sums]
    spikes: NotRequired[Memory]
    weights_alone: NotRequired[bool]
    step: NotRequired[int]
    owner: NotRequired[dict[str, object] | None]
    seal: NotRequired[str]


def seal(facts: Mapping, workdir: Path, step: int) -> dict:
    """Adds to the facts the step, the run in `workdir`, and a checksum of everything."""
    about = {"step": step, "owner": owner_of(workdir)}
    return seals.seal({**facts, **about})


def check(facts: object, workdir: Path, step: int, path: Path) -> None:
    """Raises `RfjaxError` if the facts belong to another step or run, were edited, or do not have the form of `Facts`.

    Facts without a seal are accepted, because an earlier version wrote none.
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
        raise RfjaxError(f"checkpoint {path} belongs to step {facts.get('step')} and was renamed; {remedy}")
    here = owner_of(workdir)
    if facts.get("owner") and here and facts["owner"] != here:
        differs = ", ".join(name for name in here if facts["owner"].get(name) != here[name])
        raise RfjaxError(f"checkpoint {path} is that of another run: {differs} differ; move it back, or remove it")


def owner_of(workdir: Path) -> dict | None:
    """Returns the facts that identify a run. `workdir` is the run's folder, or the folder `averages` inside it. Returns
    None if run.json is missing or cannot be read."""
    folder = workdir.absolute().parent if workdir.name == AVERAGES else workdir
    try:
        record = read_json(folder / "run.json")
        parent = record["parent"] and {name: record["parent"][name] for name in ("run", "step")}
        return {name: record[name] for name in OWNER} | {"parent": parent}
    except (OSError, RfjaxError, KeyError, TypeError):
        return None  # other readers refuse this run.json and name it
