"""Finds which image of each pair people preferred on one question: the image that more raters chose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rfjax.errors import ConfigError
from rfjax.votes.raters import RULE, Rater, judge
from rfjax.votes.reading import Vote
from rfjax.votes.study import KeyedStudy


@dataclass(frozen=True)
class Won:
    """A decided pair: the id of its prompt, and the ids of its images."""

    prompt: int
    winner: str
    loser: str


@dataclass(frozen=True)
class Winners:
    """The pairs of which one image won, in the order of the pairs' ids, with the numbers of ties and of undecided
    pairs, and the raters who were left out."""

    won: tuple[Won, ...]
    votes: int  # on the question, by the raters who count; ties are among them
    ties: int
    undecided: int  # pairs whose two images have equally many votes; 0 each if all votes are ties
    left_out: tuple[Rater, ...]

    def lines(self) -> list[str]:
        """Lines for a console: what counts, what was left out, and by which rule."""
        failed = [f"{one.rater} ({one.votes} votes; {one.left_out})" for one in self.left_out]
        lines = [
            f"{len(self.won):,} pairs decided by {self.votes - self.ties:,} votes; left out: {self.ties:,} ties, "
            f"{self.undecided:,} pairs without a majority, {len(failed)} raters"
        ]
        return lines + [f"left out: {', '.join(failed)}; rule: {RULE}"] * bool(failed)


def find_winners(study: KeyedStudy, votes: Iterable[Vote], question: str) -> Winners:
    """Finds the winner of each pair of a study by the votes on a question.

    Votes of raters who are left out by `raters.RULE` do not count. Pairs that only check the raters have no winner. A
    tie counts for neither image. The image with more of a pair's remaining votes wins. Raises `ConfigError` for a
    question that the study does not ask.
    """
    asked = [one.name for one in study.questions]
    if question not in asked:
        raise ConfigError(
            f"the study {study.folder} does not ask the question {question!r}; it asks {', '.join(asked)}"
        )
    votes = list(votes)
    left_out = tuple(rater for rater in judge(study, votes) if rater.left_out)
    failed = {rater.rater for rater in left_out}
    counted = [v for v in votes if v.question == question and v.pair in study.compared and v.rater not in failed]
    chosen: dict[str, Counter] = {}
    for vote in counted:
        chosen.setdefault(vote.pair, Counter())[vote.chosen] += 1
    won = []
    for name in sorted(chosen):
        pair = study.pairs[name]
        one, other = pair.images
        difference = chosen[name][one] - chosen[name][other]
        if difference:
            won.append(Won(pair.prompt, *((one, other) if difference > 0 else (other, one))))
    return Winners(
        tuple(won), len(counted), sum(vote.chosen is None for vote in counted), len(chosen) - len(won), left_out
    )
