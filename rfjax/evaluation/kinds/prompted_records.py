"""Writes what GenEval and temporal GenEval keep of a checkpoint besides its score: detections, samples, the ceiling."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from rfjax.data.batch import Conditions
from rfjax.evaluation.generate import prompt_ids
from rfjax.evaluation.kinds.prompted import Settings
from rfjax.evaluation.records import make_record, read_records, record_key, record_name, write_record
from rfjax.evaluation.sampler_name import ground_truth_name
from rfjax.evaluation.schedule import Evaluation
from rfjax.files import write_whole
from rfjax.training.run import Run


def null_condition(
    ids: Int[np.ndarray, "images 2"], conditions: Conditions
) -> tuple[Int[np.ndarray, "prompts 2"], Conditions]:
    """Returns (ids, conditions) that sample one image for each prompt under the null condition, from the noise of the
    prompt's first image. The score of these images is a floor: the score of a model that ignores its prompt.

    Guidance away from the null condition then changes nothing, so the sampler that is already compiled can be used.
    """
    first = ids[:, 1] == 0
    return ids[first], Conditions(*map(np.zeros_like, conditions.rows(first)))


def place_of(evaluation: Evaluation) -> str:
    """Returns the name, without a suffix, of an evaluation's folder and files in a run's folder."""
    return f"{evaluation.step}-{evaluation.weights}-{evaluation.key['sampler']}-seed{evaluation.key['seed']}"


def write_detections(
    run: Run, kind: str, evaluation: Evaluation, prompts: Sequence[Mapping], file: str, rows: Iterable[Mapping]
) -> None:
    """Writes an evaluation's prompts to metadata.jsonl, and the detections `rows` to `file` beside it. The command
    `rfjax KIND`, of the evaluation's kind, can score these files again."""
    folder = run.workdir / kind / place_of(evaluation)
    lines = {"metadata.jsonl": prompts, file: rows}
    write_whole({folder / name: "".join(json.dumps(row) + "\n" for row in each) for name, each in lines.items()})


def first_of_tasks(
    prompts: Sequence[Mapping], ids: Int[np.ndarray, "images 2"], each: int
) -> tuple[list[str], list[int]]:
    """Returns (the texts of the first `each` prompts of each task, the index in `ids` of the first sample of each of
    these prompts)."""
    chosen: list[int] = []
    for tag in dict.fromkeys(row["tag"] for row in prompts):
        chosen += [index for index, row in enumerate(prompts) if row["tag"] == tag][:each]
    first = {int(i): n for n, (i, j) in enumerate(ids) if j == 0}
    return [prompts[index]["prompt"] for index in chosen], [first[index] for index in chosen]


def write_samples(run: Run, evaluation: Evaluation, extra: Mapping, spent: Mapping, name: str = "samples") -> None:
    """Writes the record of pictures to look at, of the evaluation `name`. `extra` has the paths of the files, the
    prompts, and `tile`: the height of one picture in pixels."""
    write_record(run.workdir, make_record({**evaluation.key, "evaluation": name}, [], extra=extra, **spent))


def write_ceiling(
    run: Run,
    evaluation: str,
    settings: Settings,
    prompts: Sequence[Mapping],
    each: int,
    record: Callable[[dict, np.ndarray, list[int]], dict],
) -> Mapping:
    """Writes the record of ground truth's scores, with `each` pictures or clips per prompt, unless the run already has
    this record. A model scores higher only by chance. Returns the record.

    `record(key, pictures, owners)` makes the record; `owners[i]` is the index in `prompts` of picture i's prompt.
    """
    key = record_key(
        run=run.name,
        step=-1,
        evaluation=evaluation,
        corpus=run.config.data.label,
        sampler=ground_truth_name((settings.prompts_per_task, each)),
        seed=settings.seed,
    )
    there = {record_name(found["key"]): found for found in read_records(run.workdir)}
    if (earlier := there.get(record_name(key))) is not None:
        return earlier
    own = prompt_ids(len(prompts), each)[:, 0].tolist()
    # Each picture has its own seed, so that a repeated prompt does not repeat its picture.
    truth = np.stack([run.corpus.render_prompt(prompts[index], n) for n, index in enumerate(own)])
    made = record(key, truth, own)
    write_record(run.workdir, made)
    return made
