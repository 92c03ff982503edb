"""A made-up study of variants on disk: every control's record drawn from planted qualities."""

import numpy as np

from helpers import planted_study
from rfjax.evaluation import records
from rfjax.evaluation.control_measures import (
    ALIGNMENT,
    DISTANCE,
    EVALUATION,
    REPLICATES,
    resamples_of_prompts,
    shifted_interval,
)

TASKS = planted_study.TASKS
PER_TASK, EACH, RESAMPLES = 10, 4, 200
SAMPLERS = ((50, 1.0), (50, 2.5), (50, 5.0), (5, 5.0), (10, 5.0), (25, 5.0))


def sampler_name(steps, guidance):
    return f"euler-{steps}-cfg{guidance:g}-shift1-{PER_TASK}x{EACH}"


def control_record(
    run, alignment, distance, *, corpus, weights, steps, guidance, scatter=1.0, step=500, noise=0, **changes
):
    """A record whose measures are the planted ones, with prompts that scatter about them.

    What a prompt does is shared by all runs (its difficulty) and by `noise` of the run's own.
    """
    weights_of_prompts = resamples_of_prompts([PER_TASK] * 6, 0, RESAMPLES) / PER_TASK
    rng, own = (
        np.random.default_rng([len(corpus), steps]),
        np.random.default_rng([hash_of(run), noise, steps, int(10 * guidance), len(weights)]),
    )
    hard, far = scatter * rng.normal(size=(2, 60)), scatter * own.normal(size=(2, 60))

    def with_mean(effects, mean):  # exactly, so that a planted order is the measured one
        return mean + effects - effects.mean() * (noise == 0)

    right = with_mean(0.08 * hard[0] + 0.04 * far[0], alignment)
    away = with_mean(0.8 * hard[1] + 0.4 * far[1], distance)
    replicates = {
        ALIGNMENT: weights_of_prompts @ right / 6,
        DISTANCE: weights_of_prompts @ away / 6 + 0.7,  # resamples lie farther away
    }
    values = []
    for metric, items in ((ALIGNMENT, ("overall", *TASKS)), (DISTANCE, ("overall", "ground_truth"))):
        for item in items:
            value = float(np.mean(right if metric == ALIGNMENT else away)) if item != "ground_truth" else 1.0
            low, high = shifted_interval(value, replicates[metric])
            values.append(
                records.Measured(
                    metric=metric,
                    item=item,
                    value=value,
                    stderr=float(replicates[metric].std()),
                    low=low,
                    high=high,
                    n=240,
                )
            )
    key = records.record_key(
        run=run, step=step, evaluation=EVALUATION, corpus=corpus, weights=weights, sampler=sampler_name(steps, guidance)
    )
    extra = {
        "prompt_scores": [[task, 2, EACH] for task in TASKS for _ in range(PER_TASK)],
        "images_per_prompt": EACH,
        "not_finite": 0,
        "replicates": {REPLICATES[metric]: values.tolist() for metric, values in replicates.items()},
        "feature_map": "planted-1",
        "reference": {"corpus_split": "validation", "n": 4096, "sha1": f"real {corpus}"},
    }
    return records.make_record(key, values, images=32_000, flops=1e12, seconds=2.0, extra=extra | changes)


def hash_of(name):
    return int.from_bytes(name.encode()[-6:], "big")


def write_variant(
    root, formulation, quality, *, corpora=("shapes", "digits"), skip=(), state="done", scored=True, loss=0.1, **options
):
    """A run per corpus of one formulation. `quality(corpus, weights, steps, guidance) -> (alignment, distance)`;
    `skip` holds (corpus, weights, steps, guidance) without a record."""
    folders = []
    for corpus in corpora:
        run = f"{corpus}-{formulation}".replace("/", "_")
        folder = root / run
        planted_study.write_json(
            folder / "run.json", planted_study.facts(run, 2, 500, corpus=corpus, corpus_fingerprint=f"seen {corpus}")
        )
        planted_study.write_json(folder / "config.json", {"formulation": formulation, "model": {"backbone": "mmdit"}})
        planted_study.write_json(folder / "status.json", {"state": state, "step": 500, "message": ""})
        folders.append(folder)
        if not scored:
            continue
        losses = planted_study.loss_values(loss + 0.5 * (corpus == "digits"))
        at = {"corpus": corpus, "weights": "ema", "grid": "paper-8", "images": 32_000, "flops": 1e12}
        planted_study.put(folder, run, 500, "validation", losses, **at)
        for weights in ("ema", "raw"):
            for steps, guidance in SAMPLERS:
                place = (corpus, weights, steps, guidance)
                if place not in skip:
                    where = {"corpus": corpus, "weights": weights, "steps": steps, "guidance": guidance}
                    records.write_record(folder, control_record(run, *quality(*place), **where, **options))
    return folders
