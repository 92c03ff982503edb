"""Makes scores from answers: the rules by which VQAScore, GenEval 2 and DPG-Bench sum up an image. No torch here.

An image's answers are in the order of its prompt's questions. An answer is a pair of probabilities: of the right answer
and of the wrong one. VQAScore and DPG-Bench have yes and no; GenEval 2 has no wrong answers, so the second number is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from rfjax.scorers.questions import Prompt

Answers = Sequence[Sequence[float]]


def right_probability(prompt: Prompt, answers: Answers) -> dict[str, float]:
    """VQAScore: returns the probability of yes as "overall"."""
    return {"overall": answers[0][0]}


def soft_tifa(prompt: Prompt, answers: Answers) -> dict[str, float]:
    """Soft-TIFA of GenEval 2, from the probabilities of the right answers. `am` is their arithmetic mean, a score of
    single atoms; `overall` is their geometric mean, a score of whole prompts (the paper's AM and GM). `atoms_N` repeats
    the geometric mean; N is the number of the prompt's atoms."""
    right = [answer[0] for answer in answers]
    # exp of the mean log, not a root of the product, which would underflow
    logs = [math.log(value) if value > 0 else -math.inf for value in right]
    gm, am = math.exp(math.fsum(logs) / len(logs)), math.fsum(right) / len(right)
    return {"overall": gm, "am": am, f"atoms_{prompt.atoms}": gm}


def gated(prompt: Prompt, answers: Answers) -> dict[str, float]:
    """DPG-Bench: the share of questions answered yes. A question counts as no if one of its parents counts as no.

    Questions are gone through in the file's order. So a no also reaches grandchildren that come later in the file than
    their parents.
    """
    counts = {}
    for question, answer in zip(prompt.questions, answers, strict=True):
        counts[question.number] = _is_yes(answer)
    for question in prompt.questions:
        if not all(counts[parent] for parent in question.parents):
            counts[question.number] = False
    return {"overall": sum(counts.values()) / len(counts)}


def _is_yes(answer) -> bool:
    return answer[0] > answer[1]


def probability_of_skill(prompt: Prompt, answers: Answers) -> list[tuple[str, float]]:
    """GenEval 2: returns (skill, probability of the right answer) for each question."""
    return [(question.category, answer[0]) for question, answer in zip(prompt.questions, answers, strict=True)]


def yes_of_category(prompt: Prompt, answers: Answers) -> list[tuple[str, float]]:
    """DPG-Bench: returns (category, whether the answer is yes) for each question, whatever its parents' answers."""
    return [
        (question.category, float(_is_yes(answer))) for question, answer in zip(prompt.questions, answers, strict=True)
    ]


def no_categories(prompt: Prompt, answers: Answers) -> list[tuple[str, float]]:
    return []


# benchmark -> (function for an image's scores, function for its questions' scores by category)
RULES: Mapping[str, tuple[Callable, Callable]] = {
    "vqascore": (right_probability, no_categories),
    "geneval2": (soft_tifa, probability_of_skill),
    "dpg": (gated, yes_of_category),
}


def items_of(benchmark: str, prompt: Prompt, answers: Answers) -> list[tuple[str, float]]:
    """Returns (item, score) pairs: the scores of the image, then each question's score under its category's name."""
    of_image, of_questions = RULES[benchmark]
    named = [("_".join(name.lower().split()), value) for name, value in of_questions(prompt, answers)]
    return [*of_image(prompt, answers).items(), *named]
