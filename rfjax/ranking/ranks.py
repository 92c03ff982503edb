"""Averages ranks over controls, with intervals from a joint bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rfjax.evaluation.intervals import PERCENTILES
from rfjax.ranking.measures import Measures, places_of_steps
from rfjax.ranking.nondominated import nondominated_ranks

# column -> (sampling steps, guidance) of the controls that it averages over; None means any. The columns follow the
# paper's table 1. Its column "50 steps" averages only four controls (`paper.AVERAGE_RANKS`), so it takes one of the
# three guidances at 50 steps, presumably that of the controls with 5 steps.
COLUMNS: dict[str, tuple[int | None, float | None]] = {"all": (None, None), "5 steps": (5, 5.0), "50 steps": (50, 5.0)}


@dataclass(frozen=True, kw_only=True)
class AverageRank:
    """One variant's rank, averaged over the controls of a column, with the 95 % interval from `low` to `high`
    (`rank_interval`)."""

    variant: str
    family: str
    value: float
    low: float
    high: float
    first: float  # share of resamples in which no variant has a lower average rank


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """Average ranks over one set of controls, the best first. If no control counts, there are no ranks, and `reason`
    says why."""

    name: str
    controls: tuple[str, ...]
    ranks: tuple[AverageRank, ...]
    resampled: Float[np.ndarray, "variants resamples"]  # average ranks under resampled prompts, in the order of `ranks`
    reason: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """The average ranks of each column, and which controls count in them."""

    columns: tuple[Column, ...]
    complete: tuple[int, ...]  # indices of the controls that count
    missing: Mapping[str, tuple[str, ...]]  # control that does not count -> variants without a record under it


def rank(measures: Measures, columns: Mapping[str, tuple[int | None, float | None]] = COLUMNS) -> Ranking:
    """Averages the ranks of each variant over the controls of each column.

    `columns` maps a column's name to the sampling steps and the guidance scale of its controls; None means any. A
    control counts only if every variant has a record under it or has diverged, since averages over different controls
    cannot be compared. All variants and controls of one corpus share their prompts, so resample b draws the same
    prompts for all of them. Two corpora share no prompts, so they are resampled independently.
    """
    whole = [place for place in range(len(measures.controls)) if measures.present[place].all()]
    missing = {
        control.name: tuple(v for v, there in zip(measures.variants, measures.present[place], strict=True) if not there)
        for place, control in enumerate(measures.controls)
        if place not in whole
    }
    ranks = nondominated_ranks(measures.alignment, measures.distance)
    resampled = resampled_ranks(measures, whole)
    found = []
    for name, (steps, guidance) in columns.items():
        chosen = [place for place in places_of_steps(measures.controls, steps, guidance) if place in whole]
        rows = [whole.index(place) for place in chosen]
        found.append(_column(name, measures, chosen, ranks[chosen], resampled[rows]))
    return Ranking(columns=tuple(found), complete=tuple(whole), missing=missing)


def resampled_ranks(measures: Measures, controls: Sequence[int]) -> Float[np.ndarray, "controls variants resamples"]:
    """Ranks the variants under each resample of prompts, for the controls with the given indices.

    Before ranking, each variant's distance replicates are shifted so that their mean is the variant's distance
    (`rfjax.evaluation.control_measures.shifted_interval` says why).
    """
    shape = (len(controls), len(measures.variants), measures.distance_replicates.shape[-1])
    out, corpora = np.zeros(shape), []
    for index, place in enumerate(controls):
        corpus = measures.controls[place].corpus
        corpora += [corpus] if corpus not in corpora else []
        distance = measures.distance_replicates[place]
        distance = distance - distance.mean(axis=1, keepdims=True) + measures.distance[place][:, None]
        ranks = nondominated_ranks(measures.alignment_replicates[place].T, distance.T).T
        # Pairing resample b of different corpora would correlate them, so each corpus uses another order of resamples.
        order = np.arange(shape[2])
        if corpus != corpora[0]:
            order = np.random.default_rng(corpora.index(corpus)).permutation(order)
        out[index] = ranks[:, order]
    return out


def _column(name, measures, chosen, ranks, resampled):
    if not chosen:
        reason = "no control that this column averages has a record of every variant"
        return Column(name=name, controls=(), ranks=(), resampled=np.zeros((0, 0)), reason=reason)
    average, averages = ranks.mean(axis=0), resampled.mean(axis=0)
    low, high = rank_interval(average, averages)
    first = np.isclose(averages, averages.min(axis=0), rtol=0, atol=1e-9).mean(axis=1)
    order = np.lexsort((np.arange(len(average)), average))
    numbers = {"value": average, "low": low, "high": high, "first": first}
    ranks = tuple(
        AverageRank(
            variant=measures.variants[v],
            family=measures.families[v],
            **{number: float(values[v]) for number, values in numbers.items()},
        )
        for v in order
    )
    controls = tuple(measures.controls[place].name for place in chosen)
    return Column(name=name, controls=controls, ranks=ranks, resampled=averages[order])


def rank_interval(
    value: Float[np.ndarray, " variants"], resampled: Float[np.ndarray, "variants resamples"]
) -> tuple[Float[np.ndarray, " variants"], Float[np.ndarray, " variants"]]:
    """Returns the low ends and the high ends of 95 % intervals of average ranks, from the ranks' resamples.

    A resample adds noise to measures that are already noisy, and noise biases ranks: it separates ties and fronts, and
    worsens the best ranks. So the interval from the 2.5 to the 97.5 percentile of the resamples is biased. In simulated
    studies it covers the rank for infinitely many prompts only 90 % of the time. A second interval is the first one
    shifted by (the estimate - the mean of the resamples). The returned interval reaches from the lower of the two low
    ends to the higher of the two high ends, and covers that rank 94 to 95 % of the time.
    """
    low, high = np.percentile(resampled, PERCENTILES, axis=1)
    shift = value - resampled.mean(axis=1)
    low, high = np.minimum(low, low + shift), np.maximum(high, high + shift)
    return np.clip(low, 1.0, len(value)), np.clip(high, 1.0, len(value))  # ranks lie between 1 and n
