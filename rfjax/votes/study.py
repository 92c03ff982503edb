"""Reads a preference study with its key, to count votes: which run made which image, and which pairs are checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rfjax.compare import study_files
from rfjax.compare.study_files import Pair, Prompt, Question
from rfjax.errors import ConfigError

PREFERENCE, REPEAT, PLAIN = "preference", "repeat", "plain"  # what a pair is for


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyedStudy:
    """A study together with its key.

    A side is one of the runs or folders of images that are compared. `runs` are the sides' names, in the order of the
    key. `run_of` maps an image to the index in `runs` of the side that made it; images of noise are not in it.
    `compared` are the pairs that are not checks. `facts` say what made the images of each side.
    """

    folder: Path
    asked: study_files.Study
    pairs: Mapping[str, Pair]
    compared: Mapping[str, Pair]
    prompts: Mapping[int, Prompt]
    runs: tuple[str, ...]
    run_of: Mapping[str, int]
    facts: Mapping[str, Mapping[str, object]]

    @property
    def id(self) -> str:
        return self.asked.study

    @property
    def questions(self) -> list[Question]:
        return self.asked.questions

    @property
    def raters(self) -> list[str]:
        return self.asked.raters

    def questions_for(self, rater: str) -> int:
        """The number of answers that a rater is asked for, checks included."""
        return sum(len(self.pairs[pair].questions) for pair in self.asked.pairs_of(rater))


def purpose(pair: Pair) -> str:
    """Returns `preference` for a pair whose votes count; `repeat` or `plain` for a pair that checks the rater."""
    return PREFERENCE if pair.check is None else REPEAT if "repeats" in pair.check else PLAIN


def read_keyed_study(folder: Path) -> KeyedStudy:
    """Reads a study and its key.

    Raises `ConfigError` if a file is missing, damaged or another study's, if two sides have the same name, and if a
    pair that is not a check does not show images of two sides.
    """
    asked = study_files.read_study(folder)
    key = study_files.read_key(folder, asked)
    path = Path(folder) / study_files.KEY
    names = list(key.runs.values())
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{path} names two sides {twice!r}; {study_files.REMEDY}")
    places = {blind: place for place, blind in enumerate(key.runs)}
    run_of = {image: places[made.run] for image, made in key.images.items() if made.run is not None}
    compared = {pair.pair: pair for pair in asked.pairs if purpose(pair) == PREFERENCE}
    for pair in compared.values():
        if len({run_of.get(image) for image in pair.images} - {None}) != 2:
            raise ConfigError(f"{path} does not give pair {pair.pair} images of two sides; {study_files.REMEDY}")
    return KeyedStudy(
        folder=Path(folder),
        asked=asked,
        pairs={pair.pair: pair for pair in asked.pairs},
        compared=compared,
        prompts={prompt.id: prompt for prompt in asked.prompts},
        runs=tuple(names),
        run_of=run_of,
        facts={key.runs[blind]: dict(facts) for blind, facts in key.sides.items() if blind in key.runs},
    )
