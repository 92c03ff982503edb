"""GenEval's judgements of many images, and their sums by prompt. No JAX here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from rfjax.evaluation.geneval import rules


def judge_rows(found: Sequence[Mapping], prompts: Sequence[Mapping]) -> list[rules.ImageResult]:
    """Judges images by GenEval's rules. `found[i]` has the detections in image i as lists, and `prompts[i]` is its
    prompt's metadata row."""
    return [
        rules.judge(rules.Detections.from_lists(row["detections"], row["colors"]), prompt)
        for row, prompt in zip(found, prompts, strict=True)
    ]


def prompt_scores(judged: Sequence[rules.ImageResult]) -> list[list]:
    """Returns [task, correct images, images] for every distinct prompt, as a bootstrap over prompts needs them."""
    scores: dict[str, list] = {}
    for result in judged:
        row = scores.setdefault(json.dumps(result.metadata), [result.metadata["tag"], 0, 0])
        row[1] += result.correct
        row[2] += 1
    return list(scores.values())
