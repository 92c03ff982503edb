"""Reads a table of runs from any tool: a CSV or Parquet file with named columns.

    run      a distinct name (without this column, rows are named by their line)
    loss     the loss at the end of training, positive
    flops    training FLOPs         params   trainable parameters
    images   training images seen (or `samples`)         anything else: metrics

Columns that have other names must be renamed by the caller. Names are never guessed, but capitals and surrounding
blanks do not matter (FLOPs). If the table already has a column of the new name, the renamed column replaces it.
"""

from __future__ import annotations

import difflib
import gzip
import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from rfjax.errors import ConfigError
from rfjax.inputs.files import MOST_BYTES, read_bytes
from rfjax.inputs.paths import local_path
from rfjax.inputs.text import UndecodableText, decode_text
from rfjax.results.numbers_in_text import Marks, find_marks, is_missing, read_number
from rfjax.results.text_rows import split_rows

NUMBERS = ("loss", "flops", "params", "images")
OURS = ("run", *NUMBERS, "samples", "role", "trunk")
# A column with one of these words in its name is text, even if it looks like numbers: the hash 2396e87, the run 007.
TEXTS = frozenset(
    "run name id ids uuid hash commit sha sha1 sha256 md5 git revision branch point study group tag tags version model "
    "dataset corpus config checkpoint path file folder host user date time created notes comment state role "
    "trunk".split()
)
# Words in a column's name that mean another unit or scale. A loss's name may hold such words: a log loss is a loss.
_SCALED = re.compile(
    r"(kilo|mega|giga|tera|peta|exa|zetta|[kmgtpez])flops?|log(10|2)?|ln|thousands?|millions?|billions?|trillions?"
    r"|[kmbgtpez]|1e[0-9]+|10\^[0-9]+",
    re.IGNORECASE,
)
# first bytes of a file that is no CSV -> what it is, and the remedy
_OTHER_FILES = {
    b"PK\x03\x04": "an Excel workbook or a zip archive; save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    b"ARROW1": "an Arrow file; write it with pyarrow.parquet.write_table or as CSV",
    b"\x89HDF": "an HDF5 file; write the table as CSV",
    b"BZh": "compressed by bzip2; unpack it first",
    b"\xfd7zXZ": "compressed by xz; unpack it first",
    b"(\xb5/\xfd": "compressed by zstd; unpack it first",
}


def read_table(
    path: str | Path, *, rename: Mapping[str, str] | None = None, flops_per_param_image: float | None = None
) -> pd.DataFrame:
    """Reads the file as a frame. Its index, named "line", holds each row's line in the file (Parquet: the row's number
    from 1, named "row").

    `rename` maps our names to the file's names. With `flops_per_param_image`, a missing column `images` or `flops` is
    computed from flops = flops_per_param_image * params * images. If the file has no column `run`, two equal rows are
    refused, since they could be the same run listed twice. The frame's `attrs["notes"]` says what was skipped, and how
    numbers and names were read if that is not obvious; `attrs["runs_are_lines"]` is true if runs are named by lines.

    Raises `ConfigError`, naming the file and the column or line, if the table cannot be read.
    """
    path, rename = local_path(path, "the table"), rename or {}
    if not path.is_file():
        raise ConfigError(f"no table at {path}; name a CSV or Parquet file, or a results folder")
    table, notes = _read_file(path)
    table, found = _with_our_names(table, path, rename)
    notes += found
    if "samples" in table and "images" in table:
        raise ConfigError(f"{path} has both images and samples, which mean the same; leave or rename one of them")
    table = table.rename(columns={"samples": "images"})
    table, found = _with_numbers(table, path)
    notes += found
    notes += _unfinished(table, path) + _summaries(table, path)
    nameless = "run" not in table
    if nameless:
        _check_repeated(table, path)
        runs = pd.Series([f"{table.index.name} {n}" for n in table.index], table.index, dtype=object, name="run")
        table = pd.concat([runs, table], axis=1)
    if "trunk" in table:
        table = table.assign(trunk=_trunks(table))
    table = _add_cost(table, flops_per_param_image)
    table.attrs |= {"notes": notes, "runs_are_lines": nameless}
    return table


def holds_another_unit(name: str) -> bool:
    """Whether a column's name says that its numbers are in another unit than ours: GFLOPs, Params (M), log10_flops."""
    words = re.findall(r"10\^[0-9]+|[A-Za-z0-9]+", name)
    return len(name) > 1 and any(_SCALED.fullmatch(word) for word in words)


def _with_our_names(table, path, rename):
    """Returns the table with our column names, and notes on names that the file spells with other capitals."""
    rename = {ours: theirs if theirs in table else theirs.strip() for ours, theirs in rename.items()}
    names = {theirs: ours for ours, theirs in rename.items()}
    for ours, theirs in rename.items():
        if names[theirs] != ours:
            raise ConfigError(f"column {theirs!r} of {path} cannot have two names; rename it once")
        if theirs not in table:
            near = difflib.get_close_matches(theirs, table.columns, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(table.columns)}"
            raise ConfigError(f"{path} has no column {theirs!r} to be renamed {ours!r}{hint}")
        if ours in ("flops", "params", "images", "samples") and holds_another_unit(theirs):
            given = f"column {theirs!r} of {path} cannot be taken as {ours}: its name says that it is in another unit"
            raise ConfigError(f"{given}; convert its numbers (FLOP, parameters, images), and name it {ours}")
    replaced = [ours for ours in rename if ours in table and ours not in names]
    table = table.drop(columns=replaced).rename(columns=names)
    _check_distinct(table.columns, path)
    notes = []
    for ours in OURS:
        alike = [name for name in table.columns if name.lower() == ours and name not in OURS]
        if alike and ours not in names.values() and len(alike) + (ours in table) > 1:
            several = ", ".join(map(repr, [ours] * (ours in table) + alike))
            raise ConfigError(f'{path} has {several}, which are all {ours}; leave one, or give --rename "{ours}=NAME"')
        if ours not in table and alike:
            table = table.rename(columns={alike[0]: ours})
            notes.append(f"column {alike[0]!r} of {path.name} is read as {ours}")
    return table, notes


def _with_numbers(table, path):
    """Returns the table with names as text and numbers as floats, and notes on how commas were read.

    Raises `ConfigError` for a cell of `NUMBERS` that is no number, or whose comma may be either a decimal comma or a
    mark between thousands.
    """
    cells = {name: _cells(table[name]) for name in table.columns}
    marks = Marks()
    for name in NUMBERS:
        marks |= _marks(cells.get(name))
    if marks.ambiguous:
        name, line = next(
            (name, line)
            for name in NUMBERS
            for line, cell in zip(table.index, cells.get(name) or (), strict=False)
            if cell == marks.ambiguous
        )
        raise ConfigError(
            f"{name} in {table.index.name} {line} of {path} is {marks.ambiguous!r}, whose comma may be a decimal one "
            "or stand between thousands; write it as 1.234 or as 1234"
        )
    other, word, like = (",", "point", "1.234") if marks.mark == "." else ("\\.", "comma", "1,234")
    for line, cell in zip(table.index, cells.get("loss") or (), strict=False):
        if re.fullmatch(rf"[0-9]{{1,3}}{other}[0-9]{{3}}", cell.strip()):  # a loss is not in the thousands
            where = f"loss in {table.index.name} {line} of {path} is {cell!r}"
            raise ConfigError(f"{where}, where other cells have a decimal {word}; write it with a {word}, as {like}")
    columns = {}
    for name in table.columns:
        if name in NUMBERS:
            columns[name] = _numbers(name, cells[name], table, path, marks.mark)
        elif cells[name] is not None:
            columns[name] = _metric(name, cells[name], marks)
        else:
            columns[name] = _names(table[name]) if _is_text(name) else table[name]
    notes = [f"numbers of {path.name} are read with a decimal comma"] if marks.mark == "," else []
    grouped = [name for name in NUMBERS if marks.mark == "." and any("," in cell for cell in cells.get(name) or ())]
    if grouped:
        notes.append(f"commas in {', '.join(grouped)} of {path.name} are read as marks between thousands")
    return pd.DataFrame(columns, index=table.index), notes


def _unfinished(table, path) -> list[str]:
    """Returns a note that names the rows whose column `state` says that the run did not finish. The rows stay in the
    table, although their loss is not final."""
    lines = []
    for name in (name for name in table.columns if name.lower() == "state"):
        states = table[name].astype(str).str.strip().str.lower()
        bad = states.isin(("crashed", "failed", "running", "killed", "preempted", "stopped", "diverged"))
        if bad.any():
            listed = ", ".join(f"{table.index.name} {line} ({states[line]})" for line in table.index[bad][:5])
            more = f" and {int(bad.sum()) - 5} more" if bad.sum() > 5 else ""
            lines.append(f"{name} of {path.name} says that {listed}{more} did not finish; they are fitted all the same")
    return lines


def _summaries(table, path) -> list[str]:
    """Returns a note that names the rows whose run is called "mean", "std", "total" or the like, since such a row may
    sum up other rows. The rows stay in the table, and are fitted as runs."""
    words = ("mean", "average", "avg", "median", "std", "min", "max", "sum", "total")
    named = table["run"].astype(str).str.strip().str.lower() if "run" in table else pd.Series(dtype=str)
    bad = named[named.isin(words)]
    listed = ", ".join(f"{table.index.name} {line} ({name!r})" for line, name in bad.items())
    return [f"{listed} of {path.name} may sum up other rows; it is fitted as a run all the same"] if listed else []


def _cells(column) -> list[str] | None:
    """Returns a column's cells as text, "" for missing ones; None for a column that the file stores as numbers."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return None
    if not (pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column) or column.dtype == bool):
        column = column.astype(object)
    return ["" if value is None or value is pd.NA or value != value else str(value) for value in _scalars(column)]


def _scalars(column):
    return (value if np.ndim(value) == 0 else repr(value) for value in column)


def _marks(cells: list[str] | None) -> Marks:
    return find_marks(cells) if cells and any("," in cell or cell.count(".") > 1 for cell in cells) else _points(cells)


def _points(cells) -> Marks:
    """Returns `Marks` whose `point` is true if a cell shows that the table's decimal mark is a point, as 0.5 does."""
    return Marks(
        point=any("." in c and read_number(c, ",") is None and read_number(c) is not None for c in cells or ())
    )


def _numbers(name, cells, table, path, mark):
    """Returns a column that laws need, as floats. Raises `ConfigError`, naming the first cell that is not a number."""
    if cells is None:
        return table[name].astype(float)
    numbers = [read_number(cell, mark) for cell in cells]
    thousand = [mark == "," and name != "loss" and bool(re.fullmatch(r"[0-9]{1,3},[0-9]{3}", c.strip())) for c in cells]
    if any(thousand):  # with a decimal comma, 1,234 would be a fraction of a parameter
        place = thousand.index(True)
        raise ConfigError(
            f"{name} in {table.index.name} {table.index[place]} of {path} is {cells[place]!r}, where other cells have "
            "a decimal comma; write it without a mark between its digits"
        )
    if None in numbers:
        place = numbers.index(None)
        where = f"{name} in {table.index.name} {table.index[place]} of {path}"
        units = place == 0 and len(numbers) > 1 and None not in numbers[1:]
        hint = "; if the row holds units, remove it" if units else _hint(cells[place])
        raise ConfigError(f"{where} is {cells[place]!r}, which is no number{hint}")
    return pd.Series(numbers, table.index, dtype=float)


def _metric(name, cells, marks):
    """Returns a column that laws do not need: floats if every cell is a number or missing, else text. In a column of
    percentages, 31% becomes 0.31."""
    if _is_text(name):
        return cells
    values = [None if is_missing(cell) else cell for cell in cells]
    given = [cell.strip() for cell in values if cell is not None]
    marks |= _marks(given)
    if marks.ambiguous or (marks.point and marks.comma) or any(re.fullmatch(r"0[0-9]+", cell) for cell in given):
        return values
    percent = bool(given) and all(cell.endswith("%") for cell in given)
    numbers = [read_number((cell or "").removesuffix("%") if percent else cell or "", marks.mark) for cell in values]
    if None in numbers:
        return values
    return np.array(numbers, float) / (100 if percent else 1)


def _is_text(name: str) -> bool:
    """Whether a word in a column's name means that the column is text, as in `run_id` and `gitCommit`."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+[0-9]*|[0-9]+", name)
    return bool(TEXTS & {word.lower() for word in words})


def _trunks(table) -> list[str]:
    """Returns the column `trunk`, with "" for a cell that means no trunk, such as - or none. Otherwise the runs without
    a trunk would all be branches of one trunk of that name."""
    runs, cells = set(table["run"].astype(str)), ["" if pd.isna(c) else str(c).strip() for c in table["trunk"]]
    return ["" if is_missing(cell) and cell not in runs else cell for cell in cells]


def _names(column):
    """Converts names that the file stores as numbers to text: 7 and 7.0 become "7"."""
    return [
        None if pd.isna(v) else str(int(v)) if isinstance(v, (float, np.floating)) and v == v // 1 else str(v)
        for v in column
    ]


def _check_repeated(table, path):
    """Raises `ConfigError` if two rows are equal in all columns, except those that only count rows."""
    counters = [name for name in table.columns if _counts_rows(name, table[name])]
    text = table.drop(columns=counters).astype(str)
    repeated = text.duplicated()
    if repeated.any():
        row = text[repeated].iloc[0]
        first = text.index[text.eq(row).all(axis=1)][0]
        repeats = f"{table.index.name} {row.name} of {path} repeats {table.index.name} {first} in every column"
        raise ConfigError(f"{repeats}; leave one, or tell them apart by a column run")


def _counts_rows(name, column) -> bool:
    """Whether a column without a name, or named index, row or #, holds 0, 1, 2, ... or 1, 2, 3, ..."""
    if not (name.startswith("Unnamed: ") or name.lower() in ("index", "row", "#")):
        return False
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(float)
    return len(numbers) > 0 and bool((np.diff(numbers) == 1).all()) and numbers[0] in (0, 1)


def _hint(cell: str) -> str:
    """Returns how the error's message about a cell that is not a number ends: with the remedy, or with "" if it is not
    clear what the cell means."""
    text = cell.strip()
    if re.fullmatch(r"-?\d+,\d+(e[+-]?\d+)?", text, re.IGNORECASE):
        return "; its comma is a decimal one, and other cells have a decimal point: write all with a point, as 0.31"
    if re.fullmatch(r"-?\d{1,3}([,. '_]\d{3})+(\.\d+)?", text):
        return "; write large numbers without marks between their digits"
    if re.fullmatch(r"-?[\d.,]+(e[+-]?\d+)? ?(±|\+/?-).*", text):
        return "; write the value alone, and its uncertainty in a column of its own"
    if re.fullmatch(r"-?[\d.,]+(e[+-]?\d+)? ?(%|[kKMGBTP]|[a-zA-Z]*FLOPs?|params|images)", text):
        return "; write plain numbers, without a unit"
    if re.fullmatch(r"-?[\d.]+ ?([x×*·] ?10(\^|\*\*)?[-+\d⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text):
        return "; write powers of ten as 1.5e18"
    return ""


def _add_cost(table, flops_per_param_image):
    """Returns the table with the column that `flops_per_param_image` gives: `images` or `flops`, whichever is missing.

    Returns the table unchanged if `flops_per_param_image` is None. Otherwise raises `ConfigError` unless the table has
    params and exactly one of images and flops.
    """
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


def _read_file(path) -> tuple[pd.DataFrame, list[str]]:
    """Returns a frame of the file's cells, and notes on what was skipped. The cells of a CSV file are text."""
    try:
        data = read_bytes(path)
        if data.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(data)) as unpacked:
                data = unpacked.read(MOST_BYTES)
    except (OSError, EOFError) as error:
        raise ConfigError(f"the table {path} cannot be read: {error}; give a CSV or Parquet file") from None
    if path.suffix.lower() in (".parquet", ".pq") or data.startswith(b"PAR1"):
        return _read_parquet(path), []
    kind = next((kind for start, kind in _OTHER_FILES.items() if data.startswith(start)), "")
    try:
        text = "" if kind else decode_text(data).text
    except UndecodableText as error:
        remedy = "save it as UTF-8 (iconv -f ENCODING -t UTF-8)"
        raise ConfigError(f"the table {path} cannot be read: {error}; {remedy}") from None
    if text.lstrip().startswith("\\"):
        kind = "LaTeX; write it as CSV"
    if text.lstrip()[:1] in ("{", "[", "<"):
        kind = "JSON or HTML; write it as CSV, as by pandas.read_json(PATH).to_csv(OUT, index=False)"
    if kind:
        raise ConfigError(f"{path} cannot be read as CSV: it is {kind}")
    found = split_rows(text, path)
    named = [name or f"Unnamed: {place}" for place, name in enumerate(found.header)]
    _check_distinct(pd.Index(named), path)
    index = pd.Index(found.lines, name="line", dtype=int)
    cells = list(zip(*found.rows, strict=True)) or [()] * len(named)
    columns = {
        name: pd.Series(column, index, dtype=object)
        for name, theirs, column in zip(named, found.header, cells, strict=True)
        if theirs or any(cell.strip() for cell in column)  # a separator at the end of each row makes no column
    }
    return pd.DataFrame(columns, index=index), list(found.notes)


def _check_distinct(columns, path):
    twice = columns[columns.duplicated()]
    if len(twice):
        raise ConfigError(f"{path} has the column {twice[0]!r} more than once; leave one")


def _read_parquet(path):
    try:
        table = pd.read_parquet(path)
    except ImportError:
        raise ConfigError(f"reading {path} needs pyarrow: pip install 'rfjax[parquet]', or give a CSV") from None
    except Exception as error:  # one of pyarrow's own classes, which are not imported here
        raise ConfigError(f"{path} cannot be read as Parquet: {error}") from None
    if any(name is not None for name in table.index.names):  # pandas stores a named index separately
        table = table.reset_index()
    table.columns = pd.Index([str(name).strip() for name in table.columns])
    _check_distinct(table.columns, path)
    table.index = pd.RangeIndex(1, len(table) + 1, name="row")
    return table.copy()
