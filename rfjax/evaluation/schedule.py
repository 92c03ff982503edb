"""Which evaluations a config asks for at a step of its run, and under which key each is recorded. No JAX here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rfjax.config import Config, SamplerConfig
from rfjax.evaluation.paired_loss import grid_name
from rfjax.evaluation.records import record_key
from rfjax.evaluation.sampler_name import SamplerName
from rfjax.limits import sampler_setting


@dataclass(frozen=True)
class Evaluation:
    """One thing to measure: `kind` at `step` with `weights`, under the record's `key`."""

    kind: str
    step: int
    weights: str
    key: Mapping[str, object]
    sampler: SamplerConfig | None = None  # of those that sample


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
        images = settings.prompts_per_task, settings.images_per_prompt
        return SamplerName.of(config, sampler, images=images).format()

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
