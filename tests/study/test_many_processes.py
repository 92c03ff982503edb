"""A study in two processes, by the command line: what one process gives, told and written once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_study import TINY

from rfjax.cli import main
from rfjax.evaluation.records import read_records
from rfjax.study.study import load_study, run_study


def command(*arguments, timeout=900):
    """`rfjax ...` in two processes of one device: [(exit status, standard output, standard error)]."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": ""}
    running = []
    for index in range(2):
        job = [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process-id={index}", "--lost-after=20"]
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "rfjax", *arguments, *job],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    try:
        said = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, _ours(out), error) for process, (out, error) in zip(running, said, strict=True)]


def _ours(text: str) -> str:
    """Without what the library of CPU collectives says by itself, on standard output."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("[Gloo]"))


def values(folder: Path, point: str) -> dict:
    return {
        json.dumps(record["key"]): {(v["metric"], v["item"]): (v["value"], v["n"]) for v in record["values"]}
        for record in read_records(folder / point)
    }


@pytest.mark.full
def test_two_processes_give_one_processs_study(tmp_path):
    """Catches: a validation or a score of one process's part alone, example losses out of order, records
    written twice, a failed point that only one process passes, a report made twice."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    first, second = command("study", f"--config={path}", f"--workdir={tmp_path / 'two'}")
    assert first[0] == second[0] == 1, (first, second)  # as a point has failed
    assert "failed: broken:" in first[2] and "report" in first[1] and (tmp_path / "two/report/index.html").exists()
    assert not second[1].strip(), second[1]  # one process tells
    run_study(load_study(path), tmp_path / "one")
    for point in ("depth1", "depth2"):
        one, two = values(tmp_path / "one", point), values(tmp_path / "two", point)
        assert one.keys() == two.keys() and len(one) > 5
        for key in one:
            assert one[key].keys() == two[key].keys()
            for item, (value, n) in one[key].items():
                np.testing.assert_allclose(two[key][item][0], value, rtol=1e-4, err_msg=f"{key} {item}")
                assert two[key][item][1] == n
        losses = [
            next(
                r["extra"]["example_losses"]
                for r in read_records(tmp_path / name / point)
                if r["key"]["evaluation"] == "validation"
            )
            for name in ("one", "two")
        ]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)

    # A checkpoint measured again, and sampled from.
    run = tmp_path / "two" / "depth1"
    again = command("eval", str(run), "--step=3")
    assert [status for status, _, _ in again] == [0, 0], again
    assert "validation" in again[0][1] and not again[1][1].strip()
    assert values(tmp_path / "two", "depth1").keys() >= one.keys() - {key for key in one if "depth2" in key}
    picture = tmp_path / "two.png"
    ends = command("sample", str(run), "--prompt=a photo of a red square", "--samples=3", f"--out={picture}")
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert (
        main(["sample", str(run), "--prompt=a photo of a red square", "--samples=3", f"--out={tmp_path / 'one.png'}"])
        == 0
    )
    from matplotlib.image import imread

    np.testing.assert_allclose(imread(picture), imread(tmp_path / "one.png"), atol=2 / 255)
