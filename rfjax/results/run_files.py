"""Reads the folder of one run, for the results table.

    run.json            what the run is (and config.json, all of its config)
    status.json         how it ended
    metrics.jsonl       the training loss as it went
    evaluations/*.json  one record per (run, step, weights, evaluation, corpus, sampler, grid, seed)

No JAX here.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple, Required, TypedDict

import numpy as np
import pandas as pd

from rfjax.errors import ConfigError
from rfjax.evaluation.records import read_records, record_name
from rfjax.inputs.files import why_not_plain
from rfjax.inputs.json_files import WrongJson, parse_json, read_json
from rfjax.limits import ROLES
from rfjax.results import tokens
from rfjax.results.columns import CURVE, KEY, RUN, RUNS
from rfjax.study.sweep_fields import settings_text

RUN_SCHEMA = 1
MAX_CURVE_ROWS = 200
RUN_FILES = ("run.json", "status.json")  # a folder with one of these files is a run's

# column -> the keys that lead to its value in run.json, if the key is not the column's name; `config` stands for the
# content of config.json
RUN_FIELDS = {
    "train_corpus": ("corpus",),
    "formulation": ("config", "formulation"),
    "backbone": ("config", "model", "backbone"),
    "schedule": ("config", "train", "schedule"),
    "parametrization": ("config", "model", "parametrization"),
    "optimizer": ("config", "train", "optimizer"),
    "parent_run": ("parent", "run"),
    "parent_step": ("parent", "step"),
    "parent_flops": ("parent", "flops"),
    "parent_images": ("parent", "images"),
    "platform": ("hardware", "platform"),
    "device_kind": ("hardware", "device_kind"),
    "devices": ("hardware", "devices"),
    "processes": ("hardware", "processes"),
    "trunk": ("trunk", "run"),
    "trunk_step": ("trunk", "step"),
}


# The config fields that columns of their own hold.
_IN_COLUMNS = ("data.corpus", "train.batch_size", "train.steps") + tuple(
    ".".join(keys[1:]) for keys in RUN_FIELDS.values() if keys[0] == "config"
)

# cost -> (its key in run.json, whether that value includes the parent's cost). The value always includes the trunk's.
SPENT = {"flops": ("flops", True), "seconds": ("train_seconds", False)}


class Trunk(TypedDict, total=False):
    """The trunk that a branch left, the step at which the branch left, and what the trunk had cost up to this step."""

    run: str
    step: int
    flops: float
    train_seconds: float


class Bucket(TypedDict, total=False):
    """An aspect bucket that a run trained on: the size of its latents without channels, and the number of steps of each
    cycle of the schedule that take their batch from this bucket. `batch_size` is left out if all buckets have the
    run's."""

    latent_size: list[int]
    steps_of_cycle: int
    batch_size: int


class RunFile(TypedDict, total=False):
    """The keys that the table takes from run.json, which `rfjax.training` writes."""

    schema: Required[int]
    run: Required[str]
    study: str | None
    point: str | None
    depth: int | None
    hidden: int | None
    heads: int | None
    seed: int | None
    learning_rate: float | None
    params: int | None
    flops_per_image: float | None
    flops_forward_per_image: float | None
    batch_size: int | None
    steps: int | None
    corpus: str | None
    corpus_fingerprint: str | None
    code_hash: str | None
    parent: dict[str, object] | None
    hardware: dict[str, object] | None
    jax_version: str | None
    role: str
    trunk: Trunk
    flops: float
    train_seconds: float
    buckets: list[Bucket] | None
    image_tokens: list[int] | None
    training_images: int | None


class ConfigModel(TypedDict, total=False):
    backbone: str
    patch_size: int
    temporal_patch_size: int
    parametrization: str


class ConfigData(TypedDict, total=False):
    corpus: str
    frames: int
    image_size: int
    context_tokens: int


class ConfigTrain(TypedDict, total=False):
    schedule: str
    optimizer: str


class ConfigFile(TypedDict, total=False):
    """The keys that the table takes from config.json."""

    formulation: str
    model: ConfigModel
    data: ConfigData
    train: ConfigTrain


class Status(TypedDict, total=False):
    """The content of status.json: how a run ended."""

    state: str
    step: int | None
    message: str | None


class MetricsRow(TypedDict, total=False):
    """The keys that the table takes from a row of metrics.jsonl."""

    step: Required[int]
    loss: float | None


class RunRecords(NamedTuple):
    """The content of one run folder."""

    facts: dict  # column of RUNS -> value; the merge fills in train_seconds and evaluation_seconds
    records: list[dict]
    folder: Path
    curve: pd.DataFrame
    notes: list[str]
    tokens: tokens.Tokens = tokens.UNKNOWN


def run_folders(study_folder: str | Path) -> list[Path]:
    """Lists the run folders in a study's folder, sorted by name. A run folder has a run.json or a status.json."""
    folder = Path(study_folder)
    if not folder.is_dir():
        raise ConfigError(f"no folder at {folder}; name a study's folder, or its results folder")
    return sorted(p for p in folder.iterdir() if any((p / name).is_file() for name in RUN_FILES))


def read_run(folder: Path) -> RunRecords:
    """Reads one run folder. A run that failed before it wrote run.json has only its status.

    Raises `ConfigError` for a file that is damaged, lacks a required field or has another schema version.
    """
    status = _read_json(folder / "status.json", Status) if _is_there(folder / "status.json") else {}
    notes, counted = [], tokens.UNKNOWN
    if _is_there(folder / "run.json"):
        run = _read_json(folder / "run.json", RunFile)
        if run.get("schema") != RUN_SCHEMA:
            wrong = f"{folder / 'run.json'} has schema {run.get('schema')!r}"
            raise ConfigError(f"{wrong}; this rfjax reads schema {RUN_SCHEMA}")
        if _is_there(folder / "config.json"):
            run["config"] = _read_json(folder / "config.json", ConfigFile)
        facts = {column.name: _run_value(run, column.name) for column in RUNS}
        for column in (*KEY[:1], *RUN):
            if column.required and facts[column.name] is None:
                raise ConfigError(f"{folder / 'run.json'} has no {column.name!r}; run the point again to write it")
        counted = tokens.read_tokens(run)
        config = run.get("config")
        facts["settings"] = settings_text(config, _IN_COLUMNS) if isinstance(config, dict) else None
        facts |= {"role": _role(folder, run)} | {f"spent_{what}": _spent(run, *names) for what, names in SPENT.items()}
    else:
        facts = {column.name: None for column in RUNS} | {"run": folder.name, "point": folder.name}
    if not isinstance(facts["run"], str):
        wrong = f"'run' in {folder / 'run.json'} is {facts['run']!r}; it must be the run's name, as text"
        raise ConfigError(f"{wrong}: restore the file, or run the point again")
    facts |= {"last_step": status.get("step"), "message": status.get("message")}
    facts["state"] = status.get("state", "unknown")
    curve, unread = read_curve(folder / "metrics.jsonl", facts["run"])
    if unread:
        notes.append(f"{facts['run']}: {unread} line(s) of metrics.jsonl could not be read and were left out")
    return RunRecords(facts, read_records_of(folder, facts["run"]), folder, curve, notes, counted)


def read_curve(path: Path, run: str) -> tuple[pd.DataFrame, int]:
    """Reads the training loss from metrics.jsonl, and averages it within at most MAX_CURVE_ROWS windows of steps.

    Returns a frame with a row per window, and the number of unreadable lines. A resumed run may repeat steps: a step's
    last line is used.
    """
    losses, unread = {}, 0
    why = why_not_plain(path) if _is_there(path) else ""
    if why:
        raise ConfigError(f"{path} cannot be read: it is {why}; remove it")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    lines = lines[:-1] if lines and not lines[-1] else lines
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, MetricsRow)
            if row.get("loss") is not None:  # it is null if every step of the row was skipped
                losses[row["step"]] = float(row["loss"])
        except WrongJson:
            unread += number < len(lines)  # not counted: an incomplete last line, which a killed run leaves
    steps = sorted(losses)
    windows = np.array_split(steps, min(MAX_CURVE_ROWS, len(steps))) if steps else []
    rows = [(run, int(w[-1]), float(np.mean([losses[int(s)] for s in w])), len(w)) for w in windows]
    return pd.DataFrame(rows, columns=[column.name for column in CURVE]), unread


def records_hash(folder: Path) -> str:
    """Computes the SHA-256 of all files of a run that the table reads. A table made from files of another hash is out
    of date."""
    digest = hashlib.sha256()
    names = [folder / name for name in (*RUN_FILES, "config.json", "metrics.jsonl")]
    for path in (*names, *sorted((folder / "evaluations").glob("*.json"))):
        if path.is_file():
            digest.update(path.name.encode("utf-8", "surrogateescape") + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read_records_of(folder: Path, run: str) -> list[dict]:
    """Reads the evaluation records in a folder: those of `run`, and those that belong to no run.

    Raises `ConfigError` for a record of another run.
    """
    records = read_records(folder)
    for record in records:
        if record["key"]["run"] not in (run, "-"):
            raise ConfigError(
                f"{folder / 'evaluations' / record_name(record['key'])} belongs to run {record['key']['run']!r} but "
                f"lies in the folder of {run!r}; move it back"
            )
    return records


def _run_value(run, name):
    value = run
    for part in RUN_FIELDS.get(name, (name,)):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _role(folder, run):
    role = run.get("role", "run")
    if role not in ROLES:
        known = ", ".join(ROLES)
        raise ConfigError(f"{folder / 'run.json'} has role {role!r}; this rfjax knows {known}; install a newer one")
    return role


def _spent(run, name, inherits):
    """Returns a cost of the run without its trunk and parent, up to its newest checkpoint; None if it is unknown.

    `name` is the cost's key in run.json. `inherits` says whether the value of that key includes the parent's cost.
    """
    held = run.get("trunk") or (inherits and run.get("parent")) or {name: 0}
    total, before = run.get(name), held.get(name)
    return None if total is None or before is None else total - before


def _is_there(path: Path) -> bool:
    """Whether the path exists. A dangling link counts as existing, so that reading it gives an error that names it."""
    return os.path.lexists(path)


def _read_json(path, shape):
    try:
        return read_json(path, shape, remedy="delete it and run the point again", error=ConfigError)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} cannot be read ({error}); run the point again") from None
