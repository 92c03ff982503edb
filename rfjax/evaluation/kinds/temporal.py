"""Temporal GenEval of a run's checkpoints: strict tasks and soft measures with their floors, in one record.

The ceiling, and the clips to look at, have records of their own. The score's record is written last, because its
presence says that all is done.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

from rfjax.config import Config, SamplerConfig
from rfjax.errors import ConfigError
from rfjax.evaluation.detectors.clips import detect_clips
from rfjax.evaluation.geneval.judgements import prompt_scores
from rfjax.evaluation.kinds.prompted import check_sampling, has_both, latents_of, on_clips, prompts_of, with_names
from rfjax.evaluation.kinds.prompted_records import (
    first_of_tasks,
    null_condition,
    place_of,
    write_ceiling,
    write_detections,
    write_samples,
)
from rfjax.evaluation.pictures import write_clips
from rfjax.evaluation.records import make_record, write_record
from rfjax.evaluation.schedule import Evaluation, Programs, is_due
from rfjax.evaluation.temporal.scores import CEILING, clip_scores, detector_errors, judge_all, look_at, truth_scores
from rfjax.training.run import Run

SHOWN = 9  # clips to look at, shared out over the tasks
CEILING_CLIPS = 2  # per prompt
BESIDE_STILLS = "temporal_samples"  # the evaluation of the record of clips if GenEval may write "samples" of the run


def due(config: Config, step: int, last: bool) -> list[tuple[SamplerConfig, dict]]:
    """Returns [(the config's sampler, fields of the record's key)] at each multiple of `evaluation.temporal.every` and
    at the last step; [] at other steps, and if the config asks for no prompts."""
    settings = config.evaluation.temporal
    if not settings.prompts_per_task or not is_due(settings.every, step, last):
        return []
    return with_names(config, settings, [config.evaluation.sampler])


def check(run: Run, programs: Programs) -> None:
    """Raises `ConfigError` as `check_sampling` does, and for a corpus without clips."""
    run = on_clips(run)
    if run.config.evaluation.temporal.prompts_per_task:
        if run.corpus.shapes.latents[0] == 1:
            given = f"the corpus {run.corpus.name} has stills alone, and temporal GenEval scores clips"
            raise ConfigError(f"{given}; set config.evaluation.temporal.prompts_per_task=0, or add a bucket of clips")
        check_sampling(run, "temporal", [run.config.evaluation.sampler])


def measure(run: Run, programs: Programs, evaluation: Evaluation, params, spent: dict) -> Callable[[], object]:
    stills_too, run = has_both(run), on_clips(run)
    began, settings = time.monotonic(), run.config.evaluation.temporal
    prompts, ids, conditions = prompts_of(run, settings)
    clips, null = (
        run.corpus.to_clips(
            latents_of(run, programs, params, evaluation.sampler, settings, rows, given, f"{run.name} {what}", "clip")
        )
        for rows, given, what in (
            (ids, conditions, f"{evaluation.step} temporal GenEval"),
            (*null_condition(ids, conditions), f"{evaluation.step} null condition"),
        )
    )
    return lambda: _write(run, evaluation, prompts, ids, clips, null, stills_too, spent, began)


def _write(run, evaluation, prompts, ids, clips, null, stills_too, spent, began):
    """Detects, judges and records, in process 0 alone."""
    settings, own = run.config.evaluation.temporal, ids[:, 0].tolist()
    detect = functools.partial(detect_clips, scans=run.corpus.drawn_from.of_scans)
    found = detect(clips)
    seen = look_at(clips, found)
    how = {"world": run.corpus.drawn_from, "seed": settings.seed}
    values = clip_scores(seen, own, prompts, look_at(null, detect(null)), **how)
    judged = [result.as_image() for result in judge_all(seen, [prompts[index] for index in own])]
    extra = {"prompt_scores": prompt_scores(judged), "clips_per_prompt": settings.clips_per_prompt}
    rows = (
        {"prompt_index": int(i), "sample": int(j), "size": clips.shape[2], "frames": frames}
        for (i, j), frames in zip(ids, found, strict=True)
    )
    write_detections(run, "temporal", evaluation, prompts, "clips.jsonl", rows)
    _write_pictures(run, evaluation, prompts, ids, clips, stills_too, spent)

    def ceiling(key, truth, own):
        return make_record(key, truth_scores(look_at(truth, detect(truth)), own, prompts, **how))

    truth = write_ceiling(run, CEILING, settings, prompts, CEILING_CLIPS, ceiling)
    values += detector_errors(truth["values"])
    seconds = time.monotonic() - began
    write_record(run.workdir, make_record(evaluation.key, values, seconds=seconds, extra=extra, **spent))


def _write_pictures(run, evaluation, prompts, ids, clips, stills_too, spent):
    """Writes the first clip of the first prompts of each task, with the clips side by side, in two files: an animated
    WebP, and a PNG that shows the frames of a clip below each other.

    All runs that share prompts and sampler show the same prompts from the same noise. If the run also has stills,
    the files and the record have names of their own: GenEval's samples may have the same sampler and seed.
    """
    each = max(1, SHOWN // len({row["tag"] for row in prompts}))
    shown, rows = first_of_tasks(prompts, ids, each)
    name, end = (BESIDE_STILLS, "-clips") if stills_too else ("samples", "")
    png, webp = (Path("samples") / f"{place_of(evaluation)}{end}.{kind}" for kind in ("png", "webp"))
    tile = write_clips(run.workdir / png, run.workdir / webp, clips[rows])
    write_samples(run, evaluation, {"png": str(png), "webp": str(webp), "prompts": shown, "tile": tile}, spent, name)
