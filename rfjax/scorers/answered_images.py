"""Asks a model questions about the images of a folder, and sums up its answers. No torch here: the caller provides the
model.

    OUT/settings.json   the benchmark, and what the answers depend on: the model's hash and its type of numbers
    OUT/rows.jsonl      one line per image: its name, the hashes of its file and of its questions, and the
                        probabilities of its answers
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from rfjax.evaluation.records import Measured
from rfjax.scorers.answer_rules import items_of
from rfjax.scorers.clustered import mean_and_stderr
from rfjax.scorers.questions import Prompt
from rfjax.scorers.rows import Bar, Row, Rows


@runtime_checkable
class Model(Protocol):
    """The part of `vqa.VisionLanguageModel` that is needed here."""

    sha256: str

    def probabilities(self, images, questions, answers): ...


class _Row(Row):
    sha256: str
    questions: str  # hash of the prompt's questions and of the spellings of their answers
    answers: list[list[float]]


def answer_folder(
    folder: str | os.PathLike,
    model: Model,
    prompts: Mapping[str, Prompt],
    out: str | os.PathLike,
    *,
    benchmark: str,
    dtype: str,
    batch_size: int,
) -> dict[str, list[list[float]]]:
    """Returns {image: the probabilities of the right and the wrong answer to each of its prompt's questions}.

    `prompts` maps an image's name in the folder to its prompt. `batch_size` questions are asked at once,
    about one image or several. Resumes: an image is asked about again only if its file or its questions have changed.
    """
    from rfjax.scorers import images  # imports torch

    folder, names = Path(folder), list(prompts)
    settings = {"metric": benchmark, "model": model.sha256, "dtype": dtype}
    with Rows(out, settings, _Row) as rows:
        contents = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
        waiting = [name for name in names if not _is_done(rows.get(name), contents[name], prompts[name])]
        with Bar("questions", len(names) - len(waiting), len(names)) as bar:
            for batch in _batches(waiting, prompts, batch_size):
                read = {name: images.read(io.BytesIO((folder / name).read_bytes()), folder / name) for name in batch}
                asked = [(name, question) for name in batch for question in prompts[name].questions]
                answers = {name: [] for name in batch}
                for start in range(0, len(asked), batch_size):
                    some = asked[start : start + batch_size]
                    chances = model.probabilities(
                        [read[name] for name, _ in some],
                        [question.text for _, question in some],
                        [(question.answer, question.wrong) for _, question in some],
                    )
                    for (name, _), pair in zip(some, chances, strict=True):
                        answers[name].append(pair)
                rows.add(
                    {
                        "image": name,
                        "sha256": contents[name],
                        "questions": _hash(prompts[name]),
                        "answers": answers[name],
                    }
                    for name in batch
                )
                bar.more(len(batch))
        return {name: rows.get(name)["answers"] for name in names}


def summarise(
    benchmark: str, prompts: Mapping[str, Prompt], answers: Mapping[str, Sequence[Sequence[float]]]
) -> list[Measured]:
    """Returns the mean of each item, "overall" first.

    For a category the mean is over questions, for any other item over images. The standard error is clustered by
    prompt: a prompt's images and questions depend on each other.
    """
    values: dict[str, list[tuple[float, str]]] = {}
    for image, prompt in prompts.items():
        for item, value in items_of(benchmark, prompt, answers[image]):
            values.setdefault(item, []).append((value, prompt.text))
    measured = []
    for item, pairs in values.items():
        mean, stderr = mean_and_stderr([value for value, _ in pairs], [text for _, text in pairs])
        measured.append(Measured.within(metric=benchmark, item=item, value=mean, stderr=stderr, n=len(pairs)))
    return measured


def _batches(names, prompts, size):
    """Groups images so that the images of a group have about `size` questions together. The answers of a group are
    written and flushed before the next group is asked about."""
    group, questions = [], 0
    for name in names:
        group.append(name)
        questions += len(prompts[name].questions)
        if questions >= size:
            yield group
            group, questions = [], 0
    if group:
        yield group


def _hash(prompt: Prompt) -> str:
    asked = [(question.text, question.answer, question.wrong) for question in prompt.questions]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _is_done(row, sha256, prompt) -> bool:
    return row is not None and (row["sha256"], row["questions"]) == (sha256, _hash(prompt))
