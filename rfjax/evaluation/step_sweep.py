"""How few sampling steps a model needs: scores, path length and distance at several counts of steps.

This repeats SD3's table 6. Every count has the same prompts and the same noise, so that differences between counts are
paired. The largest count is the reference, with which the smaller counts are compared. Each count has a record of the
evaluation "sampling_steps", in which the sampler's name ends in `-of<the reference's steps>`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation.detectors import detector_for
from rfjax.evaluation.generate import check_batch_size, generator_of
from rfjax.evaluation.geneval import rules
from rfjax.evaluation.geneval.judgements import judge_rows, prompt_scores
from rfjax.evaluation.kinds.prompted import on_stills, prompts_of
from rfjax.evaluation.records import (
    Measured,
    check_may_record,
    check_still_run,
    geneval_record,
    record_key,
    write_record,
)
from rfjax.evaluation.sampler_name import SamplerName
from rfjax.limits import RANGES
from rfjax.training.checkpoint import read_facts, spent
from rfjax.training.processes import distributed
from rfjax.training.progress import bar
from rfjax.training.run import open_run

EVALUATION = "sampling_steps"


def parse_steps(text: str) -> tuple[int, ...]:
    """Reads the counts of steps in a text such as "5,10,20,50"; returns them in rising order and without repeats.
    Raises `ConfigError` for anything but positive integers, for fewer than two different counts, and for a count that
    is too large."""
    try:
        counts = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        counts = ()
    if len(counts) < 2 or counts[0] < 1:
        raise ConfigError(f"--sampling-steps is {text!r}; give two or more counts, for example 5,10,20,50")
    allowed = RANGES["evaluation.sampler.steps"]
    if counts[-1] not in allowed:
        raise ConfigError(f"--sampling-steps has {counts[-1]}; a count must be {allowed}")
    return counts


def measure_sampling_steps(
    workdir: Path, overrides: Mapping[str, object], counts: Sequence[int], *, step: int | None, weights: str
) -> list[dict]:
    """Measures one checkpoint at each count of sampling steps. Writes a record for each count, and returns the records,
    the smallest count first.

    A run on stills and clips is measured on its stills, as GenEval measures it.

    The metrics are "sampling" (GenEval, overall and per task), "sampling_path_length" and "sampling_distance". A
    latent's path length is the sum over steps of the norm of the latent's move in the step. A latent's distance is the
    root mean square, over its elements, of the difference from the latent that was sampled with the most steps. Both
    metrics are means over images.
    """
    run = on_stills(open_run(workdir, overrides))
    distributed.from_first(lambda: check_may_record(run.workdir))
    step = run.choose_step(step)
    evaluation, reference = run.config.evaluation, max(counts)
    settings = evaluation.geneval
    if not settings.prompts_per_task:
        raise ConfigError(
            "config.evaluation.geneval.prompts_per_task is 0, so there are no prompts to sample; set it to 1 or more"
        )
    check_batch_size(run.config, "geneval", run.batch_ways)
    prompts, ids, conditions = prompts_of(run, settings)
    detect = detector_for(run.corpus)
    cost = spent(read_facts(run.workdir, step))
    images = settings.prompts_per_task, settings.images_per_prompt
    records, target = [], None
    with run.computing():
        params = run.restore_params(step, weights)
        for count in sorted(counts, reverse=True):  # the reference comes first
            began = time.monotonic()
            sampler = replace(evaluation.sampler, steps=count)
            generate = generator_of(run, sampler, settings.batch_size, path_length=True)
            with bar(len(ids), f"{run.name} {count} steps", "image") as shown:
                latents, lengths = generate(
                    params, settings.seed, ids, conditions, progress=lambda done, _, bar=shown: bar.update(done - bar.n)
                )
            target = latents if target is None else target
            distances = np.sqrt(np.square(latents.astype(np.float64) - target).reshape(len(ids), -1).mean(axis=1))
            judged = judge_rows(detect(run.corpus.to_images(latents)), [prompts[index] for index in ids[:, 0]])
            key = record_key(
                run=run.name,
                step=step,
                evaluation=EVALUATION,
                corpus=run.config.data.label,
                weights=weights,
                sampler=SamplerName.of(run.config, sampler, images=images, reference=reference).format(),
                seed=settings.seed,
            )
            record = geneval_record(
                key,
                {"sampling": rules.score(judged)},
                [_mean("sampling_path_length", lengths), _mean("sampling_distance", distances)],
                extra={"prompt_scores": prompt_scores(judged)},
                seconds=time.monotonic() - began,
                **cost,
            )
            if distributed.is_first():
                check_still_run(run.workdir)
                write_record(run.workdir, record)
            records.append(record)
    return records[::-1]


def _mean(metric, values):
    """The mean over images, with its interval."""
    mean = float(np.mean(values))
    if not math.isfinite(mean):
        raise RfjaxError(f"{metric} is {mean}: the network's samples are not finite; measure an earlier step")
    stderr = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.nan
    return Measured.within(metric=metric, value=mean, stderr=stderr, n=len(values))
