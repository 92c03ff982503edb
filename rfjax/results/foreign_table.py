"""Reads anybody's table of runs: a CSV or Parquet file with named columns.

    run      a distinct name (without this column, rows are named by their line)
    loss     the loss at the end of training, positive
    flops    training FLOPs         params   trainable parameters
    images   training images seen (or `samples`)         anything else: metrics

The caller renames columns of other names; none is guessed. A renamed column replaces a column that already has the
name.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from rfjax.errors import ConfigError
from rfjax.inputs.paths import local_path
from rfjax.inputs.text import read_text

NUMBERS = ("loss", "flops", "params", "images")
# Columns that are text by what they mean, whatever they look like: a hash 2396e87 is no number, nor is a run 007.
TEXTS = ("run", "name", "id", "hash", "commit", "sha", "code_hash", "point", "study", "group", "tag", "version")


def read_table(
    path: str | Path, *, rename: Mapping[str, str] | None = None, flops_per_param_image: float | None = None
) -> pd.DataFrame:
    """The file as a frame whose index, "line", is a row's line in the file (Parquet: "row", its number from 1).

    `rename` maps our names to the file's. `flops_per_param_image` gives images = flops / (flops_per_param_image *
    params), or flops from params and images, where one of them is lacking. Without a column `run` no row may repeat
    another, since nothing would tell one run listed twice from two runs.

    Raises `ConfigError` naming the file, and the column or line, for what cannot be read.
    """
    path, rename = local_path(path, "the table"), rename or {}
    if not path.is_file():
        raise ConfigError(f"no table at {path}; name a CSV or Parquet file, or a results folder")
    is_parquet = path.suffix.lower() in (".parquet", ".pq")
    table = (
        _read_parquet(path)
        if is_parquet
        else _read_csv(path, texts=[theirs for ours, theirs in rename.items() if ours in TEXTS])
    )
    names = {theirs: ours for ours, theirs in rename.items()}
    for ours, theirs in rename.items():
        if names[theirs] != ours:
            raise ConfigError(f"column {theirs!r} of {path} cannot have two names; rename it once")
        if theirs not in table:
            near = difflib.get_close_matches(theirs, map(str, table.columns), 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(map(str, table.columns))}"
            raise ConfigError(f"{path} has no column {theirs!r} to be renamed {ours!r}{hint}")
    replaced = [ours for ours in rename if ours in table and ours not in names]
    table = table.drop(columns=replaced).rename(columns=names)
    _check_distinct(table.columns, path)
    if "samples" in table and "images" in table:
        raise ConfigError(f"{path} has both images and samples, which mean the same; leave or rename one of them")
    table = table.rename(columns={"samples": "images"})
    if "run" not in table:
        repeated = table.duplicated()
        place = table.index.name
        if repeated.any():
            row = table[repeated].iloc[0]
            first = table.index[(table.eq(row) | (table.isna() & row.isna())).all(axis=1)][0]
            repeats = f"{place} {row.name} of {path} repeats {place} {first} in every column"
            raise ConfigError(f"{repeats}; leave one, or tell them apart by a column run")
        runs = pd.Series([f"{place} {number}" for number in table.index], table.index, dtype=object, name="run")
        table = pd.concat([runs, table], axis=1)
    for name in NUMBERS:
        if name in table:
            numbers = pd.to_numeric(table[name], errors="coerce")
            words = table[name].notna() & numbers.isna()
            if words.any():
                at = table.index[words][0]
                where = f"{name} in {table.index.name} {at} of {path}"
                raise ConfigError(f"{where} is {table[name][at]!r}, which is no number{_hint(table[name][at])}")
            table[name] = numbers.astype(float)
    return _add_cost(table, flops_per_param_image)


def _hint(cell: object) -> str:
    """What a cell that is no number may be meant as, and the remedy; "" for any other word."""
    text = str(cell).strip()
    if re.fullmatch(r"-?\d+,\d+(e[+-]?\d+)?", text, re.IGNORECASE):
        return "; is its comma a decimal one? Write numbers with a point, as 0.31"
    if re.fullmatch(r"-?\d{1,3}([,. '_]\d{3})+(\.\d+)?", text):
        return "; write large numbers without marks between their digits"
    if re.fullmatch(r"-?[\d.]+ ?(%|[kKMGBT]|FLOPs?|FLOP)", text):
        return "; write plain numbers, without a unit"
    return ""


def _add_cost(table, flops_per_param_image):
    if flops_per_param_image is None:
        return table
    given = "FLOPs per parameter and image"
    if not (np.isfinite(flops_per_param_image) and flops_per_param_image > 0):
        raise ConfigError(f"{given} are {flops_per_param_image:g}; they must be positive")
    known = {"flops", "params", "images"} & set(table)
    if known == {"flops", "params"}:
        return table.assign(images=table["flops"] / (flops_per_param_image * table["params"]))
    if known == {"images", "params"}:
        return table.assign(flops=flops_per_param_image * table["params"] * table["images"])
    if len(known) == 3:
        raise ConfigError(f"the table has flops, params and images: {given} would contradict it; leave the option out")
    have = ", ".join(sorted(known)) or "none"
    raise ConfigError(f"{given} need params and one of flops and images; the table has {have}")


def _read_csv(path, texts=()):
    """A CSV file whose index is each row's line as an editor counts lines; blank lines are skipped but counted."""
    try:
        text = read_text(path, "the table")
        reader, rows, lines, end = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text)), [], [], 0
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(end + 1)  # a row with a quoted line break ends further down
            end = reader.line_num
    except csv.Error as error:
        raise ConfigError(f"{path} cannot be read as CSV: {error}") from None
    if not rows:
        raise ConfigError(f"{path} cannot be read as CSV: it is empty")
    width = len(rows[0])
    for line, row in zip(lines, rows, strict=True):
        if any(cell.strip() for cell in row[width:]):
            remedy = "name every column, or quote a cell with a comma"
            raise ConfigError(f"line {line} of {path} has {len(row)} cells and the header {width} columns; {remedy}")
    _check_distinct(pd.Index([name for name in rows[0] if name]), path)
    text = io.StringIO()
    csv.writer(text).writerows(row[:width] for row in rows)
    names = [name for name in rows[0] if name.strip().lower() in TEXTS or name in texts]
    try:
        text.seek(0)
        table = pd.read_csv(text, index_col=False, skip_blank_lines=False)
        text.seek(0)
        as_text = pd.read_csv(text, index_col=False, skip_blank_lines=False, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as CSV: {error}") from None
    table = table.assign(**{name: as_text[name] for name in names})
    table.index = pd.Index(lines[1:], name="line", dtype=int)
    return table.copy()  # one block of memory: with many columns, pandas warns of many blocks


def _separator(text: str) -> str:
    """What separates the columns: a comma, or where the header has none, a semicolon, a tab or a bar."""
    header = next((line for line in text.split("\n") if line.strip()), "")
    return next((mark for mark in ",;\t|" if mark in header), ",")


def _check_distinct(columns, path):
    twice = columns[columns.duplicated()]
    if len(twice):
        raise ConfigError(f"{path} has the column {twice[0]!r} more than once; leave one")


def _read_parquet(path):
    try:
        table = pd.read_parquet(path)
    except ImportError:
        raise ConfigError(f"reading {path} needs pyarrow: pip install 'rfjax[parquet]', or give a CSV") from None
    except Exception as error:  # pyarrow's classes, which are not imported here
        raise ConfigError(f"{path} cannot be read as Parquet: {error}") from None
    if any(name is not None for name in table.index.names):  # pandas keeps a named index apart
        table = table.reset_index()
    table.index = pd.RangeIndex(1, len(table) + 1, name="row")
    return table.copy()
