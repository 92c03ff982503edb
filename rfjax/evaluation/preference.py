"""The names that preference studies have in records and in the results table: the names of the evaluation, of its
metrics and of the questions that raters answer, and the value of the field `corpus`."""

from __future__ import annotations

EVALUATION = "preference"
WIN_RATE, STRENGTH = "preference_win_rate", "preference_strength"
METRICS = (WIN_RATE, STRENGTH)
QUESTIONS = ("aesthetics", "prompt", "typography")  # of SD3's section 5.4
_PREFIX = "votes-"


def corpus_of(study: str) -> str:
    """Returns the value of the field `corpus` in a preference study's records. The value names the study, because win
    rates of two studies cannot be compared."""
    return _PREFIX + study
