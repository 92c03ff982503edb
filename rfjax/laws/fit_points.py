"""Checks the points of a fit (rows of a table, one per run) and leaves out points by rule, with a record of each.

A table has named columns: `run`, `loss` and a law's variables, in the units of `UNITS`. Errors name
the row and the column, and nothing is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from rfjax.errors import ConfigError
from rfjax.results.foreign_table import holds_another_unit

UNITS = {"flops": "FLOP", "params": "parameters", "images": "images"}
# Most decades that a column may span. From a minute's run to all the world's computers, FLOPs span about 20.
MOST_DECADES = 30
OTHER_NAMES = {  # what papers and loggers call these columns; only hints use it, no column is renamed unasked
    "loss": ("l", "validation", "val", "nll", "test"),
    "flops": ("c", "compute", "training_flop", "flop", "total_flop"),
    "params": ("n", "parameters", "model_size", "size", "num_parameters", "model_parameters"),
    "images": ("d", "tokens", "training_tokens", "examples", "dataset_size", "data", "training_examples"),
}
NAMED = 5  # an error names this many rows, and counts the rest


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """A run, or a row of a run, that was left out of a fit, and the rule that did so."""

    run: str
    rule: str


def listed_columns(table: pd.DataFrame) -> str:
    """Returns the names of a table's columns, joined by commas, without a column `run` that rfjax itself added to name
    rows by their lines."""
    return ", ".join(str(name) for name in table.columns if not (name == "run" and table.attrs.get("runs_are_lines")))


def rename_hint(lacking: Iterable[str], table: pd.DataFrame) -> str:
    """Returns a hint for each missing column for which another column of the table may be meant: a `--rename` option
    or, for a column in another unit, to convert it. Returns "" if there is no such column."""
    plain = {re.sub(r"[^a-z0-9]+", "_", str(name).strip().lower()): str(name) for name in table.columns}
    words = {
        ours: next((plain[name] for name in plain if ours in name or name in OTHER_NAMES.get(ours, ())), None)
        for ours in lacking
    }
    found = ((ours, theirs) for ours, theirs in words.items() if theirs)
    return "".join(
        f"; {theirs!r} seems to be {ours} in another unit: convert it, and name it {ours}"
        if ours in UNITS and holds_another_unit(theirs)
        else f'; --rename "{ours}={theirs}" takes {theirs!r} for it'
        for ours, theirs in found
    )


def check(table: pd.DataFrame, columns: Iterable[str], *, one_row_per_run: bool = True) -> None:
    """Refuses a table that cannot be fitted, naming its rows and columns.

    Raises `ConfigError` if `run` or one of `columns` is missing, if a run has no name or (with `one_row_per_run`)
    occurs twice, if a value is missing, not a number, not finite or not positive, if a column spans more than
    `MOST_DECADES` powers of ten, or if the table is empty.
    """
    lacking = [name for name in ("run", *columns) if name not in table.columns]
    if lacking:
        raise ConfigError(
            f"the fit needs the column{'s'[: len(lacking) != 1]} {', '.join(map(repr, lacking))}; "
            f"the table has {listed_columns(table)}{rename_hint(lacking, table)}"
        )
    if table.empty:
        raise ConfigError("the table has no rows to fit")
    nameless = (table["run"].isna() | (table["run"].astype(str).str.strip() == "")).to_numpy()
    if nameless.any():
        raise ConfigError(
            f"the run in {_name_rows(table, nameless)} has no name; give every row one, or leave the column out"
        )
    repeated = table["run"][table["run"].duplicated()].unique()
    if len(repeated) and one_row_per_run:
        places = _name_rows(table, (table["run"] == repeated[0]).to_numpy())
        raise ConfigError(
            f"run {repeated[0]!r} occurs more than once ({places}); a fit takes one row per run (its final checkpoint)"
        )
    for name in columns:
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(float, na_value=np.nan)
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            first = int(np.argmax(bad))
            more = f" (and {int(bad.sum()) - 1} more: {_name_rows(table, bad)})" if bad.sum() > 1 else ""
            raise ConfigError(
                f"{name} of run {table['run'].iloc[first]!r} ({_name_rows(table, np.arange(len(table)) == first)}) is "
                f"{table[name].iloc[first]}{more}; it must be positive and finite (drop the row, or mend it)"
            )
        least, most = int(np.argmin(values)), int(np.argmax(values))
        if np.log10(values[most]) - np.log10(values[least]) > MOST_DECADES:
            ends = (f"{values[row]:.3g} (run {table['run'].iloc[row]!r})" for row in (least, most))
            raise ConfigError(
                f"{name} goes from {' to '.join(ends)}, more than {MOST_DECADES} decades; drop or mend the rows that "
                "are in another unit"
            )


def exclude(
    table: pd.DataFrame, *, largest_losses: int = 0, max_loss: float | None = None, column: str = "loss"
) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Returns the table without its outliers, and the rows that were left out, each with its rule.

    `largest_losses` = k drops every row whose loss is at least the k-th largest (so ties are dropped, too).
    `max_loss` drops every row with a larger loss. Raises `ConfigError` for a `max_loss` that is not positive, and for
    a `largest_losses` that is negative or leaves no row.
    """
    if max_loss is not None and not max_loss > 0:
        raise ConfigError(f"the largest loss to be kept is {max_loss:g}; it must be positive")
    losses = table[column].to_numpy(float)
    if largest_losses < 0 or largest_losses >= len(table) > 0:
        raise ConfigError(f"cannot drop the {largest_losses} largest losses of {len(table)} rows")
    rules = []
    if largest_losses:
        rules.append((losses >= np.sort(losses)[-largest_losses], f"{largest_losses} largest losses"))
    if max_loss is not None:
        rules.append((losses > max_loss, f"loss above {max_loss:g}"))
    if not rules:
        return table, ()
    out, kept = [], np.ones(len(table), bool)
    names = table["run"].astype(str).to_numpy()
    if table["run"].duplicated().any():  # checkpoints: the name of a run does not identify a row
        names = np.array([f"{name} ({_name_rows(table, np.arange(len(table)) == i)})" for i, name in enumerate(names)])
    for taken, rule in rules:
        out += [Exclusion(run=str(run), rule=rule) for run in names[taken & kept]]
        kept &= ~taken
    return table[kept], tuple(out)


def log_columns(variables: Sequence[str], x: object) -> Float[np.ndarray, "n v"]:
    """Returns the natural logarithms of a law's `variables` in the mapping or table `x`, a column for each."""
    columns = [np.log(np.atleast_1d(np.asarray(x[name], dtype=float))) for name in variables]
    return np.stack(np.broadcast_arrays(*columns), axis=-1)


def _name_rows(table, chosen):
    """Names the chosen rows for an error: by their lines in the file that the table was read from, else by their
    numbers from 1."""
    by_line = table.index.name == "line"
    word, places = ("line", table.index[chosen]) if by_line else ("row", np.flatnonzero(chosen) + 1)
    shown = ", ".join(map(str, places[:NAMED])) + (", ..." if len(places) > NAMED else "")
    return f"{word}{'s'[: len(places) != 1]} {shown}"
