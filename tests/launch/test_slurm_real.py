"""Runs a study's array on a real SLURM, pre-empts it in every way that SLURM has, and compares it with a calm one.

This machine is the only node; slurm/start.sh starts the controller, node and munge daemons, as root.
"""

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.launch_tiny import write_study

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "slurm"
STEPS = 400
POINTS = ("depth1", "Depth_2")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a cluster: SLURM's commands, and `rfjax` as this checkout."""
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPTS / "start.sh", folder], text=True, stderr=subprocess.PIPE)
    assert started.returncode == 0, started.stderr
    rfjax = folder / "bin/rfjax"
    rfjax.parent.mkdir()
    rfjax.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rfjax "$@"\n')
    rfjax.chmod(0o755)
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    yield os.environ | quick | {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(ROOT)}
    subprocess.run([SCRIPTS / "stop.sh", folder])


def command(slurm, *words, cwd=None):
    done = subprocess.run(words, env=slurm, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def launch(slurm, folder, workdir):
    """Launches the study in `folder`; returns (the array's job, the collecting job)."""
    write_study(folder, "my study.py", steps=STEPS)
    setup = f"export PATH='{Path(slurm['SLURM_CONF']).parent}/bin':$PATH"
    options = [
        "--on=slurm",
        "--gpus-per-node=0",
        "--sbatch=--cpus-per-task=1",
        f"--workdir={workdir}",
        f"--setup={setup}",
    ]
    out = command(slurm, sys.executable, "-m", "rfjax", "launch", "--config=my study.py", *options, cwd=folder)
    array, collect = re.findall(r"^job (\d+)$", out, re.M)
    return array, collect


def wait_for(condition, what, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} has not come in {seconds} s"
        time.sleep(0.05)


def state(slurm, job):
    return re.search(r"JobState=(\w+)", command(slurm, "scontrol", "show", "job", job))[1]


def starts(run):
    path = run / "run.json"
    return json.loads(path.read_text())["starts"] if path.exists() else []


def saved(run):
    return max((int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdigit()), default=0)


def goes_on(run, number):
    """Whether the run has started `number` times, and its last start has saved a step, but not the final one."""
    began = starts(run)
    assert saved(run) < STEPS, f"{run} has ended before it could be stopped; give it more steps"
    return len(began) == number and saved(run) > began[-1]["step"]


def finish(slurm, jobs, root):
    wait_for(lambda: state(slurm, jobs[1]) in ("COMPLETED", "FAILED", "CANCELLED"), "the end of the collecting job")
    logs = "\n".join(path.read_text() for path in sorted((root / "launch").glob("*.out")))
    assert [state(slurm, job) for job in (f"{jobs[0]}_0", f"{jobs[0]}_1", jobs[1])] == ["COMPLETED"] * 3, logs
    return logs


def table(root, name):
    """The rows of a results table as sorted tuples, without what depends on the clock."""
    with open(root / "results" / f"{name}.csv", newline="") as file:
        return sorted(tuple((k, v) for k, v in row.items() if "seconds" not in k) for row in csv.DictReader(file))


@pytest.fixture(scope="module")
def undisturbed(slurm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    jobs = launch(slurm, folder, "runs of it")
    finish(slurm, jobs, folder / "runs of it")
    return folder / "runs of it"


def test_preempted_by_partition_by_time_limit_and_by_hand_it_ends_as_undisturbed(slurm, undisturbed, tmp_path):
    """Catches a run that is not requeued, one that starts anew, a signal that does not arrive, a
    collect that does not wait for what is requeued, and any bit that a restart changes."""
    root = tmp_path / "runs of it"
    jobs = launch(slurm, tmp_path, root.name)
    runs = [root / point for point in POINTS]
    wait_for(lambda: all(goes_on(run, 1) for run in runs), "a first checkpoint")
    # both processors for an urgent job: SLURM pre-empts both tasks, and requeues them itself
    command(slurm, "sbatch", "--partition=urgent", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: goes_on(runs[0], 2), "the first task's second start")
    command(slurm, "scancel", "--signal=TERM", "--batch", f"{jobs[0]}_0")  # what --signal=B:TERM sends
    wait_for(lambda: goes_on(runs[1], 2), "the second task's second start")
    command(slurm, "scancel", "--signal=TERM", f"{jobs[0]}_1")  # to the processes, past the script
    logs = finish(slurm, jobs, root)
    assert logs.count("told to stop (status 75): back into the queue") == 2, logs
    for point, run in zip(POINTS, runs, strict=True):
        steps = [start["step"] for start in starts(run)]
        assert len(steps) == 3 and 0 == steps[0] < steps[1] < steps[2] < STEPS, (point, steps)
        facts, expected = (
            json.loads((folder / point / f"checkpoints/{STEPS}/facts/metadata").read_text())
            for folder in (root, undisturbed)
        )
        assert facts["checksums"] == expected["checksums"]  # parameters, average, optimiser, counters
        assert len(starts(undisturbed / point)) == 1
    for name in ("long", "wide", "pairs"):
        found, expected = table(root, name), table(undisturbed, name)
        differing = {
            a[0] for row, other in zip(found, expected, strict=True) for a, b in zip(row, other, strict=True) if a != b
        }
        assert len(found) == len(expected) and not differing, (name, differing)  # none lost, doubled or changed
    assert len(table(root, "long")) > 0 and (root / "report/index.html").exists()


def test_a_cancelled_job_stays_cancelled(slurm, tmp_path):
    """Here, too, the run is told to stop and exits with 75; if it were requeued, its owner could never end it."""
    root = tmp_path / "cancelled"
    jobs = launch(slurm, tmp_path, root.name)
    wait_for(lambda: goes_on(root / POINTS[0], 1), "a first checkpoint")
    command(slurm, "scancel", *jobs)
    wait_for(lambda: json.loads((root / POINTS[0] / "status.json").read_text())["state"] == "stopped", "a saved stop")
    wait_for(lambda: state(slurm, f"{jobs[0]}_0") not in ("RUNNING", "COMPLETING"), "the end of the job's processes")
    time.sleep(5)  # longer than the scheduler's interval
    assert state(slurm, f"{jobs[0]}_0") == "CANCELLED" and state(slurm, jobs[1]) == "CANCELLED"
    assert "back into the queue" not in "".join(path.read_text() for path in (root / "launch").glob("*.out"))
