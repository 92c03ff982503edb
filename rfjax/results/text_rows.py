"""Splits the text of a table, whatever program wrote it, into rows of cells: separators, comments, Markdown."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from rfjax.errors import ConfigError

MARKS = ",;\t|"  # what may separate columns, the likelier first
SEEN = 50  # rows that decide the separator
_NUMBER = re.compile(r"[+-]?[0-9.,]*[0-9]([eE][+-]?[0-9]+)?%?")


@dataclass(frozen=True)
class TextRows:
    """The header and the rows of a table, each as long as the header, with each row's line as an editor counts lines.

    A column without a name has the name "". `notes` say what was passed over.
    """

    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    notes: tuple[str, ...]


def split_rows(text: str, path: Path) -> TextRows:
    """The rows of a table as text. Blank lines and comments are skipped but counted.

    A first line `sep=;` (Excel's) names the separator. Raises `ConfigError` naming the file and the line.
    """
    named = re.match(r"\s*sep=(.)[ \t]*\n", text)
    separator = named[1] if named else _separator(text)
    try:
        rows = _cells(text, separator)
    except csv.Error as error:
        raise ConfigError(f"{path} cannot be read as CSV: {error}") from None
    rows = rows[1:] if named else rows
    comments, rows = _without_comments(rows)
    if separator == "|":
        rows = _without_bars(rows)
    if not rows:
        raise ConfigError(f"{path} cannot be read as CSV: it is empty")
    (_, header), *rows = rows
    width, kept = len(header), []
    for line, row in rows:
        if row[0].lstrip().startswith("#") and len(row) != width:
            comments.append(line)
            continue
        if any(cell.strip() for cell in row[width:]):
            remedy = "name every column, or quote a cell with a comma"
            raise ConfigError(f"line {line} of {path} has {len(row)} cells and the header {width} columns; {remedy}")
        kept.append((line, [*row[:width], *[""] * (width - len(row))]))
    marked = [line for line, row in kept if row[0].lstrip().startswith("#")]
    if marked and len(marked) < len(kept):
        raise ConfigError(
            f"line {marked[0]} of {path} begins with #: is it a comment or a row? Remove the line, or the sign"
        )
    notes = [f"comments, not read: {_lines(comments)} of {path.name}"] if comments else []
    short = [line for line, row in rows if len(row) < width and line not in comments]
    if short:
        notes.append(f"{_lines(short)} of {path.name} have fewer cells than the header: the others are taken as empty")
    names = tuple(name.strip() for name in header)
    return TextRows(names, [row for _, row in kept], [line for line, _ in kept], tuple(notes))


def _lines(numbers: list[int], most: int = 5) -> str:
    listed = ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")
    return f"line{'s'[: len(numbers) != 1]} {listed}"


def _cells(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """(line, cells) of each row that is not blank. A separator " " means any blanks."""
    if separator == " ":
        return [(number, line.split()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    reader, rows, end = csv.reader(io.StringIO(text, newline=""), delimiter=separator), [], 0
    for row in reader:
        if any(cell.strip() for cell in row):
            rows.append((end + 1, row))  # a row with a quoted line break ends further down
        end = reader.line_num
    return rows


def _separator(text: str) -> str:
    """The mark that gives most rows as many cells as the header; blanks where no mark splits the header."""
    start = "\n".join(line for line in text.split("\n")[: 4 * SEEN] if not line.lstrip().startswith("#"))
    found = []
    for place, mark in enumerate(MARKS):
        try:
            rows = _cells(start, mark)[:SEEN]
        except csv.Error:
            continue
        width = len(rows[0][1]) if rows else 0
        if width > 1:
            found.append((sum(len(row) == width for _, row in rows), width, -place, mark))
    if found:
        return max(found)[-1]
    rows = _cells(start, " ")[:SEEN]
    return " " if len(rows) > 1 and len({len(row) for _, row in rows} - {1}) == 1 and len(rows[0][1]) > 1 else ","


def _without_comments(rows):
    """(the lines of the comments above the table, the other rows). A comment that names the columns is the header."""
    above = next((place for place, (_, row) in enumerate(rows) if not row[0].lstrip().startswith("#")), 0)
    if not above:
        return [], rows
    (line, last), (_, first) = rows[above - 1], rows[above]
    if len(last) == len(first) > 1 and any(_NUMBER.fullmatch(cell.strip()) for cell in first):  # as numpy.savetxt does
        header = [last[0].lstrip().lstrip("#"), *last[1:]]
        return [number for number, _ in rows[: above - 1]], [(line, header), *rows[above:]]
    return [number for number, _ in rows[:above]], rows[above:]


def _without_bars(rows):
    """The rows of a Markdown table without its outer bars and its rule; any other rows as they are."""
    if len(rows) > 1 and all(re.fullmatch(r"\s*:?-+:?\s*|\s*", cell) for cell in rows[1][1]):
        rows = [rows[0], *rows[2:]]
    if all(len(row) > 2 and not row[0].strip() and not row[-1].strip() for _, row in rows):
        rows = [(line, row[1:-1]) for line, row in rows]
    return [(line, [cell.strip() for cell in row]) for line, row in rows]
