"""Real processes, really killed: the same command ends with the same bits and the same rows."""

import random
import signal
import subprocess
import sys
import time

import pytest

from helpers import child_process, training_tiny
from helpers.training_tiny import rows, tiny_train
from rfjax.training import checkpoint

STEPS = 30


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("kill") / "undisturbed"
    tiny_train(workdir)
    return workdir


def start(workdir):
    command = [sys.executable, training_tiny.__file__, str(workdir), '{"pause": 0.02}']
    return subprocess.Popen(
        command, env=child_process.quick_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def kill_when(workdir, condition, number=signal.SIGKILL):
    """Starts the run and kills it as soon as the condition holds; its exit status."""
    with start(workdir) as process:
        while not condition() and process.poll() is None:
            time.sleep(0.0005)
        process.send_signal(number)
        return process.wait(120)


def torn(workdir):
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def steps_seen(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def finish(workdir, undisturbed):
    with start(workdir) as process:
        assert process.wait(120) == 0
    facts, expected = (checkpoint.read_facts(path, STEPS) for path in (workdir, undisturbed))
    assert facts["checksums"] == expected["checksums"]  # parameters, average, optimiser and counters
    assert rows(workdir) == rows(undisturbed)
    saved, planned = checkpoint.steps_saved(workdir), checkpoint.steps_saved(undisturbed)
    assert not torn(workdir) and len(saved) == len(planned) and saved[-1] == STEPS
    # Told to stop, a run saves the step it has reached, which may then be among the newest that are kept.
    assert all(step >= usual for step, usual in zip(saved, planned, strict=True))


def test_killed_before_amid_and_after_saving_it_ends_with_the_same_bits(tmp_path, undisturbed):
    assert kill_when(tmp_path, (tmp_path / "run.json").exists) == -signal.SIGKILL  # while it compiles
    assert not checkpoint.steps_saved(tmp_path)
    for _ in range(5):
        kill_when(tmp_path, lambda: torn(tmp_path))
        if torn(tmp_path):
            break
    assert torn(tmp_path), "no save could be torn"
    before = steps_seen(tmp_path)
    kill_when(tmp_path, lambda: steps_seen(tmp_path) > max(before, 3))  # amid steps
    finish(tmp_path, undisturbed)


@pytest.mark.full
def test_killed_at_random_many_times_it_ends_with_the_same_bits(tmp_path, undisturbed):
    dice, statuses = random.Random(0), set()
    with start(tmp_path / "timed") as process:  # how long it takes decides when kills fall
        began = time.monotonic()
        assert process.wait(120) == 0
        length = time.monotonic() - began
    for run in range(7):
        workdir = tmp_path / f"killed{run}"
        for _ in range(4):
            deadline = time.monotonic() + dice.uniform(0.2, 1.1) * length
            number = dice.choice([signal.SIGKILL, signal.SIGTERM])
            statuses.add(kill_when(workdir, lambda deadline=deadline: time.monotonic() > deadline, number))
        finish(workdir, undisturbed)
    assert -signal.SIGKILL in statuses and 75 in statuses
