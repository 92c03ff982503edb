"""Questions about images: the published question files, what a model is asked, and which answers are right. No torch.

A benchmark is a row of `BENCHMARKS`. Its reader turns a question file, or the images' captions, into `Prompt`s.

VQAScore (Lin et al. 2024, arXiv 2404.01291) makes one question about each image from the image's caption. GenEval 2
(Kamath et al. 2025, arXiv 2512.16853) and DPG-Bench (Hu et al. 2024, arXiv 2403.05135) have files of questions.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from rfjax.errors import ConfigError
from rfjax.inputs.json_files import parse_json
from rfjax.inputs.text import read_text

YES = ("Yes", "yes", " Yes", " yes")  # spellings of an answer, each with its own token
NO = ("No", "no", " No", " no")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Question:
    """A question about an image. `answer` has all spellings of the right answer that count; `wrong` has those of the
    wrong answer, if a benchmark compares the two."""

    text: str  # as the model is asked
    answer: tuple[str, ...] = YES
    wrong: tuple[str, ...] = NO
    number: int = 1
    parents: tuple[int, ...] = ()  # numbers of the questions whose answer must be yes for this one to count
    category: str = ""


@dataclass(frozen=True)
class Prompt:
    """A prompt and the questions about its images."""

    text: str
    questions: tuple[Question, ...]
    key: str = ""  # the name that its images may have, in place of a caption
    atoms: int = 0  # GenEval 2's number of atoms


class GenEval2Row(TypedDict):
    """A line of geneval2_data.jsonl."""

    prompt: str
    atom_count: int
    vqa_list: list[list[str]]
    skills: list[str]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A row of `BENCHMARKS`."""

    title: str
    published: str  # the model that the published scores are by
    read: Callable[[Path], dict[str, Prompt]] | None = None  # None: the questions come from captions
    published_weights: frozenset[str] = field(default_factory=frozenset)  # SHA-256 of folders; see `is_published`

    def is_published(self, sha256: str) -> bool:
        """Whether the model whose folder has the hash `sha256` is the one that made the published scores. Only then is
        a score named after the metric alone, without the model."""
        return sha256 in self.published_weights


def of_caption(caption: str) -> Prompt:
    """Returns a `Prompt` with VQAScore's one question about an image with this caption."""
    return Prompt(caption, (Question(f'Does this figure show "{caption}"? Please answer yes or no.'),))


def answer_spellings(question: str, answer: str) -> tuple[str, ...]:
    """Returns the spellings of a right answer that GenEval 2 counts: small and capitalised, each with and without a
    blank before it. If the question begins with "How many", the number in digits counts, too."""
    answer = answer.strip()
    words = (answer.lower(), answer.capitalize())
    if question.startswith("How many") and answer.lower() in NUMBERS:
        words += (str(NUMBERS.index(answer.lower())),)
    return tuple(dict.fromkeys(space + word for word in words for space in ("", " ")))


def read_geneval2(path: Path) -> dict[str, Prompt]:
    """Reads GenEval 2's geneval2_data.jsonl to {prompt: `Prompt`}. Raises `ConfigError`, naming a line that is
    wrong."""
    found: dict[str, Prompt] = {}
    for number, line in enumerate(read_text(path, "--questions").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = parse_json(line, GenEval2Row)
        except ValueError as error:
            raise _wrong(where, str(error), "a row of geneval2_data.jsonl") from None
        pairs = row["vqa_list"]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise _wrong(where, "vqa_list has no pairs of a question and an answer", "a row of geneval2_data.jsonl")
        if len(row["skills"]) != len(pairs):
            said = f"{len(row['skills'])} skills for {len(pairs)} questions"
            raise _wrong(where, said, "as many skills as questions")
        questions = tuple(
            Question(f"{text} Answer in one word.", answer_spellings(text, answer), (), place, (), skill)
            for place, ((text, answer), skill) in enumerate(zip(pairs, row["skills"], strict=True), 1)
        )
        _add(found, Prompt(row["prompt"].strip(), questions, atoms=row["atom_count"]), where)
    return _some(found, path)


DPG_COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


def read_dpg(path: Path) -> dict[str, Prompt]:
    """Reads DPG-Bench's dpg_bench.csv, or a file with the same columns such as DSG's, to {prompt: `Prompt`}.

    A question's parents are the numbers in `dependency`; 0 means none. Raises `ConfigError`, naming a line that is
    wrong.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, "--questions")), strict=True)
    lacking = [name for name in DPG_COLUMNS if name not in (reader.fieldnames or ())]
    if lacking:
        raise _wrong(f"{path}:1", f"no column {lacking[0]}", f"the columns {', '.join(DPG_COLUMNS)}")
    items: dict[str, tuple[str, dict[int, tuple[Question, str]]]] = {}
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row.values() or None in row:
                raise _wrong(where, "another number of values than columns", "a value for each column")
            text, questions = items.setdefault(row["item_id"].strip(), (row["text"].strip(), {}))
            question = _dpg_question(row, where)
            if question.number in questions:
                raise _wrong(where, f"proposition_id {question.number} twice in {row['item_id']!r}", "each id once")
            questions[question.number] = question, where
    except csv.Error as error:
        raise _wrong(f"{path}:{reader.line_num}", str(error), "comma-separated values") from None
    found: dict[str, Prompt] = {}
    for key, (text, numbered) in items.items():
        for question, where in numbered.values():
            if lost := [parent for parent in question.parents if parent not in numbered]:
                raise _wrong(where, f"its dependency {lost[0]} is no question of {key!r}", "numbers of questions, or 0")
        _add(found, Prompt(text, tuple(question for question, _ in numbered.values()), key), f"{path} ({key!r})")
    return _some(found, path)


def _dpg_question(row, where) -> Question:
    try:
        number, *parents = (int(part) for part in (row["proposition_id"], *row["dependency"].split(",")))
    except ValueError:
        said = f"proposition_id {row['proposition_id']!r} and dependency {row['dependency']!r}"
        raise _wrong(where, said, "whole numbers, in dependency with commas between them") from None
    text, category = row["question_natural_language"].strip(), row["tuple"].split("(")[0].split("-")[0].strip()
    if not text:
        raise _wrong(where, "an empty question_natural_language", "a question")
    own = tuple(parent for parent in parents if parent != 0)
    return Question(f"{text} Please answer yes or no.", number=number, parents=own, category=category)


def _add(found, prompt, where):
    if prompt.text in found:
        raise _wrong(where, f"the prompt {prompt.text[:60]!r} a second time", "each prompt once")
    found[prompt.text] = prompt


def _some(found, path):
    if not found:
        raise _wrong(str(path), "no questions", "the benchmark's own file")
    return found


def _wrong(where: str, said: str, wanted: str) -> ConfigError:
    return ConfigError(f"{where}: {said}; --questions needs {wanted}")


BENCHMARKS = {
    "vqascore": Benchmark(title="VQAScore", published="CLIP-FlanT5-XXL"),
    "geneval2": Benchmark(title="GenEval 2", published="Qwen3-VL-8B-Instruct", read=read_geneval2),
    "dpg": Benchmark(title="DPG-Bench", published="mPLUG-large", read=read_dpg),
}


def match(
    prompts: dict[str, Prompt], captions: dict[str, str], *, file: Path, allow_missing: bool
) -> tuple[dict[str, Prompt], Sequence[str]]:
    """Returns {image: the prompt that is its caption}, and the texts of the prompts without an image.

    Raises `ConfigError` for a caption that is not a prompt of the file, and for prompts without an image unless
    `allow_missing`.
    """
    pairs = {}
    for image, caption in captions.items():
        if caption.strip() not in prompts:
            given = f"the caption of {image}, {caption[:60]!r}, is no prompt of {file}"
            raise ConfigError(f"{given}; give the benchmark's images alone, with its prompts as captions")
        pairs[image] = prompts[caption.strip()]
    drawn = {prompt.text for prompt in pairs.values()}
    missing = [text for text in prompts if text not in drawn]
    if missing and not allow_missing:
        lack = f"{len(missing):,} of {len(prompts):,} prompts of {file} have no image, {missing[0][:60]!r} first"
        raise ConfigError(f"{lack}; make them, or pass --allow-missing")
    return pairs, missing
