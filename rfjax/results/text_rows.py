"""Splits the text of a table into rows of cells: it handles any usual separator, comments and Markdown."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from rfjax.errors import ConfigError

MARKS = ",;\t|"  # possible separators, the likeliest first
SEEN = 50  # so many rows at the start of the text decide the separator
_NUMBER = re.compile(r"[+-]?[0-9.,]*[0-9]([eE][+-]?[0-9]+)?%?")


@dataclass(frozen=True)
class TextRows:
    """The header and the rows of a table. Each row has as many cells as the header."""

    header: tuple[str, ...]  # "" for a column without a name
    rows: list[list[str]]
    lines: list[int]  # each row's line in the file, counted from 1
    notes: tuple[str, ...]  # what was skipped


def split_rows(text: str, path: Path) -> TextRows:
    """Splits a table's text into rows. Skips blank lines and comments, but counts them as lines.

    A first line `sep=;` (Excel's) names the separator. Raises `ConfigError` if the text is empty or is no CSV. Raises
    it, naming the line, if a row has more cells than the header, or if a line can be read both as a comment and as a
    row.
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
        raise ConfigError(f"{path} cannot be read as CSV, because it is empty; give a table with a header")
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
            f"line {marked[0]} of {path} begins with #, so it may be a comment or a row; remove the line or the sign"
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
    """Returns (number of the first line, cells) of each row that is not blank. The separator " " means any
    whitespace."""
    if separator == " ":
        return [(number, line.split()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    reader, rows, end = csv.reader(io.StringIO(text, newline=""), delimiter=separator), [], 0
    for row in reader:
        if any(cell.strip() for cell in row):
            rows.append((end + 1, row))  # a row with a quoted line break has several lines
        end = reader.line_num
    return rows


def _separator(text: str) -> str:
    """Finds the separator: the mark with which the largest number of rows have as many cells as the header.

    If none of `MARKS` splits the header, returns " " (whitespace) if the header has several words and every row has
    either as many words as the header or one word; else returns ",".
    """
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
    """Returns the line numbers of the comments above the table, and the other rows.

    If the last of these comments has a name for each column, as in a file of numpy.savetxt, it becomes the header.
    """
    above = next((place for place, (_, row) in enumerate(rows) if not row[0].lstrip().startswith("#")), 0)
    if not above:
        return [], rows
    (line, last), (_, first) = rows[above - 1], rows[above]
    if len(last) == len(first) > 1 and any(_NUMBER.fullmatch(cell.strip()) for cell in first):  # a row of data follows
        header = [last[0].lstrip().lstrip("#"), *last[1:]]
        return [number for number, _ in rows[: above - 1]], [(line, header), *rows[above:]]
    return [number for number, _ in rows[:above]], rows[above:]


def _without_bars(rows):
    """Removes a Markdown table's outer bars and its rule under the header; strips the cells of any table."""
    if len(rows) > 1 and all(re.fullmatch(r"\s*:?-+:?\s*|\s*", cell) for cell in rows[1][1]):
        rows = [rows[0], *rows[2:]]
    if all(len(row) > 2 and not row[0].strip() and not row[-1].strip() for _, row in rows):
        rows = [(line, row[1:-1]) for line, row in rows]
    return [(line, [cell.strip() for cell in row]) for line, row in rows]
