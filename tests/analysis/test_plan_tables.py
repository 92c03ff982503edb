"""The tables of docs/plan.md that analysis/plan_tables.py writes."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("plan_tables", ROOT / "analysis/plan_tables.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["plan_tables"] = module  # a dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_tables_of_the_record(tables):
    """Catches a table that was changed by hand, and a row that was planned and not written."""
    record = json.loads(tables.RECORD.read_text())
    assert {row.key for row in tables.rows()} <= record.keys()
    page = tables.PAGE.read_text()
    assert tables.written(page, tables.render(record)) == page


def test_a_plan_by_formulas_does_not_replace_a_compiled_one(tables, tmp_path, monkeypatch):
    """Catches a record that loses what took a minute to compile, and a formula's number that is called compiled."""
    monkeypatch.setattr(tables, "RECORD", tmp_path / "plans.json")
    row = next(row for row in tables.rows() if row.target == "2xv5p-256")
    record = {}
    tables.make(record, row, None)
    planned = json.loads((tmp_path / "plans.json").read_text())[row.key]
    assert planned["compiled"] is None and planned["mesh"] == [16, 16, 1] and planned["limits"]["network"] > 0
    record[row.key] = {"compiled": {"level": "O1"}, "peak_bytes": 1}
    tables.make(record, row, None)
    assert record[row.key]["peak_bytes"] == 1
