"""Reads the files that raters hand in, and joins them: each rater's last answer to each question counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rfjax.compare.design import left_and_right
from rfjax.compare.study_files import VOTE_COLUMNS, VOTES
from rfjax.errors import ConfigError
from rfjax.inputs.text import read_text
from rfjax.results.text_rows import split_rows
from rfjax.votes.study import KeyedStudy

SHOWN = 120  # most characters of a file's header that a message quotes: the file may be anything
NUMBERS = {"left": 1, "tie": 0, "right": -1}  # choice -> `Vote.choice`


@dataclass(frozen=True)
class Vote:
    """One answer: which image stood left and right, and the choice (1 left, 0 tie, -1 right)."""

    rater: str
    pair: str
    question: str
    left: str
    right: str
    choice: int
    seconds: float
    at: datetime
    where: str  # file and line, for messages

    @property
    def chosen(self) -> str | None:
        """The image that was chosen; None for a tie."""
        return {1: self.left, -1: self.right}.get(self.choice)


@dataclass(frozen=True)
class Joined:
    """The votes that remain after joining all files, sorted so that the order of files does not matter, with counts of
    files and rows."""

    votes: tuple[Vote, ...]
    files: int
    doubled: int  # rows that repeat another row, and do not count again
    replaced: int  # answers that the same rater changed later


def vote_files(folder: Path, given: Sequence[Path] = ()) -> list[Path]:
    """Returns the given files of votes, or all CSVs in the study's folder `votes`. Raises `ConfigError` if there are
    none."""
    found = list(given) or sorted((folder / VOTES).glob("*.csv"))
    if not found:
        remedy = "put the raters' files there, or name them after the folder"
        raise ConfigError(f"no votes: {folder / VOTES} has no .csv file; {remedy}")
    return found


def read_votes(study: KeyedStudy, files: Iterable[Path]) -> Joined:
    """Reads and joins files of votes, in any order.

    Rows with the same answer at the same time count as one vote. If a rater answered a question about a pair more than
    once, the latest answer counts. Raises `ConfigError`, naming the file and the line, for a row of another study, for
    an unknown rater, pair, question or choice, for images that are not the pair's, or not left and right as on the
    rater's page, and for two different answers with the same time.
    """
    files = list(files)
    rows = [vote for path in files for vote in _read_file(study, path)]
    latest: dict[tuple[str, str, str], Vote] = {}
    doubled = replaced = 0
    for vote in sorted(rows, key=lambda vote: (vote.at, vote.seconds, vote.where)):
        place = vote.rater, vote.pair, vote.question
        before = latest.get(place)
        if before is None:
            latest[place] = vote
        elif before.at < vote.at:
            replaced += 1
            latest[place] = vote
        elif before.chosen == vote.chosen:
            doubled += 1
        else:
            raise ConfigError(
                f"{before.where} and {vote.where} are two answers of rater {vote.rater} to {vote.question} of pair "
                f"{vote.pair} at the same time; ask the rater which is meant, and remove the other row"
            )
    votes = tuple(latest[place] for place in sorted(latest))
    return Joined(votes=votes, files=len(files), doubled=doubled, replaced=replaced)


def _read_file(study: KeyedStudy, path: Path) -> list[Vote]:
    table = split_rows(read_text(path, "the file of votes"), path)
    names = table.header
    lacking = [name for name in VOTE_COLUMNS if name not in names]
    if lacking or len(set(names)) != len(names):
        shown = ", ".join(names)
        shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "..."
        raise ConfigError(
            f"{path} has the columns {shown}; a file of votes has {', '.join(VOTE_COLUMNS)}: export it again"
        )
    asked = {rater: set(study.asked.pairs_of(rater)) for rater in study.raters}
    rows = zip(table.rows, table.lines, strict=True)
    return [_parse(study, asked, dict(zip(names, row, strict=True)), f"line {line} of {path}") for row, line in rows]


def _parse(study: KeyedStudy, asked: dict[str, set[str]], row: dict[str, str], where: str) -> Vote:
    """Reads the vote in one row of a file. Raises `ConfigError`, naming the line and the cell."""
    row = {name: cell.strip() for name, cell in row.items()}
    lacking = [name for name in VOTE_COLUMNS if not row.get(name)]
    if lacking:
        raise ConfigError(f"{where} has no {lacking[0]}; the file was cut or edited: export the votes again")
    pair = study.pairs.get(row["pair"])
    facts = (
        ("study", row["study"] == study.id, f"this study is {study.id}: take the file out"),
        ("rater", row["rater"] in study.raters, f"the study's raters are {', '.join(study.raters)}"),
        ("pair", pair is not None, "the study has no such pair"),
        ("pair", row["pair"] in asked.get(row["rater"], ()), f"rater {row['rater']} was not asked about it"),
        ("question", pair is not None and row["question"] in pair.questions, "the pair is not asked it"),
        ("choice", row["choice"] in NUMBERS, f"it must be {', '.join(NUMBERS)}"),
    )
    for name, holds, remedy in facts:
        if not holds:
            raise ConfigError(f"{where} has {name} {row[name]!r}; {remedy}")
    if sorted((row["left"], row["right"])) != sorted(pair.images):
        raise ConfigError(
            f"{where} has images {row['left']} and {row['right']}, and pair {pair.pair} shows {pair.images[0]} and "
            f"{pair.images[1]}; the file was edited: export the votes again"
        )
    if study.asked.assigned and (row["left"], row["right"]) != left_and_right(study.id, row["rater"], pair):
        raise ConfigError(
            f"{where} has image {row['left']} on the left of pair {pair.pair}, and rater {row['rater']} saw it on the "
            "right; the file was edited: export the votes again"
        )
    cells = {name: row[name] for name in ("rater", "pair", "question", "left", "right")}
    choice = NUMBERS[row["choice"]]
    return Vote(**cells, choice=choice, seconds=_seconds(row, where), at=_time(row, where), where=where)


def _seconds(row, where):
    try:
        seconds = float(row["seconds"])
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise ConfigError(f"{where} has seconds {row['seconds']!r}; it must be a number from 0")
    return seconds


def _time(row, where):
    try:
        at = datetime.fromisoformat(row["at"])
    except ValueError:
        raise ConfigError(f"{where} has at {row['at']!r}; it must be a time such as 2026-11-27T10:00:00Z") from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
