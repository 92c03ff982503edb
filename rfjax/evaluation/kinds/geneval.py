"""GenEval of a run's checkpoints by the corpus's detector: score, floors, ceiling, and a strip of samples.

The score, each floor, the ceiling and the strip have records of their own. The score's record is written last, because
its presence says that all is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from rfjax.config import Config, GenEvalConfig, SamplerConfig
from rfjax.evaluation.detectors import detector_for
from rfjax.evaluation.generate import other_prompts_of_task
from rfjax.evaluation.geneval import rules
from rfjax.evaluation.geneval.judgements import judge_rows, prompt_scores
from rfjax.evaluation.kinds.prompted import check_images, images_of, on_stills, prompts_of, with_names
from rfjax.evaluation.kinds.prompted_records import (
    first_of_tasks,
    null_condition,
    place_of,
    write_ceiling,
    write_detections,
    write_samples,
)
from rfjax.evaluation.pictures import write_strip
from rfjax.evaluation.records import geneval_record, write_record
from rfjax.evaluation.schedule import Evaluation, Programs, is_due
from rfjax.training.run import Run

SHOWN_PER_TASK = 2  # prompts of each task in the strip of samples
CEILING_IMAGES = 8  # per prompt: ground truth costs little, and the ceiling should be sharp


def due(config: Config, step: int, last: bool) -> list[tuple[SamplerConfig, dict]]:
    """Returns [(sampler, fields of the record's key)] of the GenEval evaluations that are due at a step. At each
    multiple of `evaluation.geneval_every` and at the last step, an evaluation is due for each number of prompts that
    the config asks for; at other steps none is due."""
    asked = is_due(config.evaluation.geneval_every, step, last)
    each = [with_names(config, settings, [config.evaluation.sampler]) for settings in _settings(config) if asked]
    return [row for rows in each for row in rows]


def _settings(config: Config) -> list[GenEvalConfig]:
    """Returns GenEval's settings once for each number of prompts per task that the config asks for: first with
    `prompts_per_task`, then with `few_prompts_per_task`."""
    settings = config.evaluation.geneval
    counts = dict.fromkeys((settings.prompts_per_task, settings.few_prompts_per_task))
    asked = [count for count in counts if count] if settings.prompts_per_task else []
    return [replace(settings, prompts_per_task=count, few_prompts_per_task=0) for count in asked]


def _settings_of(config: Config, evaluation: Evaluation) -> GenEvalConfig:
    """The settings that an evaluation's key names."""
    sampler = config.evaluation.sampler
    named = {with_names(config, each, [sampler])[0][1]["sampler"]: each for each in _settings(config)}
    return named[evaluation.key["sampler"]]


def check(run: Run, programs: Programs) -> None:
    """Raises `ConfigError` as `check_images` does, and for a task with a single prompt: the task's floor needs a second
    prompt."""
    run = on_stills(run)
    for settings in _settings(run.config):
        check_images(run, "geneval", [run.config.evaluation.sampler])
        other_prompts_of_task(run.corpus.evaluation_prompts(settings.prompts_per_task, settings.seed))


def measure(run: Run, programs: Programs, evaluation: Evaluation, params, spent: dict) -> Callable[[], object]:
    run = on_stills(run)
    began, settings = time.monotonic(), _settings_of(run.config, evaluation)
    prompts, ids, conditions = prompts_of(run, settings)
    named = f"{run.name} {evaluation.step}"
    images = images_of(run, programs, params, evaluation.sampler, settings, ids, conditions, f"{named} GenEval")
    rows, nothing = null_condition(ids, conditions)
    null = images_of(run, programs, params, evaluation.sampler, settings, rows, nothing, f"{named} null condition")
    return lambda: _write(run, evaluation, prompts, ids, images, null, spent, began)


def _write(run, evaluation, prompts, ids, images, unconditional, spent, began):
    """Detects, judges and records, in process 0 alone."""
    settings, detect = _settings_of(run.config, evaluation), detector_for(run.corpus)
    found = detect(images)
    own = ids[:, 0]
    judged = judge_rows(found, [prompts[index] for index in own])
    shuffled = judge_rows(found, [prompts[index] for index in other_prompts_of_task(prompts)[own]])
    null = judge_rows(detect(unconditional), prompts)
    held_out = np.array([bool(row.get("held_out")) for row in prompts])[own]
    scores = {"geneval": rules.score(judged)}
    for metric, mask in (("geneval_held_out", held_out), ("geneval_seen", ~held_out)):
        if mask.any():
            scores[metric] = rules.score([result for result, chosen in zip(judged, mask, strict=True) if chosen])
    extra = {"prompt_scores": prompt_scores(judged), "images_per_prompt": settings.images_per_prompt}

    rows = ({"prompt_index": int(i), "sample": int(j), **row} for (i, j), row in zip(ids, found, strict=True))
    write_detections(run, "geneval", evaluation, prompts, "detections.jsonl", rows)
    _write_strip(run, evaluation, prompts, ids, images, spent)
    seconds = time.monotonic() - began
    for name, results in (("geneval_floor_shuffled", shuffled), ("geneval_floor_null", null)):
        record = geneval_record({**evaluation.key, "evaluation": name}, {"geneval": rules.score(results)}, **spent)
        write_record(run.workdir, record)

    def ceiling(key, truth, own):
        judged = judge_rows(detect(truth), [prompts[index] for index in own])
        return geneval_record(key, {"geneval": rules.score(judged)})

    write_ceiling(run, "geneval_ceiling", settings, prompts, CEILING_IMAGES, ceiling)
    write_record(run.workdir, geneval_record(evaluation.key, scores, seconds=seconds, extra=extra, **spent))


def _write_strip(run, evaluation, prompts, ids, images, spent):
    """Writes a row of pictures for the report: the first image of the first prompts of each task."""
    shown, rows = first_of_tasks(prompts, ids, SHOWN_PER_TASK)
    path = Path("samples") / f"{place_of(evaluation)}.png"
    tile = write_strip(run.workdir / path, images[rows])
    write_samples(run, evaluation, {"png": str(path), "prompts": shown, "tile": tile}, spent)
