"""Temporal GenEval of a run's checkpoints: strict tasks and soft measures with their floors, in one record.

The ceiling, and the clips to look at, have records of their own. The score's record is written last, because its
presence says that all is done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rfjax.config import Config, SamplerConfig
from rfjax.data.batch import Conditions
from rfjax.evaluation.detectors.clips import detect_clips
from rfjax.evaluation.generate import prompt_ids
from rfjax.evaluation.geneval.judgements import prompt_scores
from rfjax.evaluation.kinds.prompted import check_sampling, latents_of, prompts_of, with_names
from rfjax.evaluation.pictures import write_clips
from rfjax.evaluation.records import make_record, read_records, record_key, record_name, write_record
from rfjax.evaluation.sampler_name import ground_truth_name
from rfjax.evaluation.schedule import Evaluation, Programs, is_due
from rfjax.evaluation.temporal.scores import CEILING, clip_scores, judge_all, look_at, truth_scores
from rfjax.files import write_whole
from rfjax.training.run import Run

SHOWN = 9  # clips to look at, shared out over the tasks
CEILING_CLIPS = 2  # per prompt


def due(config: Config, step: int, last: bool) -> list[tuple[SamplerConfig, dict]]:
    """The config's sampler, at each multiple of `evaluation.temporal.every`."""
    settings = config.evaluation.temporal
    if not settings.prompts_per_task or not is_due(settings.every, step, last):
        return []
    return with_names(config, settings, [config.evaluation.sampler])


def check(run: Run, programs: Programs) -> None:
    """Raises `ConfigError` as `check_sampling` does. A corpus without clips was refused with the config."""
    if run.config.evaluation.temporal.prompts_per_task:
        check_sampling(run, "temporal", [run.config.evaluation.sampler])


def measure(run: Run, programs: Programs, evaluation: Evaluation, params, spent: dict) -> Callable[[], object]:
    began, settings = time.monotonic(), run.config.evaluation.temporal
    prompts, ids, conditions = prompts_of(run, settings)
    # The floor of a model that ignores its prompt: one clip a prompt, under the null condition, from the same noise.
    first = ids[:, 1] == 0
    nothing = Conditions(*map(np.zeros_like, conditions.rows(first)))
    clips, null = (
        run.corpus.to_clips(
            latents_of(run, programs, params, evaluation.sampler, settings, rows, given, f"{run.name} {what}", "clip")
        )
        for rows, given, what in (
            (ids, conditions, f"{evaluation.step} temporal GenEval"),
            (ids[first], nothing, f"{evaluation.step} null condition"),
        )
    )
    return lambda: _write(run, evaluation, prompts, ids, clips, null, spent, began)


def _write(run, evaluation, prompts, ids, clips, null, spent, began):
    """Detects, judges and records, in process 0 alone."""
    settings, own = run.config.evaluation.temporal, ids[:, 0].tolist()
    found = detect_clips(clips)
    seen = look_at(clips, found)
    values = clip_scores(seen, own, prompts, look_at(null), seed=settings.seed)
    judged = [result.as_image() for result in judge_all(seen, [prompts[index] for index in own])]
    extra = {"prompt_scores": prompt_scores(judged), "clips_per_prompt": settings.clips_per_prompt}
    _write_detections(run, evaluation, prompts, ids, found, clips.shape[2])
    _write_pictures(run, evaluation, prompts, ids, clips, spent)
    _write_ceiling(run, settings, prompts)
    seconds = time.monotonic() - began
    write_record(run.workdir, make_record(evaluation.key, values, seconds=seconds, extra=extra, **spent))


def _write_ceiling(run, settings, prompts):
    """Records the scores of ground truth through the detector. No model can be measured above them."""
    key = record_key(
        run=run.name,
        step=-1,
        evaluation=CEILING,
        corpus=run.config.data.label,
        sampler=ground_truth_name((settings.prompts_per_task, CEILING_CLIPS)),
        seed=settings.seed,
    )
    if record_name(key) in {record_name(record["key"]) for record in read_records(run.workdir)}:
        return
    ids = prompt_ids(len(prompts), CEILING_CLIPS)
    # Each clip has its own seed, so that a repeated prompt does not repeat its clip.
    truth = np.stack([run.corpus.render_prompt(prompts[i], n) for n, (i, _) in enumerate(ids)])
    values = truth_scores(look_at(truth), ids[:, 0].tolist(), prompts, seed=settings.seed)
    write_record(run.workdir, make_record(key, values))


def _place(evaluation):
    return f"{evaluation.step}-{evaluation.weights}-{evaluation.key['sampler']}-seed{evaluation.key['seed']}"


def _write_detections(run, evaluation, prompts, ids, found, side):
    """Writes the prompts and the detections as files that `rfjax temporal` scores again."""
    folder = run.workdir / "temporal" / _place(evaluation)
    rows = (
        {"prompt_index": int(i), "sample": int(j), "size": side, "frames": frames}
        for (i, j), frames in zip(ids, found, strict=True)
    )
    write_whole(
        {
            folder / "metadata.jsonl": "".join(json.dumps(row) + "\n" for row in prompts),
            folder / "clips.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        }
    )


def _write_pictures(run, evaluation, prompts, ids, clips, spent):
    """Writes the first clip of the first prompts of each task: as a row that plays, and frame under frame as a still.

    All runs that share prompts and sampler show the same prompts from the same noise.
    """
    tasks = dict.fromkeys(row["tag"] for row in prompts)
    each = max(1, SHOWN // len(tasks))
    chosen = [n for tag in tasks for n in [i for i, row in enumerate(prompts) if row["tag"] == tag][:each]]
    first = {int(i): n for n, (i, j) in enumerate(ids) if j == 0}
    shown = clips[[first[index] for index in chosen]]
    png, webp = (Path("samples") / f"{_place(evaluation)}.{kind}" for kind in ("png", "webp"))
    tile = write_clips(run.workdir / png, run.workdir / webp, shown)
    extra = {"png": str(png), "webp": str(webp), "prompts": [prompts[index]["prompt"] for index in chosen]}
    extra |= {"tile": tile}
    write_record(run.workdir, make_record({**evaluation.key, "evaluation": "samples"}, [], extra=extra, **spent))
