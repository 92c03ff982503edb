"""Makes a checkpoint's images for its corpus's evaluation prompts, for GenEval and for a ranking's controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rfjax.config import GenEvalConfig, RankingConfig, SamplerConfig
from rfjax.data.batch import Conditions
from rfjax.evaluation.detectors import detector_for
from rfjax.evaluation.generate import check_batch_size, compile_sampler, generator_of, prompt_ids
from rfjax.evaluation.sampler_name import SamplerName
from rfjax.evaluation.schedule import Programs
from rfjax.flow.samplers import sampling_levels
from rfjax.training.progress import bar
from rfjax.training.run import Run

Settings = GenEvalConfig | RankingConfig


def with_names(config, settings: Settings, samplers: Sequence[SamplerConfig]) -> list[tuple[SamplerConfig, dict]]:
    """Returns (sampler, {"sampler": its name}) for each sampler; the dict is part of a record's key."""
    images = settings.prompts_per_task, settings.images_per_prompt
    return [(each, {"sampler": SamplerName.of(config, each, images=images).format()}) for each in samplers]


def check_images(run: Run, kind: str, samplers: Sequence[SamplerConfig]) -> None:
    """Raises `ConfigError` for a sampler that the formulation does not allow, for batches that cannot be split over the
    devices, and for a corpus without a detector."""
    for sampler in samplers:
        sampling_levels(run.formulation, sampler.steps, sampler.sigmas)
    check_batch_size(run, kind)
    detector_for(run.corpus)


def prompts_of(run: Run, settings: Settings) -> tuple[list[dict], Int[np.ndarray, "images 2"], Conditions]:
    """Returns (prompts, (prompt index, sample) of each image, conditions of each image)."""
    prompts = run.corpus.evaluation_prompts(settings.prompts_per_task, settings.seed)
    ids = prompt_ids(len(prompts), settings.images_per_prompt)
    return prompts, ids, run.corpus.encode([row["prompt"] for row in prompts]).rows(ids[:, 0])


def images_of(
    run: Run, programs: Programs, params, sampler: SamplerConfig, settings: Settings, ids, conditions, label: str
) -> np.ndarray:
    """Images [n, h, w, 3] for the rows of `ids`, each from its own noise. `label` is the text of the progress bar."""
    size = settings.batch_size
    if (sampler, size) not in programs:
        programs[sampler, size] = compile_sampler(
            run.backbone.apply, sampler, run.corpus.shapes.latents, batch_sharding=run.batch_sharding
        )
    generate = generator_of(run, sampler, size, program=programs[sampler, size])
    with bar(len(ids), label, "image") as shown:
        latents = generate(
            params, settings.seed, ids, conditions, progress=lambda done, _: shown.update(done - shown.n)
        )
    return run.corpus.to_images(latents)
