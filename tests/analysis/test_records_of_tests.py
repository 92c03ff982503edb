"""The rows that analysis/record_tests.py adds to its table."""

import importlib.util
from datetime import datetime
from pathlib import Path

import pytest

ANALYSIS = Path(__file__).parents[2] / "analysis"
VERSIONS = ("abc", "3.11.7", "0.10.2", "0.12.8", "x86_64")


@pytest.mark.parametrize(
    ("lines", "counts", "seconds", "note"),
    [
        (["1464 passed, 1 skipped in 8.61s (0:00:08)\n"], ["1464", "1", "0", "0"], "8.61", "tried"),
        (
            ["FAILED tests/a.py::b - assert 0\n", "= 2 failed, 3 passed, 1 warning, 4 errors in 5.00s =\n"],
            ["3", "0", "2", "4"],
            "5.00",
            "tried; 1 warnings; `FAILED tests/a.py::b`",
        ),
        (["killed\n"], ["", "", "", ""], "", "tried"),  # what is not known is no zero
    ],
)
def test_a_row_has_what_pytest_said_under_the_tables_columns(lines, counts, seconds, note):
    spec = importlib.util.spec_from_file_location("record_tests", ANALYSIS / "record_tests.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    command = ["python", "-m", "pytest", "-m", "not full"]
    row = module.table_row(datetime(2026, 1, 2, 3, 4), VERSIONS, command, 1, 0.14, lines, "tried")
    table = (ANALYSIS / "test_records.md").read_text().splitlines()
    header = next(line for line in table if line.startswith("|"))
    assert all(line.count(" | ") == header.count(" | ") for line in (row, *table) if line.startswith("| "))
    cells = dict(zip(header.strip("| ").split(" | "), row.strip("| \n").split(" | "), strict=False))
    assert [cells[name] for name in ("passed", "skipped", "failed", "errors")] == counts
    assert row.startswith("| 2026-01-02 03:04 | abc |") and cells["suite"] == "`pytest -m 'not full'`"
    assert cells["exit status"] == "1" and cells["minutes"] == "0.1" and cells["seconds"] == seconds
    assert row.endswith(f"| {note} |\n")
