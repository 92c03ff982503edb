"""What a preference study asked: its questions, prompts, raters and pairs, and which run made which image.

`rfjax compare` writes both files; this module reads them and checks that they fit together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypedDict

from rfjax.errors import ConfigError
from rfjax.inputs.json_files import read_json

SCHEMA = 1
REMEDY = "give the folder that `rfjax compare` wrote, unchanged"
PREFERENCE, REPEAT, PLAIN = "preference", "repeat", "plain"  # what a pair is for


@dataclass(frozen=True)
class Question:
    """A question that raters answer, by its name and as they read it."""

    name: str
    text: str = ""


@dataclass(frozen=True)
class Prompt:
    """A prompt of the study, with PartiPrompts' category and challenge where it has them."""

    id: int
    prompt: str = ""
    category: str | None = None
    challenge: str | None = None


@dataclass(frozen=True)
class Check:
    """What a pair tests in a rater: `repeats` names the pair that it shows again with its sides swapped, `right` the
    image that is plainly better."""

    repeats: str | None = None
    right: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two images of one prompt, by their blind names, and the questions about them."""

    pair: str
    prompt: int
    images: list[str]
    questions: list[str]
    check: Check | None = None

    @property
    def purpose(self) -> str:
        """`preference` for a pair whose votes count, `repeat` or `plain` for one that tests the rater."""
        return PREFERENCE if self.check is None else REPEAT if self.check.repeats else PLAIN


class ImageOf(TypedDict):
    """The run that made an image, by its blind name."""

    run: str


@dataclass(frozen=True)
class _Key:
    schema: int
    study: str
    runs: dict[str, str]
    images: dict[str, ImageOf]
    checkpoints: dict[str, dict[str, object]] = field(default_factory=dict)


@dataclass(frozen=True)
class _StudyFile:
    schema: int
    study: str
    questions: list[Question]
    prompts: list[Prompt]
    raters: list[str]
    pairs: list[Pair]


@dataclass(frozen=True)
class Study:
    """A preference study with its key. `runs` are the runs' names in the order of their blind names; `run_of` gives the
    place of an image's run in it; `checkpoints` what the key tells of each run's checkpoint, by the run's name."""

    folder: Path
    id: str
    questions: tuple[Question, ...]
    prompts: dict[int, Prompt]
    raters: tuple[str, ...]
    pairs: dict[str, Pair]
    runs: tuple[str, ...]
    run_of: dict[str, int]
    checkpoints: dict[str, dict[str, object]]

    @cached_property
    def compared(self) -> dict[str, Pair]:
        """The pairs whose votes count: no checks, and images of two runs."""
        return {name: pair for name, pair in self.pairs.items() if pair.purpose == PREFERENCE}


def read_study(folder: Path) -> Study:
    """Reads study.json and key.json of a study's folder.

    Raises `ConfigError`, naming the file, if one is missing or damaged, and if the two do not fit together.
    """
    asked, key = _read(folder / "study.json", _StudyFile), _read(folder / "key.json", _Key)
    if key.study != asked.study:
        raise ConfigError(f"{folder / 'key.json'} is of study {key.study} and study.json of {asked.study}; {REMEDY}")
    names = list(key.runs.values())
    if len(set(names)) != len(names):
        raise ConfigError(f"{folder / 'key.json'} has one run under two blind names; {REMEDY}")
    order = {blind: place for place, blind in enumerate(key.runs)}
    unknown = next((image for image, of in key.images.items() if of["run"] not in order), None)
    if unknown is not None:
        raise ConfigError(f"image {unknown} of {folder / 'key.json'} is of a run that it does not name; {REMEDY}")
    study = Study(
        folder=folder,
        id=asked.study,
        questions=tuple(asked.questions),
        prompts={prompt.id: prompt for prompt in asked.prompts},
        raters=tuple(asked.raters),
        pairs={pair.pair: pair for pair in asked.pairs},
        runs=tuple(names),
        run_of={image: order[of["run"]] for image, of in key.images.items()},
        checkpoints={key.runs[blind]: facts for blind, facts in key.checkpoints.items() if blind in key.runs},
    )
    for what, items, kept in (("pair", asked.pairs, study.pairs), ("prompt", asked.prompts, study.prompts)):
        if len(kept) != len(items):
            raise ConfigError(f"{folder / 'study.json'} has one {what} twice; {REMEDY}")
    for pair in study.pairs.values():
        if problem := _problem(study, pair):
            raise ConfigError(f"pair {pair.pair} of {folder / 'study.json'} {problem}; {REMEDY}")
    return study


def _read(path: Path, shape):
    try:
        found = read_json(path, shape, remedy=REMEDY, error=ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"no file at {path}; {REMEDY}") from None
    if found.schema != SCHEMA:
        raise ConfigError(f"{path} has schema {found.schema}; this rfjax reads schema {SCHEMA}")
    return found


def _problem(study: Study, pair: Pair) -> str:
    """Says what is wrong with a pair; "" if nothing is."""
    if len(pair.images) != 2 or pair.images[0] == pair.images[1]:
        return "does not have two images"
    if pair.prompt not in study.prompts:
        return f"has prompt {pair.prompt}, which is not among the prompts"
    asked = {question.name for question in study.questions}
    if not pair.questions or not set(pair.questions) <= asked:
        return f"has questions {', '.join(pair.questions) or 'none'}; the study asks {', '.join(sorted(asked))}"
    if pair.purpose == PREFERENCE:
        runs = [study.run_of.get(image) for image in pair.images]
        if None in runs:
            return "has an image that key.json does not name"
        if runs[0] == runs[1]:
            return "has two images of one run"
    if pair.check and pair.check.repeats and pair.check.repeats not in study.pairs:
        return f"repeats pair {pair.check.repeats}, which is not there"
    if pair.check and not pair.check.repeats and pair.check.right not in pair.images:
        return f"is a check whose right image is {pair.check.right}, which it does not show"
    return ""
