"""Random small tables in the dialects of spreadsheets and loggers: the same rows come out of each, or one clear error.

In each, the rows that came in are those that are read, and the lines that are passed over are named.
"""

import csv
import io
import random

import pandas as pd
import pytest

from rfjax.errors import ConfigError
from rfjax.laws.fit_points import check as check_points
from rfjax.laws.fit_points import exclude
from rfjax.laws.fitting import fit
from rfjax.laws.laws import LAWS
from rfjax.results.foreign_table import read_table

NAMES = ("2396e87", "007", "7", "None", "NaN", "1e5", "α 1", "run,1", "a;b", "x\ty", "10.5", "-", "0x1F", "été")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "windows-1252")
COLUMNS = ("run", "loss", "flops", "params", "images")


def planted(rng):
    """Rows of (name, loss, flops, params, images) on a law, in no order."""
    rows = []
    for name in rng.sample(NAMES, rng.randrange(5, 10)):
        params, images = 10 ** rng.uniform(5, 9), 10 ** rng.uniform(6, 9)
        rows.append((name, 0.5 + 3 * params**-0.2 + 2 * images**-0.15, 6 * params * images, params, images))
    return rows


def shown(rng, value, mark):
    """A number as a program writes it, to twelve digits, and what a reader of it must see."""
    text = rng.choice(["{:.12g}", "{:.11e}", "{:.11E}", "+{:.12g}"]).format(value)
    if "e" not in text.lower() and "." not in text:
        text += ".0"
    return text.replace(".", mark), float(text)


def write_clean(rng, path, rows):
    """Writes a table that says the rows without doubt; returns (rows as written, lines that are no rows)."""
    separator = rng.choice([",", ";", "\t", "|"])
    mark = rng.choice([".", ","]) if separator in ";\t|" else "."
    encoding = rng.choice(ENCODINGS)
    order = rng.sample(range(5), 5)
    header = [rng.choice([name, name.upper(), f" {name} ", name.capitalize()]) for name in COLUMNS]
    extra = rng.random() < 0.5
    said, lines = [], [[*(header[i] for i in order), *(["seed"] if extra else [])]]
    for name, *values in rows:
        if encoding in ("windows-1252",):
            name = name.replace("α", "a")
        pairs = [shown(rng, value, mark) for value in values]
        said.append((name.strip(), *(number for _, number in pairs)))
        cells = [name, *(text for text, _ in pairs)]
        if separator == "|":
            cells[0] = name
        lines.append([*(cells[i] for i in order), *([str(rng.randrange(9))] if extra else [])])
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    comments = []
    if rng.random() < 0.3:
        out.write("# written by a logger\n")
        comments.append(1)
    for line in lines:
        writer.writerow(line)
        if rng.random() < 0.1:
            out.write("\n")
    path.write_bytes(out.getvalue().replace("\n", rng.choice(["\n", "\r\n"])).encode(encoding))
    return said, comments


def check_clean(seed, tmp_path):
    rng = random.Random(seed)
    path = tmp_path / "runs.csv"
    said, comments = write_clean(rng, path, planted(rng))
    table = read_table(path)
    found = [tuple(row) for row in table[list(COLUMNS)].itertuples(index=False)]
    assert found == said
    notes = " ".join(table.attrs["notes"])
    assert all(f"line {number}" in notes for number in comments) and ("comments" in notes) == bool(comments)
    return table


# What makes a table unreadable, and words of the error: each names the place.
FAULTS = {
    "a word for a number": (lambda rows: rows[2].__setitem__(1, "about 3"), "loss in line 3"),
    "no loss": (lambda rows: rows[2].__setitem__(1, ""), "loss of run"),
    "a negative loss": (lambda rows: rows[2].__setitem__(1, "-0.5"), "loss of run"),
    "infinite flops": (lambda rows: rows[2].__setitem__(2, "inf"), "flops of run"),
    "zero params": (lambda rows: rows[2].__setitem__(3, "0"), "params of run"),
    "a run twice": (lambda rows: rows[2].__setitem__(0, rows[1][0]), "occurs more than once"),
    "a run without a name": (lambda rows: rows[2].__setitem__(0, ""), "has no name"),
    "a column twice": (lambda rows: rows[0].__setitem__(4, "loss"), "more than once"),
    "no column of losses": (lambda rows: rows[0].__setitem__(1, "val"), "needs the column"),
    "a row too long": (lambda rows: rows[2].append("5"), "line 3 of"),
    "a unit": (lambda rows: rows[2].__setitem__(3, "1.5B"), "params in line 3"),
    "hundreds of decades": (lambda rows: rows[2].__setitem__(2, "1e300"), "flops goes from"),
}


def check_fault(seed, tmp_path):
    """One fault of a clean table: one error, which names the place."""
    rng = random.Random(seed)
    name = rng.choice(list(FAULTS))
    fault, words = FAULTS[name]
    names = rng.sample(["a", "b", "c1", "d-2", "e"], 5)
    rows = [list(COLUMNS)] + [[n, *(repr(v) for v in row[1:])] for n, row in zip(names, planted(rng), strict=False)]
    fault(rows)
    path = tmp_path / "runs.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(ConfigError, match=words) as told:
        check_points(read_table(path), ("loss", "flops", "params", "images"))
    assert "\n" not in str(told.value), name


@pytest.mark.parametrize("seed", range(30))
def test_every_dialect_says_the_same_rows(seed, tmp_path):
    check_clean(seed, tmp_path)


@pytest.mark.parametrize("seed", range(30))
def test_every_fault_is_one_error_that_names_its_place(seed, tmp_path):
    check_fault(seed, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(30, 300))
def test_hundreds_of_dialects_and_faults(seed, tmp_path):
    check_clean(seed, tmp_path)
    check_fault(seed, tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_what_came_in_is_fitted_or_named(seed, tmp_path):
    """And the law is that of the rows, whatever the dialect."""
    rng = random.Random(1000 + seed)
    rows = planted(rng)
    laws = set()
    for number in range(2):
        said, _ = write_clean(rng, tmp_path / f"{number}.csv", rows)
        table = read_table(tmp_path / f"{number}.csv")
        kept, left = exclude(table, largest_losses=1)
        assert sorted([*kept["run"], *(each.run for each in left)]) == sorted(row[0] for row in said)
        found = fit(kept, LAWS["power"], resamples=4, held_out=False)
        laws.add(tuple(round(estimate.value, 6) for estimate in found.estimates.values()))
    assert len(laws) == 1 and isinstance(table, pd.DataFrame)
