"""The measures by which a run's last checkpoint is ranked, one record for each control."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from rfjax.config import Config, SamplerConfig
from rfjax.config_rules import sampler_setting
from rfjax.evaluation.control_measures import ranking_record
from rfjax.evaluation.kinds.prompted import check_images, images_of, on_stills, prompts_of, with_names
from rfjax.evaluation.records import write_record
from rfjax.evaluation.schedule import Evaluation, Programs
from rfjax.training.run import Run


def due(config: Config, step: int, last: bool) -> list[tuple[SamplerConfig, dict]]:
    """Returns [(sampler, fields of the record's key)] of the measurements for a ranking that are due at a step: one for
    each of the ranking's samplers at the run's last step, none at other steps or if the config asks for no prompts."""
    settings, base = config.evaluation.ranking, config.evaluation.sampler
    asked = map(sampler_setting, settings.samplers if settings.prompts_per_task and last else ())
    return with_names(config, settings, [replace(base, steps=steps, guidance_scale=scale) for steps, scale in asked])


def check(run: Run, programs: Programs) -> None:
    """Raises `ConfigError` as `check_images` does."""
    run = on_stills(run)
    if run.config.evaluation.ranking.prompts_per_task:
        check_images(run, "ranking", [sampler for sampler, _ in due(run.config, run.config.train.steps, True)])


def measure(run: Run, programs: Programs, evaluation: Evaluation, params, spent: dict) -> Callable[[], object]:
    run = on_stills(run)
    began, settings = time.monotonic(), run.config.evaluation.ranking
    prompts, ids, conditions = prompts_of(run, settings)
    label = f"{run.name} {evaluation.key['sampler']}"
    images = images_of(run, programs, params, evaluation.sampler, settings, ids, conditions, label)

    def write():
        record = ranking_record(evaluation.key, images, ids, prompts, run.corpus, seed=settings.seed, **spent)
        write_record(run.workdir, record | {"seconds": time.monotonic() - began})

    return write
