"""Measures how much each run's score drops with fewer sampling steps, and how straight its sampling paths are.

The data are the records of `rfjax eval --sampling-steps`. All numbers of steps share prompts and noise,
so the drop from the reference (the most steps) is paired: for its interval, each resample has the same
prompts for both numbers of steps. SD3 table 6 has the drop of the CLIP score and the path length at 50 steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from rfjax.evaluation.intervals import ENDS
from rfjax.evaluation.sampler_name import SamplerName
from rfjax.laws.correlation import redraw_prompts
from rfjax.results.results_folder import rows_by_run, rows_where

EVALUATION = "sampling_steps"
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """The scores of a run that was sampled with one number of steps. Values that were not measured are nan.

    `drop` is 1 - (score at `steps`) / (score at `reference` steps, the most). It is None if the two numbers of steps
    were not sampled for the same prompts, or if the reference's score is 0.
    """

    run: str
    depth: int | None
    params: int | None
    steps: int
    reference: int
    settings: str  # the sampler without its steps
    score: float
    score_low: float
    score_high: float
    drop: float | None
    drop_low: float | None
    drop_high: float | None
    path_length: float  # mean over images of the sum over steps of the latent's change, as a Euclidean norm
    path_length_stderr: float
    distance: float  # root mean square difference of latents from the reference's


def step_counts(
    long: pd.DataFrame, prompts: pd.DataFrame, *, weights: str = "ema", resamples: int = RESAMPLES, seed: int = 0
) -> tuple[StepCount, ...]:
    """Collects the scores of all final checkpoints that were sampled with several numbers of steps, sorted by depth,
    run and steps."""
    rows = rows_where(long, evaluation=EVALUATION, weights=weights, final=1)
    prompts = rows_by_run(rows_where(prompts, weights=weights, evaluation=EVALUATION))
    found = []
    for (run, sampler, at), group in rows.groupby(["run", "sampler", "evaluation_seed"], sort=True):
        name = SamplerName.parse(sampler)
        if name is None or name.reference is None:
            continue
        values = {(row.metric, row.item): row for row in group.itertuples()}
        reference = replace(name, steps=name.reference).format()
        step = group["step"].iloc[0]
        drop, drop_low, drop_high = _drop(prompts(run), step, at, sampler, reference, resamples, seed)
        score = values["sampling", "overall"]
        length, distance = values["sampling_path_length", "mean"], values["sampling_distance", "mean"]
        depth, params = (None if pd.isna(group[c].iloc[0]) else int(group[c].iloc[0]) for c in ("depth", "params"))
        found.append(
            StepCount(
                run=run,
                depth=depth,
                params=params,
                steps=name.steps,
                reference=name.reference,
                settings=name.settings,
                score=score.value,
                score_low=score.low,
                score_high=score.high,
                drop=drop,
                drop_low=drop_low,
                drop_high=drop_high,
                path_length=length.value,
                path_length_stderr=length.stderr,
                distance=distance.value,
            )
        )
    return tuple(sorted(found, key=lambda one: (one.depth or 0, one.run, one.settings, one.reference, one.steps)))


def _drop(prompts, step, seed_of_images, sampler, reference, resamples, seed):
    """Returns (drop, low, high): 1 - (the overall score) / (the reference's), with the ends of its interval. All are
    None if the prompts are not the same for both, or if the reference's score is 0."""
    own = rows_where(prompts, step=step, evaluation_seed=seed_of_images)
    counts = [own[own["sampler"] == name].set_index("prompt").sort_index() for name in (sampler, reference)]
    if counts[0].empty or not counts[0].index.equals(counts[1].index):
        return None, None, None
    correct, images = (np.stack([c[name].to_numpy(float) for c in counts]) for name in ("correct", "samples"))
    tasks = counts[0]["task"].tolist()
    by_task = [np.array(tasks) == task for task in dict.fromkeys(tasks)]
    point = [np.mean([correct[i, mine].sum() / images[i, mine].sum() for mine in by_task]) for i in (0, 1)]
    if point[1] == 0:
        return None, None, None
    drawn = redraw_prompts(tasks, correct, images, resamples=resamples, seed=seed)["overall"]
    drops = 1 - drawn[:, 0] / np.where(drawn[:, 1] > 0, drawn[:, 1], np.nan)
    low, high = np.nanquantile(drops, ENDS)
    return float(1 - point[0] / point[1]), float(low), float(high)
