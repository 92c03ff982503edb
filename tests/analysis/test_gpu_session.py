"""The script that measures a GPU in six minutes, without one: its order, its records, its limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "analysis" / "benchmarks"


def session(out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [str(BENCHMARKS / "gpu_session.sh"), "--out", str(out), *options]
    return subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)


def test_a_part_without_time_is_left_out_and_named(tmp_path):
    done = session(tmp_path, "--tiny", "--only", "attention", "--total", "5")
    assert done.returncode == 0 and "attention: left out" in done.stderr
    assert "parts without a record: attention, step18" in done.stdout


def test_a_missing_folder_is_named():
    done = subprocess.run([str(BENCHMARKS / "gpu_session.sh"), "--tiny"], capture_output=True, text=True)
    assert done.returncode == 2 and "--out DIR is missing" in done.stderr


@pytest.mark.full
def test_every_part_leaves_a_record(tmp_path):
    done = session(tmp_path, "--tiny", "--total", "1200", "--seconds", "240")
    assert "parts without a record: none" in done.stdout, done.stderr
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert not {name for name, record in records.items() if "failed" in record}
    assert records["step18"]["params"] == records["torch18"]["params"]
    assert records["attention"]["tokens"]["10"]["xla"]["errors"]["dq"] < 0.01
