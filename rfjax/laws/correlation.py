"""Correlates the validation loss with a score over runs, with p-values and intervals that are valid for few runs.

p-values are two-sided and by permutation, over all n! orders if n is small. With four runs in perfect order, p of a
rank correlation is 2/4! = 0.083; Student's t would give 0. (Pearson's p may be 1/4!, because the reverse order need not
be as extreme.) Intervals are by bootstrap over runs, and over whole trunks where runs share them. With results by
prompt the bootstrap has a second level: the prompts, which all runs share, are also redrawn, once for all runs, and the
images of a prompt stay together. With many runs (`rfjax.results.many_runs`) p-values come from the coefficients'
asymptotic distributions, which are accurate there.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy import stats

from rfjax.errors import ConfigError
from rfjax.evaluation.intervals import ENDS
from rfjax.laws.rank_correlation import kendall, kendall_p
from rfjax.laws.resampling import MIN_RUNS_TO_RESAMPLE
from rfjax.laws.trunks import are_shared
from rfjax.results.many_runs import MANY_RUNS, are_many
from rfjax.results.results_folder import rows_where

MAX_ENUMERATED = 9  # 9! = 362,880 orders
PERMUTATIONS = 20_000  # random orders, for more runs than that
CHUNK = 4_000_000  # numbers of reordered runs at a time, to bound memory
RESAMPLES = 2000
MIN_RUNS = 3
MIN_RUNS_FOR_INTERVAL = 4


@dataclass(frozen=True, kw_only=True)
class Coefficient:
    """A correlation coefficient with its p-value and its interval. `low` and `high` are None if there are too few runs,
    or if losses or scores are constant in half of the resamples or more."""

    name: str
    value: float
    p: float  # two-sided p-value of the hypothesis that loss and score are not associated
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Coefficients over `n` runs. If nothing can be correlated, `coefficients` is empty and `reason` says why."""

    n: int
    coefficients: tuple[Coefficient, ...]
    p_method: str
    interval_method: str
    reason: str = ""


def _arcsine(score):
    """Returns the arcsine of the square root of `score`, a fraction. The sampling noise of the result hardly depends on
    the fraction."""
    return np.arcsin(np.sqrt(np.clip(score, 0.0, 1.0)))


def _pearson(x, y):
    """Returns Pearson's coefficient along the last axis; NaN where x or y is constant."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        # What is constant up to rounding counts as constant.
        return np.where(scale > 1e-14, np.clip((x * y).sum(-1) / scale, -1, 1), np.nan)


def student_p(value: float, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Returns the two-sided p-value of `value`, Pearson's or Spearman's coefficient r. Without an association of x and
    y, r sqrt((n - 2) / (1 - r^2)) follows Student's t with n - 2 degrees of freedom (Kendall and Stuart 1973, sections
    26.13 and 31.19)."""
    freedom = len(x) - 2
    with np.errstate(divide="ignore"):  # a perfect correlation has p = 0
        t = abs(value) * np.sqrt(freedom / np.maximum(1 - value**2, 0.0))
    return float(2 * stats.t.sf(t, freedom))


_RANKS = partial(stats.rankdata, axis=-1)
# name: (transform of the loss, of the score, coefficient along the last axis, p of the coefficient for many runs)
COEFFICIENTS: dict[str, tuple[Callable, Callable, Callable, Callable]] = {
    "Pearson": (np.asarray, np.asarray, _pearson, student_p),
    "Pearson of arcsine √score": (np.asarray, _arcsine, _pearson, student_p),
    "Spearman": (_RANKS, _RANKS, _pearson, student_p),
    "Kendall": (np.asarray, np.asarray, kendall, kendall_p),
}
ASYMPTOTIC = f"two-sided, by the limits for more than {MANY_RUNS} runs: Student's t with n − 2 degrees of freedom; for \
Kendall's tau, the normal distribution with a variance that allows for ties"
FRACTIONS_ONLY = ("Pearson of arcsine √score",)  # left out if a score is outside [0, 1]


def correlate(
    loss: ArrayLike,
    score: ArrayLike,
    *,
    redrawn: Float[np.ndarray, "resamples runs"] | None = None,
    trunks: Int[np.ndarray, " runs"] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Correlation:
    """Correlates `loss` with `score` (a fraction, or another number such as FID); each has one value per run.

    `redrawn` holds the scores under `resamples` redraws of the prompts (`redraw_prompts`), for the second level of the
    bootstrap. `trunks` are the numbers of the runs' trunks (`rfjax.laws.trunks`): where runs share them, intervals
    resample whole trunks, and `p_method` says that p is optimistic.

    Raises `ConfigError` for arrays of different length or values that are not finite.
    """
    loss, score = check_pairs(loss, score)
    n = len(loss)
    few = f"{n} run{'s'[: n != 1]} with both a loss and a score; at least {MIN_RUNS} are needed"
    if reason := few if n < MIN_RUNS else constant_reason(loss, score):
        return Correlation(n=n, coefficients=(), p_method="", interval_method="", reason=reason)

    rng = np.random.default_rng(seed)
    orders, p_method = (None, ASYMPTOTIC) if are_many(n) else permutation_orders(n, rng)
    if redrawn is not None and redrawn.shape != (resamples, n):
        raise ConfigError(f"redrawn scores have shape {redrawn.shape}; they must be {(resamples, n)}")
    resampled, interval_method = _resample(loss, score, redrawn, resamples, rng, trunks)
    if trunks is not None and are_shared(trunks):
        p_method += f"; optimistic, as the runs are branches of {len(np.unique(trunks))} trunks"
    coefficients = []
    fraction = bool((score >= 0).all() and (score <= 1).all())
    for name, (of_loss, of_score, coefficient, limit_p) in COEFFICIENTS.items():
        if name in FRACTIONS_ONLY and not fraction:
            continue
        x, y = of_loss(loss), of_score(score)
        value = float(coefficient(x, y))
        if orders is None:
            p = limit_p(value, x, y)
        else:
            # An order whose coefficient is exactly as large as the one seen counts as extreme, too.
            pieces = np.array_split(orders, max(1, len(orders) * n // CHUNK))
            p = permutation_p(value, np.concatenate([coefficient(x[None], y[piece]) for piece in pieces]), n)
        low = high = None
        if resampled is not None:
            drawn = coefficient(of_loss(resampled[0]), of_score(resampled[1]))
            drawn = drawn[np.isfinite(drawn)]  # a resample whose runs all score the same has no coefficient
            if len(drawn) > resamples / 2:
                low, high = (float(q) for q in np.quantile(drawn, ENDS))
        coefficients.append(Coefficient(name=name, value=value, p=p, low=low, high=high))
    return Correlation(n=n, coefficients=tuple(coefficients), p_method=p_method, interval_method=interval_method)


def check_pairs(loss: ArrayLike, score: ArrayLike) -> tuple[Float[np.ndarray, " runs"], Float[np.ndarray, " runs"]]:
    """Returns losses and scores as arrays. Raises `ConfigError` unless there is one finite value of each per run."""
    loss, score = np.asarray(loss, float), np.asarray(score, float)
    if loss.shape != score.shape or loss.ndim != 1:
        raise ConfigError(f"{loss.size} losses and {score.size} scores; give one of each per run")
    if not (np.isfinite(loss).all() and np.isfinite(score).all()):
        raise ConfigError("a loss or score is not finite; drop that run first")
    return loss, score


def constant_reason(loss: Float[np.ndarray, " runs"], score: Float[np.ndarray, " runs"]) -> str:
    """Returns the reason why nothing can be correlated if losses or scores do not vary; "" if both vary."""
    constant = [name for name, values in (("loss", loss), ("score", score)) if np.ptp(values) == 0]
    return f"all runs have the same {constant[0]}" if constant else ""


def permutation_p(value: float, reordered: Float[np.ndarray, " orders"], n: int) -> float:
    """Returns the two-sided p-value of a coefficient by permutation, which is exact if all n! orders are used.

    `reordered` has the coefficients under the orders of `permutation_orders`.
    """
    as_extreme = np.abs(reordered) >= abs(value) - 1e-12
    exact = len(reordered) == math.factorial(n)
    return float(as_extreme.mean() if exact else (as_extreme.sum() + 1) / (len(reordered) + 1))


def permutation_orders(n: int, rng: np.random.Generator) -> tuple[Int[np.ndarray, "orders n"], str]:
    """Returns all orders of n things, or a sample of them, and the method of the p-value in words."""
    if n <= MAX_ENUMERATED:
        orders = np.array(list(itertools.permutations(range(n))))
        return orders, f"two-sided, exact over all {len(orders):,} orders"
    orders = rng.permuted(np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1)
    return orders, f"two-sided, {PERMUTATIONS:,} random orders"


def redraw_prompts(
    tasks: Sequence[str],
    correct: Float[np.ndarray, "runs prompts"],
    images: Float[np.ndarray, "runs prompts"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, "resamples runs"]]:
    """Redraws each task's prompts with replacement, `resamples` times. Returns the scores of all redraws by task; the
    key "overall" has their unweighted mean over tasks.

    `tasks` names each prompt's task. `correct` counts the images of a prompt that match it, `images` all images of the
    prompt. The images of a prompt are drawn together.
    """
    tasks = np.asarray(tasks)
    members = {task: tasks == task for task in dict.fromkeys(tasks.tolist())}
    counts = _redrawn_counts(tuple(int(mine.sum()) for mine in members.values()), resamples, seed)
    scores = {}
    for (task, mine), weights in zip(members.items(), counts, strict=True):
        scores[task] = (weights @ correct[:, mine].T) / (weights @ images[:, mine].T)
    return scores | {"overall": np.mean(list(scores.values()), axis=0)}


@functools.lru_cache(maxsize=2)  # the runs of a study share their prompts, so all calls have the same arguments
def _redrawn_counts(prompts, resamples, seed):
    """Draws the prompts of each task with replacement, `resamples` times. Returns how often each prompt occurs in each
    draw. `prompts` has the number of prompts of each task."""
    rng = np.random.default_rng(seed)
    return [rng.multinomial(count, np.full(count, 1 / count), resamples).astype(float) for count in prompts]


def _resample(loss, score, redrawn, resamples, rng, trunks):
    """Returns ((losses, scores) [resamples, n], the method's name). The pair is None if there are too few runs, or too
    few trunks."""
    n = len(loss)
    trunks = np.arange(n) if trunks is None else np.asarray(trunks)
    shared, units = are_shared(trunks), len(np.unique(trunks))
    over = f"{units} trunks, whole" if shared else f"{n} runs"
    if units < MIN_RUNS_FOR_INTERVAL:
        return None, f"none: {units} {'trunks' if shared else 'runs'} are too few to resample"
    few = shared and units < MIN_RUNS_TO_RESAMPLE
    said = f"; fewer than {MIN_RUNS_TO_RESAMPLE} trunks may give too narrow an interval" if few else ""
    chosen = resampled_runs(n, resamples, rng, trunks)
    if redrawn is None:
        return (loss[chosen], score[chosen]), f"bootstrap over {over}, {resamples:,} resamples{said}"
    method = f"two-level bootstrap over {over}, and over the prompts they share, {resamples:,} resamples{said}"
    method = method if shared else method.replace(", and over", " and over")
    return (loss[chosen], np.take_along_axis(redrawn, chosen, axis=1)), method


def resampled_runs(
    n: int, resamples: int, rng: np.random.Generator, trunks: Int[np.ndarray, " n"] | None = None
) -> Int[np.ndarray, "resamples n"]:
    """Returns the indices of resampled runs. Each resample has at least three distinct runs, since two always correlate
    perfectly.

    Where runs share `trunks`, each trunk is replaced by a randomly drawn trunk, and its branches by those of the drawn
    trunk. If the drawn trunk has more branches than the trunk it replaces, some of them are left out at random; if it
    has fewer, some occur more than once. Each resample then has at least three distinct trunks.
    """
    units = n if trunks is None else len(np.unique(trunks))
    drawn = np.empty((0, units), int)
    while len(drawn) < resamples:
        more = rng.integers(units, size=(resamples, units))
        drawn = np.concatenate([drawn, more[(np.diff(np.sort(more), axis=1) > 0).sum(axis=1) >= 2]])
    drawn = drawn[:resamples]
    if units == n:
        return drawn
    group = np.unique(trunks, return_inverse=True)[1].ravel()
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    starts = np.cumsum(counts) - counts
    place = np.empty(n, int)  # each run's index among the runs of its trunk
    place[order] = np.arange(n) - np.repeat(starts, counts)
    replaced = drawn[:, group]  # [resamples, n]
    turn = (rng.random(drawn.shape) * counts[drawn]).astype(int)[:, group]
    return order[starts[replaced] + (place + turn) % counts[replaced]]


def redrawn_scores(prompts, points, settings, resamples, seed, evaluation="geneval"):
    """Returns the scores under redraws of the prompts, [resamples, runs], as a dictionary by
    task and "overall". Returns {} unless every run of `points` was scored on the same prompts."""
    wanted = {"evaluation": evaluation, "evaluation_seed": settings.sampler_seed}
    wanted |= {name: getattr(settings, name) for name in ("weights", "corpus", "sampler")}
    own = rows_where(prompts, **wanted)
    final = points[["run", "step"]].merge(own, on=["run", "step"])
    correct = final.pivot(index="run", columns="prompt", values="correct").reindex(points["run"])
    images = final.pivot(index="run", columns="prompt", values="samples").reindex(points["run"])
    tasks = final.groupby("prompt")["task"].agg(["first", "nunique"])
    if final.empty or correct.isna().any(axis=None) or (tasks["nunique"] > 1).any():
        return {}
    return redraw_prompts(
        tasks["first"].tolist(), correct.to_numpy(float), images.to_numpy(float), resamples=resamples, seed=seed
    )
