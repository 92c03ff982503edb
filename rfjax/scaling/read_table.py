"""Anybody's table of runs: a CSV or Parquet file with named columns.

    run      a name, distinct (left out: rows are named by their line)
    loss     the loss at the end of training, positive
    flops    training FLOPs         params   trainable parameters
    images   training images seen (or `samples`)         anything else: metrics

Columns of other names are renamed by the caller, never guessed.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from rfjax.errors import ConfigError

NUMBERS = ("loss", "flops", "params", "images")


def read_table(
    path: str | Path, *, rename: Mapping[str, str] | None = None, flops_per_param_image: float | None = None
) -> pd.DataFrame:
    """The file as a frame whose index, "line", is where a row stands in it (Parquet: its row, from 1).

    `rename` maps our names to the file's. `flops_per_param_image` gives images = flops / (it *
    params), or flops from params and images, where one of them is lacking.

    Raises `ConfigError` naming the file, and the column or line, for what cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no table at {path}; name a CSV or Parquet file, or a results folder")
    table = _parquet(path) if path.suffix in (".parquet", ".pq") else _csv(path)
    for ours, theirs in (rename or {}).items():
        if theirs not in table:
            near = difflib.get_close_matches(theirs, map(str, table.columns), 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(map(str, table.columns))}"
            raise ConfigError(f"{path} has no column {theirs!r} to be renamed {ours!r}{hint}")
    names = {theirs: ours for ours, theirs in (rename or {}).items()}
    table = table.drop(columns=[ours for ours in names.values() if ours in table and ours not in names]).rename(columns=names)
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise ConfigError(f"{path} has the column {twice[0]!r} more than once; leave one")
    if "samples" in table and "images" not in table:
        table = table.rename(columns={"samples": "images"})
    if "run" not in table:
        table.insert(0, "run", [f"{table.index.name} {place}" for place in table.index])
    for name in NUMBERS:
        if name in table:
            numbers = pd.to_numeric(table[name], errors="coerce")
            words = table[name].notna() & numbers.isna()
            if words.any():
                place = table.index[words][0]
                raise ConfigError(f"{name} in {table.index.name} {place} of {path} is {table[name][place]!r}, which is no number")
            table[name] = numbers.astype(float)
    return _with_cost(table, flops_per_param_image)


def sha256(path: str | Path) -> str:
    """The file's hash, for the record of a fit."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _with_cost(table, flops_per_param_image):
    if flops_per_param_image is None:
        return table
    if not (np.isfinite(flops_per_param_image) and flops_per_param_image > 0):
        raise ConfigError(f"FLOPs per parameter and image are {flops_per_param_image:g}; they must be positive")
    known = {name for name in ("flops", "params", "images") if name in table}
    if known >= {"flops", "params"} and "images" not in known:
        return table.assign(images=table["flops"] / (flops_per_param_image * table["params"]))
    if known >= {"images", "params"} and "flops" not in known:
        return table.assign(flops=flops_per_param_image * table["params"] * table["images"])
    if len(known) == 3:
        raise ConfigError("the table has flops, params and images: FLOPs per parameter and image would contradict it; leave the option out")
    raise ConfigError(f"FLOPs per parameter and image need params and one of flops and images; the table has {', '.join(sorted(known)) or 'none'}")


def _csv(path):
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as CSV: {error}") from None
    table.index = pd.RangeIndex(2, len(table) + 2, name="line")  # line 1 is the header
    return table


def _parquet(path):
    try:
        table = pd.read_parquet(path)
    except ImportError:
        raise ConfigError(f"reading {path} needs pyarrow: pip install 'rfjax[parquet]', or give a CSV") from None
    except Exception as error:  # pyarrow's own classes, which may not be imported here
        raise ConfigError(f"{path} cannot be read as Parquet: {error}") from None
    table.index = pd.RangeIndex(1, len(table) + 1, name="row")
    return table
