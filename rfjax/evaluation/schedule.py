"""Which evaluations a config asks for at a step of its run, and under which key each is recorded. No JAX here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rfjax.config import Config, SamplerConfig
from rfjax.evaluation.paired_loss import grid_name
from rfjax.evaluation.records import record_key
from rfjax.limits import sampler_setting


@dataclass(frozen=True)
class Evaluation:
    """One thing to measure: `kind` at `step` with `weights`, under the record's `key`."""

    kind: str
    step: int
    weights: str
    key: Mapping[str, object]
    sampler: SamplerConfig | None = None  # of those that sample


def sampler_name(sampler: SamplerConfig, timestep_shift: float, by_area: bool = False) -> str:
    """The sampler as it is recorded beside every score: as "euler-50-cfg5-shift3", or where the shift goes `by_area`
    as "euler-50-cfg5-shift3-by-area", of which 3 is that at `image_size`."""
    area = "-by-area" if by_area else ""
    sigmas = "" if sampler.sigmas == "uniform" else f"-{sampler.sigmas}"
    return f"{sampler.method}-{sampler.steps}-cfg{sampler.guidance_scale:g}-shift{timestep_shift:g}{area}{sigmas}"


def due_at(
    config: Config, run: str, step: int, *, everything: bool = False, only: str | None = None
) -> list[Evaluation]:
    """What the config asks to be measured at a step; the last step, or `everything`, gets it all.

    `only` names the one set of weights to measure, whatever the config lists.
    """
    evaluation, last = config.evaluation, everything or step == config.train.steps
    due = []

    def add(kind, settings, weights, by=None, **key):
        key = record_key(
            run=run, step=step, corpus=config.data.label, weights=weights, evaluation=kind, seed=settings.seed, **key
        )
        due.append(Evaluation(kind, step, weights, key, by))

    def named(sampler, settings):
        images = f"{settings.prompts_per_task}x{settings.images_per_prompt}"
        return f"{sampler_name(sampler, config.timestep_shift, config.timestep_shift_by_area)}-{images}"

    validation, geneval, ranking = evaluation.validation, evaluation.geneval, evaluation.ranking
    if validation.examples and (last or (evaluation.every and step % evaluation.every == 0)):
        # The number of examples belongs to the grid: a loss over others is not comparable.
        grid = f"{grid_name(validation.grid, validation.levels)}-n{validation.examples}"
        for weights in (only,) if only else evaluation.weights:
            add("validation", validation, weights, grid=grid)
    if geneval.prompts_per_task and (last or (evaluation.geneval_every and step % evaluation.geneval_every == 0)):
        for weights in (only,) if only else geneval.weights:
            add("geneval", geneval, weights, evaluation.sampler, sampler=named(evaluation.sampler, geneval))
    if ranking.prompts_per_task and last:
        for weights in (only,) if only else ranking.weights:
            for steps, guidance in map(sampler_setting, ranking.samplers):
                sampler = replace(evaluation.sampler, steps=steps, guidance_scale=guidance)
                add("ranking", ranking, weights, sampler, sampler=named(sampler, ranking))
    return due
