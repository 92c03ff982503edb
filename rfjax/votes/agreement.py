"""Krippendorff's alpha for nominal votes: how far raters agree beyond what chance would give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from rfjax.votes.reading import Vote
from rfjax.votes.study import KeyedStudy


def nominal_alpha(units: Iterable[Sequence[object]]) -> float | None:
    """Computes alpha = 1 - D_observed / D_expected (Krippendorff 2011).

    A unit is the list of the values that raters gave to one thing. Units with fewer than two values are ignored.
    Returns None if no unit is left, or if all values are equal, where alpha is 0/0.
    """
    kept = [list(unit) for unit in units if len(unit) > 1]
    names = {name: place for place, name in enumerate(dict.fromkeys(value for unit in kept for value in unit))}
    if len(names) < 2:
        return None
    coincidences = np.zeros((len(names), len(names)))
    for unit in kept:
        counts = np.bincount([names[value] for value in unit], minlength=len(names)).astype(float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(axis=0)
    total = totals.sum()
    observed = 1 - np.trace(coincidences) / total
    expected = 1 - totals @ (totals - 1) / (total * (total - 1))
    return float(1 - observed / expected)


def alpha_of_votes(study: KeyedStudy, votes: Iterable[Vote], question: str) -> tuple[float | None, int]:
    """Returns (alpha of the votes on a question, the number of pairs that two or more raters voted on).

    A vote has one of three values: first image, second image, or tie. The order of the two images is arbitrary, so each
    pair enters twice, the second time with its images exchanged.
    """
    chosen: dict[str, list[str | None]] = {}
    for vote in votes:
        if vote.question == question and vote.pair in study.compared:
            chosen.setdefault(vote.pair, []).append(vote.chosen)
    units = []
    for pair, values in chosen.items():
        for first in study.pairs[pair].images:
            units.append(["tie" if value is None else value == first for value in values])
    return nominal_alpha(units), sum(len(values) > 1 for values in chosen.values())
