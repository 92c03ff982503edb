"""Makes a checkpoint's images or clips for its corpus's evaluation prompts: for GenEval, for a ranking's controls, and
for temporal GenEval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rfjax.config import GenEvalConfig, RankingConfig, SamplerConfig, TemporalConfig
from rfjax.data.batch import Conditions
from rfjax.evaluation.detectors import detector_for
from rfjax.evaluation.generate import check_batch_size, compile_sampler, generator_of, prompt_ids
from rfjax.evaluation.guide import guide_of
from rfjax.evaluation.sampler_name import SamplerName
from rfjax.evaluation.schedule import Programs
from rfjax.flow.samplers import sampling_levels
from rfjax.training.progress import bar
from rfjax.training.run import Run

Settings = GenEvalConfig | RankingConfig | TemporalConfig


def has_both(run: Run) -> bool:
    """Whether the run's corpus has stills and clips, so that both GenEval and temporal GenEval can score the run."""
    frames = [part.shapes.latents[0] for part in run.corpus.parts]
    return 1 in frames and max(frames) > 1


def on_stills(run: Run) -> Run:
    """Returns the run restricted to the part of its corpus whose images are sampled: the first part whose latents have
    one frame.

    The run itself is returned if no part has one frame, or if all parts have one frame.
    """
    frames = [part.shapes.latents[0] for part in run.corpus.parts]
    return run.on_part(frames.index(1)) if has_both(run) else run


def on_clips(run: Run) -> Run:
    """Returns the run restricted to the part of its corpus whose clips are sampled: the first part whose latents have
    several frames.

    The run itself is returned if there is no such part.
    """
    clips = [number for number, part in enumerate(run.corpus.parts) if part.shapes.latents[0] > 1]
    return run.on_part(clips[0]) if clips else run


def samples_per_prompt(settings: Settings) -> int:
    """The number of images, or of clips, that are sampled for each prompt."""
    return settings.clips_per_prompt if isinstance(settings, TemporalConfig) else settings.images_per_prompt


def with_names(config, settings: Settings, samplers: Sequence[SamplerConfig]) -> list[tuple[SamplerConfig, dict]]:
    """Returns (sampler, {"sampler": its name}) for each sampler; the dict is part of a record's key."""
    images = settings.prompts_per_task, samples_per_prompt(settings)
    return [(each, {"sampler": SamplerName.of(config, each, images=images).format()}) for each in samplers]


def check_sampling(run: Run, kind: str, samplers: Sequence[SamplerConfig]) -> None:
    """Raises `ConfigError` for a sampler that the formulation does not allow, for a guide that is not there or does not
    fit, and for batches that cannot be split over the devices."""
    for sampler in samplers:
        sampling_levels(run.formulation, sampler.steps, sampler.sigmas)
        guide_of(run, sampler)
    check_batch_size(run.config, kind, run.batch_ways)


def check_images(run: Run, kind: str, samplers: Sequence[SamplerConfig]) -> None:
    """Raises `ConfigError` as `check_sampling` does, and for a corpus without a detector of images."""
    check_sampling(run, kind, samplers)
    detector_for(run.corpus)


def prompts_of(run: Run, settings: Settings) -> tuple[list[dict], Int[np.ndarray, "images 2"], Conditions]:
    """Returns (prompts, (prompt index, sample) of each image, conditions of each image)."""
    prompts = run.corpus.evaluation_prompts(settings.prompts_per_task, settings.seed)
    ids = prompt_ids(len(prompts), samples_per_prompt(settings))
    return prompts, ids, run.corpus.encode([row["prompt"] for row in prompts]).rows(ids[:, 0])


def images_of(
    run: Run, programs: Programs, params, sampler: SamplerConfig, settings: Settings, ids, conditions, label: str
) -> np.ndarray:
    """Samples images [n, h, w, 3], one for each row of `ids`, each from its own noise. `label` is the text of the
    progress bar."""
    return run.corpus.to_images(latents_of(run, programs, params, sampler, settings, ids, conditions, label))


def latents_of(
    run: Run,
    programs: Programs,
    params,
    sampler: SamplerConfig,
    settings: Settings,
    ids,
    conditions,
    label: str,
    unit: str = "image",
) -> np.ndarray:
    """Samples latents [n, frames, h, w, channels], one for each row of `ids`, with the arguments of `images_of`. `unit`
    is what the progress bar counts."""
    size = settings.batch_size
    latents = run.corpus.shapes.latents
    purpose = sampler, size, latents
    if purpose not in programs:
        programs[purpose] = compile_sampler(
            run.backbone.apply,
            sampler,
            latents,
            guide=guide_of(run, sampler),
            batch_sharding=run.batch_sharding,
        )
    generate = generator_of(run, sampler, size, program=programs[purpose])
    with bar(len(ids), label, unit) as shown:
        return generate(params, settings.seed, ids, conditions, progress=lambda done, _: shown.update(done - shown.n))
