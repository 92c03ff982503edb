"""Reads tables of metadata in a folder of images: metadata.csv and metadata.jsonl, as in Hugging Face's imagefolder.

A row belongs to the image that its column `file_name` names, relative to the table's folder. A row whose cells cannot
be assigned to columns with certainty is left out, and reported by its line number, so that no image gets wrong columns.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rfjax.inputs.files import MOST_BYTES
from rfjax.inputs.json_files import parse_json
from rfjax.inputs.text import read_text
from rfjax.prepare.sources import CAPTION_COLUMNS

TABLES = ("metadata.csv", "metadata.jsonl")  # if a folder has both, metadata.jsonl overrides
UNREAD_TABLES = "tables under other names (rename to metadata.csv or metadata.jsonl, with a column file_name)"
NO_NAMES = "tables of metadata without a column file_name"
NO_CAPTIONS = "tables of metadata without a column of captions"
UNREADABLE, NAMELESS, AGAIN = "cannot be read", "have no file_name", "name an image again"
LONG, UNCLOSED = "have more cells than the header (quote a cell with a comma)", "have a quote that is not closed"
_OTHER_MARKS = ";\t|"


@dataclass(frozen=True)
class Metadata:
    """What a folder's tables say."""

    columns: Mapping[str, Mapping[str, object]]  # the image's path inside the folder -> its columns
    left_out: Mapping[str, tuple[str, ...]]  # reason -> names of what is not used
    noticed: Mapping[str, tuple[str, ...]]  # reason -> names of what is used but may be a mistake


@dataclass(frozen=True)
class Table:
    """A table that was read."""

    columns: Mapping[str, dict[str, object]]  # image -> its columns
    unread: Mapping[str, Sequence[str]]  # reason -> lines of rows that are left out
    header: tuple[str, ...]


def read_tables(
    root: Path, tables: Iterable[str], images: Collection[str], caption_column: str | None = None
) -> Metadata:
    """Reads the columns of `images` from `tables`; both are paths inside the folder `root`.

    If two tables have a row for an image, the table nearer to the image overrides the other, and metadata.jsonl
    overrides metadata.csv. The result's `noticed` lists the tables that have neither `caption_column` nor
    a column of `CAPTION_COLUMNS`. Raises `ConfigError` for a table that is not text.
    """
    columns: dict[str, dict[str, object]] = {}
    owners: dict[str, str] = {}
    left_out: dict[str, list[str]] = {}
    noticed: dict[str, list[str]] = {}
    for table in sorted(tables, key=lambda name: (name.count("/"), name)):
        text = read_text(root / table, "the table of metadata")
        found = read_table(text, table, images)
        has = f"{table} (it has {', '.join(found.header) or 'none'}{_separated(text)})"
        if "file_name" not in found.header:
            left_out.setdefault(NO_NAMES, []).append(has)
            continue
        if not {*CAPTION_COLUMNS, caption_column} & {*found.header}:
            noticed.setdefault(NO_CAPTIONS, []).append(has)
        for why, lines in found.unread.items():
            left_out.setdefault(f"rows of {table} that {why}", []).extend(lines)
        for path, values in found.columns.items():
            if path in columns and columns[path] != values:
                left_out.setdefault(f"rows of {owners[path]} whose image {table} names, too", []).append(path)
            columns[path], owners[path] = values, table
    if absent := sorted(columns.keys() - set(images)):
        left_out["rows of metadata that name no image"] = absent
    return Metadata(columns, *({why: tuple(names) for why, names in each.items()} for each in (left_out, noticed)))


def read_table(text: str, table: str, images: Collection[str]) -> Table:
    """Reads the `text` of the table at the path `table`. This path and those in `images` are relative to one folder."""
    folder = PurePosixPath(table).parent
    rows = _csv_rows(text, folder, images) if table.endswith(".csv") else _json_rows(text)
    found: dict[str, dict[str, object]] = {}
    unread: dict[str, list[str]] = {}
    header: dict[str, None] = {}  # in order
    for line, row in rows:
        if isinstance(row, str):
            unread.setdefault(row, []).append(line)
            continue
        header |= dict.fromkeys(row)
        name = row.pop("file_name", None)
        if line == _HEADER:
            continue
        if not isinstance(name, str) or not name:
            unread.setdefault(NAMELESS, []).append(line)
            continue
        path = str(folder / name)
        path = path if path in images else str(folder / name.strip())
        if path in found:
            unread.setdefault(AGAIN, []).append(line)
            continue
        if "caption" not in row:
            column = next((column for column in CAPTION_COLUMNS if column in row), None)
            row |= {"caption": row[column]} if column else {}
        found[path] = row
    return Table(found, unread, tuple(map(str, header)))


_HEADER = "header"  # stands for the header's row in place of its line's number


def _json_rows(text: str) -> Iterator[tuple[str, dict | str]]:
    """Yields (line, columns), or (line, why the row is left out)."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", parse_json(line)
            except ValueError:
                yield f"line {number}", UNREADABLE


def _csv_rows(text: str, folder: PurePosixPath, images: Collection[str]) -> Iterator[tuple[str, dict | str]]:
    header: list[str] | None = None
    for number, cells in _cells(text, folder, images):
        line = f"line {number}"
        if cells is None:
            yield line, UNCLOSED
        elif header is None:
            header = [cell.strip() for cell in cells]
            yield _HEADER, dict.fromkeys(header)
        elif any(cell.strip() for cell in cells[len(header) :]):
            yield line, LONG
        else:
            yield line, dict(zip(header, [*cells, *[None] * (len(header) - len(cells))], strict=False))


def _cells(text: str, folder: PurePosixPath, images: Collection[str]) -> Iterator[tuple[int, list[str] | None]]:
    """Yields (number of its first line, cells) for each row that is not blank; cells are None if a quote is not closed.

    After an unclosed quote, reading goes on at the next line, so that the quote swallows no rows. `folder` and `images`
    are for `_holds_row`, which finds quotes that are closed only by a later row's quote.
    """
    lines, start = text.split("\n"), 0
    blanks = ", " in text.lstrip("\n").partition("\n")[0]  # spaces follow commas, also before quotes
    before = csv.field_size_limit(MOST_BYTES)
    try:
        while start < len(lines):
            rest = (f"{lines[number]}\n" for number in range(start, len(lines)))
            reader, row = csv.reader(rest, strict=True, skipinitialspace=blanks), start
            try:
                for cells in reader:
                    if any(_holds_row(cell, folder, images) for cell in cells if "\n" in cell):
                        raise csv.Error("a quote is not closed")
                    if cells:
                        yield row + 1, cells
                    row = start + reader.line_num
                return
            except csv.Error:
                yield row + 1, None
                start = row + 1
    finally:
        csv.field_size_limit(before)


def _holds_row(cell: str, folder: PurePosixPath, images: Collection[str]) -> bool:
    """Whether, in a cell of several lines, a line after the first begins with an image's name and a comma. Then a quote
    in the table was probably not closed."""
    begins = (line.partition(",") for line in cell.split("\n")[1:])
    return any(comma and str(folder / name.strip(' "')) in images for name, comma, _ in begins)


def _separated(text: str) -> str:
    """Returns a remark on a table whose first line has a cell `file_name` if another mark than commas separates cells;
    "" for any other table."""
    first = text.lstrip("\n").partition("\n")[0]
    for mark in _OTHER_MARKS:
        if "file_name" in [cell.strip(' "') for cell in first.split(mark)] and mark in first:
            return f", separated by {mark!r}: separate by commas"
    return ""
