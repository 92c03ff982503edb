"""The files of a study of human preference: `study.json`, which raters may see, and `key.json`, which they may not.

A study has pairs of images, each of one prompt. An image has a blind id of 12 hex digits; the key says which side made
it. `rfjax compare` writes both files, and `rfjax votes` reads them. Reading checks every reference, so that no vote can
be counted for the wrong image. No JAX here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from rfjax.errors import ConfigError
from rfjax.files import write_whole
from rfjax.inputs.json_files import WrongJson, parse_json
from rfjax.inputs.text import read_text

SCHEMA = 1
STUDY, KEY, PAGES, VOTES = "study.json", "key.json", "pages", "votes"  # names in the study's folder
VOTE_COLUMNS = ("study", "rater", "pair", "question", "left", "right", "choice", "seconds", "at")
CHOICES = ("left", "right", "tie")
QUESTIONS = ("aesthetics", "prompt", "typography")  # in the order in which a rater answers them
NOISE = "noise"  # the `source` of an image that no side made
REMEDY = "restore it, or make the study again with rfjax compare"

Name = Literal["aesthetics", "prompt", "typography"]


@dataclass(frozen=True)
class Question:
    name: Name
    text: str  # as a rater reads it


@dataclass(frozen=True)
class Prompt:
    id: int  # place in the file of prompts, from 0
    prompt: str
    category: str | None = None
    challenge: str | None = None


class Check(TypedDict):
    """What makes a pair a check of its rater. A check has exactly one of two keys.

    `repeats` is the id of the earlier pair that is shown again with left and right exchanged. `right` is the id of the
    image that is plainly better.
    """

    repeats: NotRequired[str]
    right: NotRequired[str]


@dataclass(frozen=True)
class Pair:
    """Two images of one prompt, in the order of their ids. Each vote says which image was shown on the left."""

    pair: str  # id of the pair
    prompt: int  # id of the prompt
    images: list[str]  # blind ids
    questions: list[Name]
    check: Check | None = None  # None for a pair whose votes count


@dataclass(frozen=True, kw_only=True)
class Study:
    """The pairs and questions of a study. It holds neither names of runs nor paths."""

    schema: int
    study: str
    seed: int
    questions: list[Question]
    prompts: list[Prompt]
    raters: list[str]
    pairs: list[Pair]
    assigned: dict[str, list[str]] = field(default_factory=dict)  # rater -> pairs, in the order shown; empty: all pairs
    webp: dict[str, object] = field(default_factory=dict)  # how the images were encoded

    def pairs_of(self, rater: str) -> list[str]:
        """The ids of the pairs that a rater is asked about."""
        return list(self.assigned[rater]) if self.assigned else [pair.pair for pair in self.pairs]


@dataclass(frozen=True)
class KeyImage:
    run: str | None  # blind id of the side that made the image; None for an image of noise
    source: str  # file name, relative to the side's folder


@dataclass(frozen=True, kw_only=True)
class Key:
    """Which side (a run, or a folder of images) made which image."""

    schema: int
    study: str
    runs: dict[str, str]  # blind id of a side -> its name
    images: dict[str, KeyImage]
    sides: dict[str, dict[str, object]] = field(default_factory=dict)  # blind id -> what made the images


def read_study(folder: Path) -> Study:
    """Reads and checks a study's `study.json`. Raises `ConfigError`, naming the file, the value and the remedy."""
    path = Path(folder) / STUDY
    study = _read(path, Study)
    _check_study(path, study)
    return study


def read_key(folder: Path, study: Study) -> Key:
    """Reads a study's `key.json`. Raises `ConfigError` if the file cannot be used, is the key of another study, lacks
    an image of `study`, or has an image of an unknown side."""
    path = Path(folder) / KEY
    key = _read(path, Key)
    if key.study != study.study:
        raise ConfigError(
            f"{path} is of the study {key.study}, and {STUDY} of {study.study}; give the key of the study"
        )
    shown = {image for pair in study.pairs for image in pair.images}
    _refuse(path, "does not name the image", shown - set(key.images))
    _refuse(path, "has an image of the unknown run", {i.run for i in key.images.values() if i.run} - set(key.runs))
    return key


def write_study(folder: Path, study: Study, key: Key) -> None:
    """Writes a study's study.json and key.json, both or neither. Raises `RfjaxError` if they cannot be written."""
    write_whole({Path(folder) / KEY: _text(key), Path(folder) / STUDY: _text(study)})


def _text(value: Study | Key) -> str:
    return json.dumps(dataclasses.asdict(value), indent=1, ensure_ascii=False) + "\n"


def _read(path: Path, shape):
    """Reads a JSON file as the type `shape`. The schema's version is checked first, so that the error for a file of a
    newer schema names the version."""
    if not path.exists():
        raise ConfigError(f"no file at {path}; give the folder that rfjax compare wrote")
    text = read_text(path, "the study's file")
    try:
        schema = parse_json(text).get("schema")
        if schema != SCHEMA:
            raise ConfigError(f"{path} has schema {schema!r}, and this rfjax reads {SCHEMA}; {REMEDY}")
        return parse_json(text, shape)
    except WrongJson as problem:
        raise ConfigError(f"{path} cannot be read: {problem}; {REMEDY}") from None


def _check_study(path: Path, study: Study) -> None:
    _check_ids(path, "study", [study.study], 16)
    _check_ids(path, "pair", [pair.pair for pair in study.pairs], 12)
    _check_once(path, "the rater", study.raters)
    _check_once(path, "the question", [question.name for question in study.questions])
    _check_once(path, "the prompt", [prompt.id for prompt in study.prompts])
    known = {pair.pair: pair for pair in study.pairs}
    names, prompts = {question.name for question in study.questions}, {prompt.id for prompt in study.prompts}
    for pair in study.pairs:
        where = f"has in the pair {pair.pair}"
        _check_images(path, pair)
        _refuse(path, f"{where} the unknown prompt", {pair.prompt} - prompts)
        _refuse(path, f"{where} the unknown question", set(pair.questions) - names)
        _check_once(path, f"in the pair {pair.pair} the question", pair.questions)
        if pair.check is None:
            continue
        if len({"repeats", "right"} & set(pair.check)) != 1:
            raise ConfigError(f"{path} {where} a check with neither or both of repeats and right; {REMEDY}")
        if "right" in pair.check:
            _refuse(path, f"{where} the right image", {pair.check["right"]} - set(pair.images))
        else:
            original = known.get(pair.check["repeats"])
            if original is None or original.check or set(original.images) != set(pair.images):
                raise ConfigError(
                    f"{path} {where} a repeat of {pair.check['repeats']}, which is no pair of the same images; {REMEDY}"
                )
    if study.assigned:
        if set(study.assigned) != set(study.raters):
            raise ConfigError(f"{path} assigns pairs to raters other than its own; {REMEDY}")
        for rater, pairs in study.assigned.items():
            _check_once(path, f"for {rater} the pair", pairs)
            _refuse(path, f"assigns to {rater} the unknown pair", set(pairs) - set(known))


def _check_images(path: Path, pair: Pair) -> None:
    if len(pair.images) != 2 or pair.images[0] == pair.images[1]:
        raise ConfigError(f"{path} has the pair {pair.pair} without two different images; {REMEDY}")
    for image in pair.images:
        if not re.fullmatch("[0-9a-f]{12}", image):
            raise ConfigError(f"{path} has the image {image!r}; its id must be 12 hex digits; {REMEDY}")


def _check_ids(path: Path, what: str, ids: list[str], digits: int) -> None:
    for one in ids:
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", one):
            raise ConfigError(f"{path} has the {what} {one!r}; its id must be {digits} hex digits; {REMEDY}")
    _check_once(path, f"the {what}", ids)


def _check_once(path: Path, what: str, values: Iterable) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise ConfigError(f"{path} has {what} {value!r} twice; {REMEDY}")
        seen.add(value)


def _refuse(path: Path, what: str, wrong: Collection) -> None:
    if wrong:
        raise ConfigError(f"{path} {what} {sorted(wrong)[0]!r}; {REMEDY}")
