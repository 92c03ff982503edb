"""Finds the noise level whose loss predicts the score best.

The validation loss is a mean over levels of t; the loss at a single level may also predict the score. Levels
are compared by the correlation of their loss with the score over runs. A bootstrap over runs, and over the prompts
that they share, gives the share of resamples in which each level is the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rfjax.errors import ConfigError
from rfjax.laws.correlation import COEFFICIENTS, MIN_RUNS_FOR_INTERVAL, Coefficient, correlate, resampled_runs
from rfjax.laws.score_links import left_out_rms
from rfjax.results.many_runs import FOLDS, are_many
from rfjax.results.plain import plain

RANKED_BY = "Pearson of arcsine √score"


@dataclass(frozen=True, kw_only=True)
class Level:
    """How closely the score follows the loss at one level of t, over runs."""

    t: float
    coefficients: tuple[Coefficient, ...]
    left_out_rms: float | None  # rms error of the score that the logistic link predicts for each run from the others
    share_first: float | None  # share of resamples in which the score follows this level's loss most closely
    folds: int | None = None  # the number of folds in which runs were left out; None if there were no folds

    def to_json(self) -> dict:
        content = vars(self)
        return plain(content if self.folds else {name: content[name] for name in content if name != "folds"})


def by_level(
    losses: Mapping[float, Float[np.ndarray, " runs"]],
    score: Float[np.ndarray, " runs"],
    *,
    redrawn: Float[np.ndarray, "resamples runs"] | None = None,
    trunks: Int[np.ndarray, " runs"] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Level, ...]:
    """Correlates the score with the loss at each level of t, and predicts the score from that loss. The levels are the
    keys of `losses`. Returns a `Level` for each, in order of t.

    `redrawn` has the scores under redraws of the prompts, and `trunks` the number of each run's trunk, as in
    `correlation.correlate`. A run is predicted only from runs of other trunks. Raises `ConfigError` for levels without
    a loss for every run.
    """
    score = np.asarray(score, float)
    ts = sorted(losses)
    for t in ts:
        if np.shape(losses[t]) != score.shape or not np.isfinite(losses[t]).all():
            raise ConfigError(f"the loss at t={t:g} is not there for all {len(score)} runs")
    how = {"redrawn": redrawn, "trunks": trunks, "resamples": resamples, "seed": seed}
    found = {t: correlate(losses[t], score, **how).coefficients for t in ts}
    first = dict.fromkeys(ts)
    units = len(score) if trunks is None else len(np.unique(trunks))
    if units >= MIN_RUNS_FOR_INTERVAL and ts and all(found.values()):
        chosen = resampled_runs(len(score), resamples, np.random.default_rng(seed), trunks)
        scores = score[chosen] if redrawn is None else np.take_along_axis(redrawn, chosen, axis=1)
        of_loss, of_score, coefficient, _ = COEFFICIENTS[RANKED_BY]
        values = np.stack([-coefficient(of_loss(np.asarray(losses[t])[chosen]), of_score(scores)) for t in ts])
        values = values[:, np.isfinite(values).all(axis=0)]
        # Levels that tie share the first place.
        top = values >= values.max(axis=0) - 1e-12
        shares = (top / top.sum(axis=0)).mean(axis=1) if values.shape[1] else np.full(len(ts), np.nan)
        first = {t: float(share) if np.isfinite(share) else None for t, share in zip(ts, shares, strict=True)}
    rms = {t: left_out_rms(losses[t], score, trunks=trunks) for t in ts}
    folds = FOLDS if are_many(len(score)) else None
    return tuple(Level(t=t, coefficients=found[t], left_out_rms=rms[t], share_first=first[t], folds=folds) for t in ts)
