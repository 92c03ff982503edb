"""T2I-CompBench's folders of images: writes the images, and reads the scores. No torch here.

The benchmarks are T2I-CompBench (Huang et al., arXiv 2307.06350) and T2I-CompBench++. Their scorers (BLIP-VQA, UniDet,
CLIP) run in separate environments, on one folder per category,

    FOLDER/color/samples/a red apple and a green bowl_000000.png

Images are numbered through the whole category, prompt by prompt. A scorer writes a list of
{"question_id": number, "answer": score} into the folder; a category's score is the mean of the answers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from rfjax.errors import ConfigError
from rfjax.files import write_whole
from rfjax.inputs.json_files import read_json

# category -> the file that its scorer writes, in the order of the paper's table
RESULTS = {
    "color": "annotation_blip/vqa_result.json",
    "shape": "annotation_blip/vqa_result.json",
    "texture": "annotation_blip/vqa_result.json",
    "spatial": "labels/annotation_obj_detection_2d/vqa_result.json",
    "3d_spatial": "labels/annotation_obj_detection_3d/vqa_result.json",
    "numeracy": "annotation_num/vqa_result.json",
    "non_spatial": "annotation_clip/vqa_result.json",
    "complex": "annotation_3_in_1/vqa_result.json",
}


class _Answer(TypedDict):
    question_id: int | str
    answer: float | str


class Category(NamedTuple):
    """The mean score of a category's images. The standard error is over prompts; it is nan if the prompts are unknown
    (`prompts` is None) or if there is only one prompt."""

    score: float
    stderr: float
    images: int
    prompts: int | None


def image_name(prompt: str, number: int) -> str:
    """Returns an image's file name, from which the scorers read the prompt. Raises `ConfigError` for a prompt that no
    name can hold."""
    if "_" in prompt or "/" in prompt or not prompt or "\0" in prompt:
        raise ConfigError(f"T2I-CompBench names files by prompts, so {prompt!r} must be text without '_', '/' and NUL")
    name = f"{prompt}_{number:06d}.png"
    if len(name.encode()) > 255:
        raise ConfigError(f"T2I-CompBench names files by prompts, so {prompt[:60]!r}... must be shorter")
    return name


def write(
    folder: str | os.PathLike, prompts: Sequence[str], images: Iterable[tuple[int, int, bytes]], images_per_prompt: int
) -> None:
    """Writes a category's PNGs, given as (prompt index, sample, content), to `folder`/samples/*.png.

    Raises `ConfigError` for a prompt that no file name can hold, and for a sample out of range.
    """
    for prompt in prompts:
        image_name(prompt, 0)  # refuses a prompt before the first file is written
    for index, sample, png in images:
        if not 0 <= sample < images_per_prompt:
            raise ConfigError(f"prompt {index} has a sample {sample}; it must be from 0 to {images_per_prompt - 1}")
        write_whole({Path(folder) / "samples" / image_name(prompts[index], index * images_per_prompt + sample): png})


def read(folder: str | os.PathLike) -> dict[str, Category]:
    """Returns the scores of the categories that a folder has, in the order of `RESULTS`.

    Raises `ConfigError` if there is no score, for a damaged file, and if images and answers differ in number.
    """
    folder = Path(folder)
    found = {name: _category(folder / name, file) for name, file in RESULTS.items() if (folder / name / file).is_file()}
    if not found:
        raise ConfigError(
            f"{folder} has no scores of T2I-CompBench, such as {folder / 'color' / RESULTS['color']}; the categories "
            f"are {', '.join(RESULTS)}"
        )
    return found


def _category(folder, file):
    path = folder / file
    again = "score the category again"
    answers = {}
    for row in read_json(path, list[_Answer], remedy=again, error=ConfigError):
        try:
            number, score = int(row["question_id"]), float(row["answer"])
        except ValueError as error:
            raise ConfigError(f"{path} is damaged ({error}); {again}") from None
        if number in answers:
            raise ConfigError(f"{path} has two answers for image {number}; {again}")
        if not math.isfinite(score):
            raise ConfigError(f"{path} answers {row['answer']!r} for image {number}; {again}")
        answers[number] = score
    if not answers:
        raise ConfigError(f"{path} has no answers; score the category again")
    values = np.array([answers[number] for number in sorted(answers)])
    prompts = _prompts(folder, answers, path)
    mean = float(values.mean())
    if prompts is None:
        return Category(mean, math.nan, len(values), None)
    _, group = np.unique(np.array([prompts[number] for number in sorted(answers)]), return_inverse=True)
    sums = np.bincount(group, weights=values - mean)
    stderr = math.sqrt(len(sums) / (len(sums) - 1) * float(sums @ sums)) / len(values) if len(sums) > 1 else math.nan
    return Category(mean, stderr, len(values), len(sums))


def _prompts(folder, answers, path):
    """Returns {answer's number: prompt}, with prompts from the images' names; returns None if there are no images."""
    names = [file.stem.rsplit("_", 1) for file in (folder / "samples").glob("*.png")]
    if not names:
        return None
    numbers = sorted((int(parts[-1]), parts[0]) for parts in names if parts[-1].isdigit())
    if len(numbers) != len(answers):
        raise ConfigError(
            f"{path} has {len(answers)} answers for the {len(numbers)} images in {folder / 'samples'}; score them again"
        )
    if sorted(answers) == [number for number, _ in numbers]:
        return dict(numbers)
    # The scorers of BLIP and CLIP count the images in order, and ignore their numbers.
    return dict(zip(sorted(answers), (prompt for _, prompt in numbers), strict=True))
