"""Judges raters by the checks among their pairs. Raters who fail the rule `RULE` are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from rfjax.votes.reading import Vote
from rfjax.votes.study import PLAIN, REPEAT, KeyedStudy, purpose

LEAST_CHECKS = 3  # a rater with fewer answers to plain checks is not judged by them
LEAST_RIGHT = 0.75  # share of plain checks that a rater must answer rightly
LEAST_VOTES = 20  # a rater with fewer votes is not judged by `SAME_ANSWER`
SAME_ANSWER = 0.95  # a rater who gives one answer (left, right or tie) in at least this share of votes is left out
RULE = (
    f"a rater is left out who is right in less than {LEAST_RIGHT:.0%} of at least {LEAST_CHECKS} answers to plain "
    f"checks, or who gives one answer (left, right or tie) in at least {SAME_ANSWER:.0%} of at least {LEAST_VOTES} "
    "votes; answers to repeated pairs are reported and decide nothing, since two runs may be nearly equal"
)


@dataclass(frozen=True, kw_only=True)
class Rater:
    """How one rater voted.

    `plain` counts the answers to plain checks, and `right` the right answers among them. `repeats` counts the questions
    on repeated pairs that were answered both times, and `same` those with the same answer both times. `left_out` says
    why the rater's votes do not count; "" if they count.
    """

    rater: str
    answers: int  # answers handed in, checks included
    asked: int  # answers that the rater was asked for, checks included
    votes: int  # answers on pairs that are not checks
    seconds: float | None  # median time of an answer, checks included; None without answers
    plain: int
    right: int
    repeats: int
    same: int
    left_out: str = ""

    @property
    def judged(self) -> bool:
        """Whether the rater answered enough plain checks."""
        return self.plain >= LEAST_CHECKS


def judge(study: KeyedStudy, votes: Iterable[Vote]) -> list[Rater]:
    """Judges every rater of the study, in the study's order; raters who handed in nothing are included."""
    own: dict[str, list[Vote]] = {rater: [] for rater in study.raters}
    for vote in votes:
        own[vote.rater].append(vote)
    return [_judge_one(study, rater, given) for rater, given in own.items()]


def _judge_one(study: KeyedStudy, rater: str, votes: Sequence[Vote]) -> Rater:
    answers = {(vote.pair, vote.question): vote.chosen for vote in votes}
    plain = right = repeats = same = 0
    for (name, question), chosen in answers.items():
        pair = study.pairs[name]
        if purpose(pair) == PLAIN:
            plain, right = plain + 1, right + (chosen == pair.check["right"])
        elif purpose(pair) == REPEAT and (pair.check["repeats"], question) in answers:
            repeats, same = (
                repeats + 1,
                same + (_run(study, chosen) == _run(study, answers[pair.check["repeats"], question])),
            )
    compared = [vote for vote in votes if vote.pair in study.compared]
    why = ""
    if plain >= LEAST_CHECKS and right < LEAST_RIGHT * plain:
        why = f"right in {right} of {plain} plain checks"
    elif len(compared) >= LEAST_VOTES:
        choice, count = Counter(vote.choice for vote in compared).most_common(1)[0]
        if count >= SAME_ANSWER * len(compared):
            why = f"answered {({1: 'left', 0: 'tie', -1: 'right'})[choice]} in {count} of {len(compared)} votes"
    return Rater(
        rater=rater,
        answers=len(votes),
        asked=study.questions_for(rater),
        votes=len(compared),
        seconds=median(vote.seconds for vote in votes) if votes else None,
        plain=plain,
        right=right,
        repeats=repeats,
        same=same,
        left_out=why,
    )


def _run(study: KeyedStudy, image: str | None) -> object:
    """Returns the index of the run whose image an answer chose; None for a tie. The answers to a pair and to its repeat
    are compared by this index. The repeat shows the same images, with left and right exchanged."""
    return None if image is None else study.run_of.get(image, image)
