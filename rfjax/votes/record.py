"""Writes what people prefer as evaluation records of the runs whose checkpoints made the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from rfjax.errors import ConfigError
from rfjax.evaluation import preference
from rfjax.evaluation.records import Measured
from rfjax.inputs.json_files import WrongJson, check_json
from rfjax.scorers.attach import Checkpoint, attach, run_facts
from rfjax.votes.analysis import OTHERS
from rfjax.votes.strengths import BRADLEY_TERRY
from rfjax.votes.study import KeyedStudy


class MadeBy(TypedDict):
    """The entry in a study's key for a side whose images were sampled from a run."""

    run: str
    step: int
    weights: str
    sampler: str
    seed: int


def checkpoints_of(study: KeyedStudy, folders: Sequence[Path]) -> dict[str, Checkpoint]:
    """Finds, for each run in `folders`, the side of the study whose images the run made. A side is one of the runs or
    folders that the study compares. Returns {side's name: the checkpoint that made the side's images}.

    Raises `ConfigError` for a folder that does not hold a run, and for a run that made no side's images.
    """
    sides: dict[str, tuple[str, MadeBy]] = {}
    for side, facts in study.facts.items():
        try:
            made = check_json(dict(facts), MadeBy)
            sides[made["run"]] = side, made
        except WrongJson:  # a folder of images from elsewhere
            continue
    found = {}
    for folder in folders:
        for side, made in sides.values():
            checkpoint = Checkpoint(folder, *(made[name] for name in ("step", "weights", "sampler", "seed")))
            name, _ = run_facts(checkpoint)
            if name == made["run"]:
                found[side] = checkpoint
                break
        else:
            known = ", ".join(sides) or "none"
            raise ConfigError(
                f"--run={folder} made no side's images by key.json, which names the runs {known}; leave it out, or let "
                "rfjax compare sample from the run"
            )
    return found


def write_records(analysis: Mapping, checkpoints: Mapping[str, Checkpoint], *, seconds: float) -> list[Path]:
    """Writes each run's win rate and strength on each question as an evaluation record into the run's folder.

    The win rate is against all other runs, and the strength is Bradley and Terry's. Returns the records' paths. The
    record's field `corpus` names the study, because win rates and strengths are relative to the study's other runs.
    """
    paths = []
    for side, checkpoint in checkpoints.items():
        values = [value for question in analysis["questions"] for value in _values(question, side)]
        if values:
            extra = {"runs": list(analysis["runs"]), "study": analysis["study"]}
            corpus = preference.corpus_of(analysis["study"])
            paths.append(attach(checkpoint, preference.EVALUATION, corpus, values, seconds=seconds, extra=extra))
    return paths


def _values(question: Mapping, side: str):
    if not question["votes"]:
        return
    whole = [row for row in question["win_rates"] if row["subset"] == "all" and row["run"] == side]
    against = [row for row in whole if row["against"] == OTHERS] or whole  # with two runs there is no row "all others"
    for row in against[:1]:
        yield _measured(preference.WIN_RATE, question["question"], row)
    for model in question["strengths"]:
        if model["model"] == BRADLEY_TERRY:
            for row in model["runs"]:
                if row["run"] == side:
                    yield _measured(preference.STRENGTH, question["question"], row)


def _measured(metric, question, row):
    ends = {name: float("nan") if row[name] is None else row[name] for name in ("stderr", "low", "high")}
    return Measured(metric=metric, item=question, value=row["value"], n=row["n"], **ends)
