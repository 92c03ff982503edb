"""Judges raters by the checks among their pairs, and leaves out those who fail by a stated rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from rfjax.votes.reading import Vote
from rfjax.votes.study import PLAIN, REPEAT, KeyedStudy, purpose

LEAST_CHECKS = 3  # answers to plain checks by which a rater is judged
LEAST_RIGHT = 0.75  # of them, the share that must be right
LEAST_VOTES = 20  # votes by which a rater who gives one answer is judged
SAME_ANSWER = 0.95  # of them, the share of equal answers (left, right or tie) that is too much
RULE = (
    f"a rater is left out who is right in less than {LEAST_RIGHT:.0%} of at least {LEAST_CHECKS} plain checks, or who "
    f"gives one answer (left, right or tie) in at least {SAME_ANSWER:.0%} of at least {LEAST_VOTES} votes; answers to "
    "repeated pairs are reported and decide nothing, since two runs may be nearly equal"
)


@dataclass(frozen=True, kw_only=True)
class Rater:
    """How one rater voted. `plain` and `repeats` count the answers to checks, `right` and `same` those that were right
    and those that chose the same image again. `left_out` says why the rater's votes do not count; "" if they do."""

    rater: str
    answers: int  # all that were handed in
    asked: int  # all that the rater was asked for
    votes: int  # of pairs that are no checks
    seconds: float | None  # median of a vote
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
    """Reports every rater of the study, in its order, also those who handed in nothing."""
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
    """What an answer chose: the run of the image, since a repeated pair may have other blind names; None for a tie."""
    return None if image is None else study.run_of.get(image, image)
