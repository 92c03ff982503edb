"""The votes on one question as arrays, an entry for each vote: its rater, its prompt, the two runs and the choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from rfjax.votes.reading import Vote
from rfjax.votes.study import KeyedStudy


@dataclass(frozen=True, eq=False)
class Ballots:
    """Votes on one question, as arrays with an entry for each vote.

    `left` and `right` are indices into `runs`. `choice` is 1 for left, 0 for a tie, -1 for right. `rater` and `prompt`
    number the raters and the prompts.
    """

    runs: tuple[str, ...]
    rater: Int[np.ndarray, " votes"]
    prompt: Int[np.ndarray, " votes"]
    left: Int[np.ndarray, " votes"]
    right: Int[np.ndarray, " votes"]
    choice: Int[np.ndarray, " votes"]

    def __len__(self) -> int:
        return len(self.choice)

    @property
    def score(self) -> Float[np.ndarray, " votes"]:
        """The left image's score in each vote: 1 for a win, 0.5 for a tie, 0 for a loss."""
        return (self.choice + 1) / 2

    def chosen(self, kept: Bool[np.ndarray, " votes"]) -> Ballots:
        """Returns the ballots with only the votes for which `kept` is true. The list of runs stays whole, so that their
        indices keep their meaning."""
        parts = (getattr(self, name)[kept] for name in ("rater", "prompt", "left", "right", "choice"))
        return Ballots(self.runs, *parts)

    def of_runs(self, one: int, other: int | None = None) -> Ballots:
        """The votes that compare the run `one` with the run `other`, or with any run if `other` is None."""
        has = (self.left == one) | (self.right == one)
        return self.chosen(has if other is None else has & ((self.left == other) | (self.right == other)))


def ballots_of(study: KeyedStudy, votes: Iterable[Vote], question: str) -> Ballots:
    """Selects the votes on a question that count: those on pairs that are not checks of the rater."""
    own = [vote for vote in votes if vote.question == question and vote.pair in study.compared]
    raters = {rater: place for place, rater in enumerate(study.raters)}

    def numbers(values: Sequence[int]):
        return np.array(values, int).reshape(len(own))

    return Ballots(
        runs=study.runs,
        rater=numbers([raters[vote.rater] for vote in own]),
        prompt=numbers([study.pairs[vote.pair].prompt for vote in own]),
        left=numbers([study.run_of[vote.left] for vote in own]),
        right=numbers([study.run_of[vote.right] for vote in own]),
        choice=numbers([vote.choice for vote in own]),
    )
