"""Writes the results folder, completely or not at all, and reads and verifies it.

table.json   schema version, columns with units, SHA-256 of every file, sample sheets, notes
*.csv        long, wide, runs, prompts, pairs, replicates, curves (`rfjax.results.columns` documents them)
samples/     the sample sheets: *.png, and *.webp for clips
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Required, TypedDict

import numpy as np
import pandas as pd

from rfjax.errors import ConfigError
from rfjax.files import write_whole
from rfjax.inputs.files import read_bytes
from rfjax.inputs.json_files import parse_json
from rfjax.inputs.paths import local_path
from rfjax.results.columns import ADDED, FILES, SCHEMA, STATISTICS, Column, measure_columns

REMEDY = "remake the table with `rfjax study --collect`"
SHEETS = "samples"
PAUSES = (0.2, 0.5, 1.0)  # seconds before a table whose files do not match is read again
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
WEBP_MAGIC = b"RIFF"


csv.field_size_limit(1 << 30)  # a cell of replicates, or a message, may exceed the reader's default of 128 KiB


class TableFile(TypedDict, total=False):
    """The content of table.json."""

    schema: Required[int]
    sha256: Required[dict[str, str]]
    samples: Required[list[dict[str, object]]]
    notes: Required[list[str]]
    made_of: dict[str, str]
    passed_over: list[str]
    unreadable: int


@dataclass(frozen=True, kw_only=True)
class SampleSheet:
    """A horizontal strip of samples: tile i is `tile` pixels wide and shows prompts[i]."""

    run: str
    step: int
    weights: str
    sampler: str
    seed: int
    prompts: tuple[str, ...]
    tile: int
    png: str  # relative to the results folder
    webp: str = ""  # an animation of the strip, if it shows clips; the PNG then has their frames below each other

    def to_json(self) -> dict:
        """Returns the sheet as an entry of table.json, with the key `webp` only if the sheet has an animation."""
        return {name: value for name, value in asdict(self).items() if name != "webp" or value}


@dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """The results table: data frames with the columns of `rfjax.results.columns.FILES`, sample sheets and notes."""

    long: pd.DataFrame
    wide: pd.DataFrame
    runs: pd.DataFrame
    prompts: pd.DataFrame
    pairs: pd.DataFrame
    replicates: pd.DataFrame
    curves: pd.DataFrame
    samples: tuple[SampleSheet, ...]
    notes: tuple[str, ...]  # what the merge left out, and why
    unreadable: int = 0  # number of runs that the merge could not read, and left out
    # run's folder name -> hash of its records (`rfjax.results.run_files.records_hash`), including the runs in
    # `passed_over`; empty in an older table.
    made_of: Mapping[str, str] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()  # names of run folders that lay beside the others but are not in the table
    folder: Path

    def frame(self, file: str) -> pd.DataFrame:
        return getattr(self, file.removesuffix(".csv"))


def write(table: Results, sheets: Sequence[tuple[SampleSheet, Path]] = ()) -> Results:
    """Writes `table` into `table.folder`, and copies the pictures of `sheets` there.

    Each sheet comes with the path of its PNG; if the sheet's `webp` is set, the WebP lies beside the PNG. A picture
    that is missing or of another kind is left out, with a note. Pictures that only an earlier table had are removed.
    Returns the table with the `samples` and `notes` that were written. Raises `RfjaxError` if a file cannot be written.
    """
    folder, notes, samples, contents = table.folder, list(table.notes), [], {}
    for sheet, source in sheets:
        data = source.read_bytes() if source.is_file() else b""
        if not data.startswith(PNG_MAGIC):
            notes.append(f"{sheet.run}: the sample sheet of step {sheet.step} is missing or is no PNG ({source.name})")
            continue
        key = [sheet.run, sheet.step, sheet.weights, sheet.sampler, sheet.seed]
        key += ["clips"] if sheet.webp else []  # a checkpoint may also have a sheet of stills
        # run names may hold anything
        name = f"{SHEETS}/{hashlib.sha1(json.dumps(key).encode()).hexdigest()[:16]}.png"
        contents[name], playing = data, ""
        if sheet.webp:
            moving = source.with_suffix(".webp")
            data = moving.read_bytes() if moving.is_file() else b""
            if data.startswith(WEBP_MAGIC):
                playing = f"{name.removesuffix('.png')}.webp"
                contents[playing] = data
            else:
                notes.append(f"{sheet.run}: the clips of step {sheet.step} are missing or no WebP ({moving.name})")
        samples.append(replace(sheet, png=name, webp=playing))
    files = {}
    for file, (_, row) in FILES.items():
        frame = table.frame(file)
        contents[file] = to_csv(frame).encode()
        files[file] = {"row": row, "columns": [asdict(column) for column in _columns(file, frame)]}
    hashes = {name: _sha256(data) for name, data in contents.items()}
    sheets_json = [sample.to_json() for sample in samples]
    index = {"schema": SCHEMA, "files": files, "sha256": hashes, "samples": sheets_json, "notes": notes}
    index |= {"unreadable": table.unreadable, "made_of": dict(table.made_of), "passed_over": list(table.passed_over)}
    contents["table.json"] = (json.dumps(index, indent=1) + "\n").encode()
    write_whole({folder / name: data for name, data in contents.items()})
    for path in (folder / SHEETS).glob("[0-9a-f]" * 16 + ".*"):  # removes those no longer in the table
        if path.suffix in (".png", ".webp") and f"{SHEETS}/{path.name}" not in contents:
            with contextlib.suppress(OSError):
                path.unlink()
    return replace(table, samples=tuple(samples), notes=tuple(notes))


def find(folder: str | Path) -> Path:
    """Returns `folder` itself if it is a results folder, else the results folder in it, which need not exist yet.

    Raises `ConfigError` for the folder of a single run, because the table lies in the folder of its study.
    """
    folder = local_path(folder, "the study's folder")
    if (folder / "table.json").exists() and not _is_strangers(folder / "table.json"):
        return folder
    if (folder / "run.json").exists() and not (folder / "results").exists():
        study = f"{folder.absolute().parent}, which holds its study"
        raise ConfigError(f"{folder} is the folder of a single run; name the one above it, {study}")
    return folder / "results"


def _is_strangers(path):
    """Whether a table.json is another program's: valid JSON without our key `schema`."""
    try:
        return "schema" not in parse_json(read_bytes(path), object)
    except (OSError, ValueError, TypeError):
        return False  # it is damaged, which `read` reports


def read(folder: str | Path) -> Results:
    """Reads and verifies the results table of a folder.

    If another process is replacing the table, the table is read again. In a table of an older schema version, the
    columns added since (`columns.ADDED`) are empty, except `role`, which is "run" in all rows of runs. Raises
    `ConfigError`, naming the file and the remedy, if a file is missing, damaged or edited by hand, lacks a column, or
    has a schema version that is not read.
    """
    folder = local_path(folder, "the results folder")
    for pause in PAUSES:
        before = _stamp(folder)
        try:
            return _read(folder)
        except ConfigError:
            time.sleep(pause)
            if _stamp(folder) == before:  # no process is writing it
                raise
    return _read(folder)


def _stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Returns (name, size in bytes, time of change in ns) of each of the table's files."""
    found = [(path.name, path.stat()) for path in sorted(folder.glob("*")) if path.is_file()]
    return [(name, facts.st_size, facts.st_mtime_ns) for name, facts in found]


def _read(folder: Path) -> Results:
    path = folder / "table.json"
    if not path.is_file():
        missing = "table.json is missing" if folder.is_dir() else "there is no such folder"
        raise ConfigError(f"no results table at {folder} ({missing}); {REMEDY}")
    try:
        version = parse_json(read_bytes(path)).get("schema")
        if version != SCHEMA and version not in range(min(ADDED) - 1, SCHEMA):
            raise ConfigError(f"{path} has schema version {version!r}; this rfjax reads version {SCHEMA}; {REMEDY}")
        content = parse_json(read_bytes(path), TableFile)
        hashes = content["sha256"]
        samples = tuple(SampleSheet(**sample | {"prompts": tuple(sample["prompts"])}) for sample in content["samples"])
        notes = tuple(content["notes"])
        made = {"made_of": dict(content.get("made_of", {})), "passed_over": tuple(content.get("passed_over", ()))}
        made["unreadable"] = content.get("unreadable", 0)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"{path} is damaged ({error}); {REMEDY}") from None
    frames = {file.removesuffix(".csv"): _read_frame(folder / file, file, hashes.get(file), version) for file in FILES}
    for picture in (name for sample in samples for name in (sample.png, sample.webp) if name):
        _check_hash(folder / picture, hashes.get(picture))
    return Results(samples=samples, notes=notes, folder=folder, **made, **frames)


def to_csv(frame: pd.DataFrame) -> str:
    """Returns a frame as CSV, with every float in the shortest form that reads back as the same float."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(frame.columns)
    columns = [_cells(frame[name].tolist()) for name in frame.columns]
    quoted = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    rows = zip(*columns, strict=True)
    if not any("\r" in cell for column in columns for cell in set(column)):
        writer.writerows(rows)
        return out.getvalue()
    for row in rows:  # a bare carriage return would end the row for a reader
        (quoted if any("\r" in cell for cell in row) else writer).writerow(row)
    return out.getvalue()


def rows_where(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """Selects the rows whose columns have these values. A missing value equals nothing."""
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return frame


def rows_by_run(frame: pd.DataFrame) -> Callable[[str], pd.DataFrame]:
    """Returns a function that takes a run's name and returns the frame's rows of that run, in their order. The frame is
    grouped only once, for all runs."""
    found = dict(iter(frame.groupby("run", sort=False)))
    return lambda run: found.get(run, frame[:0])


def _read_frame(path, file, expected, version):
    if not path.is_file():
        raise ConfigError(f"{path} is missing; {REMEDY}")
    try:
        rows = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is damaged ({error}); {REMEDY}") from None
    header = rows[0] if rows else []
    newer = {name for later, names in ADDED.items() if later > version for name in names}
    added = [column.name for column in FILES[file][0] if column.name in newer and column.name not in header]
    missing = [column.name for column in FILES[file][0] if column.name not in {*header, *added}]
    if missing:  # checked before the hash, since this message says more
        raise ConfigError(f"{path} lacks the column(s) {', '.join(missing)}; {REMEDY}")
    _check_hash(path, expected)
    try:
        frame = pd.DataFrame(rows[1:], columns=header, dtype=object)
        frame[added] = ""
        if "role" in added:
            frame["role"] = (frame["run"] != "-").map({True: "run", False: ""})
        return pd.DataFrame({c.name: _parse(frame[c.name], c.kind) for c in _columns(file, frame)})
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); {REMEDY}") from None


def _columns(file, frame) -> tuple[Column, ...]:
    """Returns the `Column` of each of the frame's columns, in order. Only wide.csv has columns of measured numbers."""
    fixed = {column.name: column for column in FILES[file][0]}
    rest = [name for name in frame.columns if name not in fixed]
    suffixes = tuple(suffix for _, suffix in STATISTICS if suffix)
    measured = {c.name: c for name in rest if not name.endswith(suffixes) for c in measure_columns(name)}
    return tuple((fixed | measured)[name] for name in frame.columns)


def _parse(values, kind):
    if kind == "text":
        return values.astype(object)
    if kind == "integer":
        return pd.array([pd.NA if value == "" else int(value) for value in values], dtype="Int64")
    return np.array([np.nan if value == "" else float(value) for value in values], dtype=float)


def _cells(values):
    """Returns the values of a column as texts for a CSV file."""
    return [value if type(value) is str else _cell(value) for value in values]


def _cell(value):
    if value is pd.NA or value is None or value != value:  # NaN alone differs from itself
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def _check_hash(path, expected):
    data = path.read_bytes() if path.is_file() else b""
    if _sha256(data) != expected:
        raise ConfigError(f"{path} does not match its hash in table.json: it is damaged or was edited; {REMEDY}")


def _sha256(data):
    return hashlib.sha256(data).hexdigest()
