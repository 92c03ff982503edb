"""Finds the finished runs of a study that no law or figure uses, the reason, and the command that would include each.

Losses can be compared only under one setting: corpus, weights, grid of levels, number of examples, seed. A study is
fitted under the setting that most of its runs have. A run that was validated only under others is left out.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from rfjax.laws.study_fits import POSITIVE, Settings, counted, image_sizes
from rfjax.limits import ROLES
from rfjax.results.results_folder import Results, rows_by_run, rows_where

TWICE = "was evaluated twice, with different results"


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A finished run that a law or a figure does not use. `command` is the shell command after which the run would be
    used; it is "" if there is none."""

    run: str
    why: str
    command: str
    is_largest: bool  # no run of the study takes more compute

    def __str__(self) -> str:
        largest = ", the largest of the study," if self.is_largest else ""
        remedy = f": {self.command}" if self.command else ""
        return f"left out: {self.run}{largest} {self.why}{remedy}"


def left_out_runs(results: Results, settings: Settings, points: pd.DataFrame) -> list[LeftOut]:
    """Finds the runs and branches of the table that are done but not among `points`, those of most compute first."""
    size = results.runs[["flops_per_image", "steps", "batch_size"]].astype(float)
    runs = results.runs.assign(cost=size.prod(axis=1, skipna=False))
    most = runs["cost"].max()
    absent = counted(runs[(runs["state"] == "done") & ~runs["run"].isin(set(points["run"]))])
    sizes = image_sizes(results.runs)
    usual = next((sizes[run] for run in points["run"] if run in sizes), None)
    found, losses = [], rows_by_run(rows_where(results.long, metric="loss", item="mean"))
    for run in absent.sort_values("cost", ascending=False, kind="stable").to_dict("records"):
        size = sizes.get(run["run"], usual)
        another = f"has latents of {size} pixels a side, and most runs have {usual}: their losses cannot be compared"
        otherwise = TWICE if size == usual else another
        why, command = why_left_out(losses(run["run"]), run, settings, results, otherwise)
        largest = bool(pd.notna(run["cost"]) and run["cost"] == most)
        found.append(LeftOut(run=run["run"], why=why, command=command, is_largest=largest))
    return found


@dataclass(frozen=True, kw_only=True)
class Role:
    """A role (such as trunk), the runs that have it, and the reason why no law, correlation or ranking uses them."""

    role: str
    runs: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        return f"left out: {len(self.runs)} of role {self.role} ({', '.join(self.runs)}), for {self.why}"


def left_out_by_role(runs: pd.DataFrame) -> list[Role]:
    """Finds the runs that laws, correlations and rankings leave out by their role, such as trunks. `runs` has the
    columns `run` and `role`."""
    named = ((role, tuple(runs[runs["role"] == role]["run"].astype(str)), why) for role, why in ROLES.items() if why)
    return [Role(role=role, runs=names, why=why) for role, names, why in named if names]


def unfinished_runs(results: Results, points: pd.DataFrame) -> list[dict]:
    """Finds the runs of the table that are neither done nor among `points`; each is a dict of `run` and `state`."""
    absent = results.runs[(results.runs["state"] != "done") & ~results.runs["run"].isin(set(points["run"]))]
    return absent[["run", "state"]].to_dict("records")


def scoreless_runs(results: Results, settings: Settings, points: pd.DataFrame, column: str) -> list[LeftOut]:
    """Finds the points without a score in `column`, with the reasons; empty if no point has a score."""
    scored = points[column].notna() if column in points else pd.Series(False, points.index)
    if not scored.any():
        return []
    most = points["flops"].max()
    rows = rows_by_run(rows_where(results.long, evaluation="geneval", weights=settings.weights, final=1))
    found = []
    for run in points[~scored].to_dict("records"):
        samplers = ", ".join(sorted(rows(run["run"])["sampler"].unique()))
        why = "has no GenEval score"
        if samplers:
            why = f"was scored with another sampler or seed ({samplers}) than most runs ({settings.sampler})"
        command = f"rfjax eval {shlex.quote(_folder(results, run))} --weights {settings.weights}"
        found.append(LeftOut(run=run["run"], why=why, command=command, is_largest=bool(run["flops"] == most)))
    return found


def why_left_out(
    losses: pd.DataFrame, run: Mapping, settings: Settings, results: Results, otherwise: str = TWICE
) -> tuple[str, str]:
    """Returns why a finished run has no usable loss at these settings, and the command that would include it, or "".

    `run` is the run's row of runs.csv, and `losses` has the rows of its mean validation losses. `otherwise` is the
    reason of a run whose loss is usable.
    """
    folder = _folder(results, run)
    command = f"rfjax eval {shlex.quote(folder)} --weights {settings.weights} {_overrides(settings)}".rstrip()
    if run["train_corpus"] and run["train_corpus"] != settings.corpus and losses.empty:
        return f"was trained on {run['train_corpus']}, and the others are on {settings.corpus}", ""
    if losses.empty:
        return "has no validation loss", command
    final = losses[losses["final"] == 1]
    if final.empty:
        return "has no validation loss at its last step", command
    finite = final[final["value"].notna()]
    if finite.empty:
        return "has a validation loss that is not finite", ""
    wanted = {"corpus": settings.corpus, "weights": settings.weights, "grid": settings.grid}
    wanted["evaluation_seed"] = settings.grid_seed
    for name, value in wanted.items():
        same = finite[finite[name] == value]
        if same.empty:
            has = ", ".join(sorted(map(str, finite[name].unique())))
            title = {"evaluation_seed": "seed", "grid": "levels and examples"}.get(name, name)
            why = f"was validated with other {title} ({has}) than most runs ({value})"
            return why, "" if name == "corpus" else command
        finite = same
    row = finite.iloc[0].to_dict() | {"loss": finite["value"].iloc[0]}
    bad = [name for name in POSITIVE if not 0 < float(_number(row.get(name))) < math.inf]
    if bad:
        return (
            f"has {' and '.join(f'{name} {_number(row.get(name)):g}' for name in bad)}, and laws need more than 0",
            "",
        )
    return otherwise, ""


def _number(value) -> float:
    return math.nan if value is None or pd.isna(value) else float(value)


def _folder(results, run) -> str:
    """Returns the likely folder of a run: it lies beside the results folder, and is named by the run's point or else by
    the last part of the run's id. Returns the run's id if there is no such folder."""
    beside = results.folder.parent / (run["point"] or str(run["run"]).rsplit("/", 1)[-1])
    return str(beside if beside.is_dir() else run["run"])


def _overrides(settings) -> str:
    """Returns the options with which `rfjax eval` measures the study's validation loss; "" if the grid's name does not
    tell them."""
    match = re.fullmatch(r"(\w+)-(\d+)-n(\d+)", settings.grid)
    if not match:
        return ""
    fields = dict(zip(("grid", "levels", "examples"), match.groups(), strict=True)) | {"seed": settings.grid_seed}
    return " ".join(f"--config.evaluation.validation.{name}={value}" for name, value in fields.items())
