"""Computes the ranking as plain values, for report.json and for the tables, figures and page made from it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

from rfjax.evaluation.intervals import PERCENTILES
from rfjax.laws.correlation import permutation_orders, permutation_p
from rfjax.ranking import paper
from rfjax.ranking.measures import Measures, measures_of, places_of_steps
from rfjax.ranking.ranks import Column, Ranking, rank
from rfjax.results.plain import plain
from rfjax.results.results_folder import Results

SHOWN_PER_FAMILY = 2  # variants of each family that the short table takes from each column
STEPS_GUIDANCE = 5.0  # the guidance scale of the controls that `_against_steps` lists
MIN_COMMON = 4  # fewest variants for a correlation with the paper's ranks


def ranking_numbers(results: Results, *, seed: int = 0) -> dict | None:
    """Returns the ranking, without replicates, as plain values; None if fewer than two variants are measured."""
    measures = measures_of(results)
    if measures is None:
        return None
    ranking = rank(measures)
    content = {
        "named_by": measures.named_by,
        "variants": [
            {
                "variant": variant,
                "family": family,
                "diverged": variant in measures.diverged,
                "paper": paper.AVERAGE_RANKS.get(variant),
            }
            for variant, family in zip(measures.variants, measures.families, strict=True)
        ],
        "controls": [
            vars(control)
            | {name: getattr(control, name) for name in ("name", "steps", "guidance")}
            | {"complete": place in ranking.complete, "images": measures.images[place]}
            for place, control in enumerate(measures.controls)
        ],
        "columns": [
            {name: getattr(column, name) for name in ("name", "controls", "reason", "ranks")}
            for column in ranking.columns
        ],
        "shown": shown_variants(ranking),
        "missing": ranking.missing,
        "notes": measures.notes,
        "against_steps": _against_steps(measures),
        "paper": {
            "source": paper.SOURCE,
            "columns": [_compare_with_paper(column, place, seed) for place, column in enumerate(ranking.columns)],
        },
    }
    return plain(content)


def shown_variants(ranking: Ranking) -> list[str]:
    """Lists the variants of the short table: the two best of each family in each column, as in the paper's table 1.

    The best come first, by the average rank in the first column that has ranks.
    """
    chosen: set[str] = set()
    for column in ranking.columns:
        families: dict[str, list[str]] = {}
        for row in column.ranks:
            families.setdefault(row.family, []).append(row.variant)
        chosen |= {variant for members in families.values() for variant in members[:SHOWN_PER_FAMILY]}
    order = next((column.ranks for column in ranking.columns if column.ranks), ())
    return [row.variant for row in order if row.variant in chosen]


def _compare_with_paper(column: Column, place: int, seed: int) -> dict:
    """Computes the rank correlations between a column's average ranks and those in column `place` of the paper's table,
    over the variants that both have.

    Spearman's and Kendall's coefficients have 95 % intervals from the resamples of prompts. `p` is the p-value of
    Spearman's coefficient by permutations. `spearman`, `kendall` and `p` are None, and `reason` says why, if fewer than
    `MIN_COMMON` variants are common, or if their ranks in `column` are all equal.
    """
    rows = [index for index, row in enumerate(column.ranks) if row.variant in paper.AVERAGE_RANKS]
    theirs = np.array([paper.AVERAGE_RANKS[column.ranks[index].variant][place] for index in rows])
    ours = np.array([column.ranks[index].value for index in rows])
    found = {"name": column.name, "n": len(rows), "spearman": None, "kendall": None, "p": None}
    if len(rows) < MIN_COMMON or np.ptp(ours) == 0:
        few = f"{len(rows)} variants in common with the paper's {len(paper.AVERAGE_RANKS)}, or all of one rank"
        return found | {"reason": few}
    resampled = column.resampled[rows]
    orders, _ = permutation_orders(len(ours), np.random.default_rng(seed))
    null = _spearman(theirs, ours[orders].T)
    value = float(_spearman(theirs, ours[:, None])[0])
    tau, *taus = (float(stats.kendalltau(theirs, ranks).statistic) for ranks in (ours, *resampled.T))
    return found | {
        "spearman": _estimate(value, _spearman(theirs, resampled)),
        "kendall": _estimate(tau, taus),
        "p": permutation_p(value, null, len(ours)),
        "reason": "",
    }


def _spearman(fixed, columns):
    """Computes Spearman's coefficient between the vector `fixed` and each column of `columns`, as Pearson's coefficient
    of the mid-ranks."""
    x, y = stats.rankdata(fixed), stats.rankdata(columns, axis=0)
    x, y = x - x.mean(), y - y.mean(axis=0)
    with np.errstate(invalid="ignore"):  # nan for a constant column
        return x @ y / np.sqrt((x @ x) * (y * y).sum(axis=0))


def _estimate(value, resampled):
    kept = np.asarray(resampled, float)
    kept = kept[np.isfinite(kept)]
    low, high = np.percentile(kept, PERCENTILES) if len(kept) else (np.nan, np.nan)
    return {"value": value, "low": float(low), "high": float(high)}


def _against_steps(measures: Measures) -> list[dict]:
    """Lists both measures of each variant at every number of sampling steps, at the guidance scale `STEPS_GUIDANCE`."""
    rows = []
    for place in places_of_steps(measures.controls, None, STEPS_GUIDANCE):
        control = measures.controls[place]
        for index, variant in enumerate(measures.variants):
            if np.isfinite(measures.distance[place, index]):
                of_control = {name: getattr(control, name) for name in ("corpus", "weights", "seed", "steps")}
                names = ("alignment", "alignment_ends", "distance", "distance_ends")
                of_variant = {name: getattr(measures, name)[place, index] for name in names}
                rows.append({"variant": variant, **of_control, **of_variant, "truth": measures.truth[place]})
    return sorted(rows, key=lambda row: (row["corpus"], row["weights"], row["variant"], row["steps"]))


def ranked_columns(numbers: Mapping) -> list[Mapping]:
    """Returns the columns of `ranking_numbers` that have ranks."""
    return [column for column in numbers["columns"] if column["ranks"]]


def rank_of(column: Mapping, variant: str) -> Mapping | None:
    """Returns the entry with a variant's average rank in a column of `ranking_numbers`; None if the column does not
    rank the variant."""
    return next((row for row in column["ranks"] if row["variant"] == variant), None)
