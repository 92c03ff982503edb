"""Many real processes on one machine: they are one run, told to stop or killed."""

import signal
import time

import numpy as np
import pytest

from helpers.training_tiny import ended, rows, start_processes, tiny_train
from rfjax.errors import Preempted
from rfjax.training import checkpoint, run_folder
from rfjax.training.processes import distributed
from rfjax.training.processes.cluster import Job

BAD = {"bad_steps": [2], "bad_from": 7}  # one example, so in one process alone


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """One process, one device."""
    workdir = tmp_path_factory.mktemp("processes") / "one"
    tiny_train(workdir, **BAD)
    return workdir


def when_step(workdir, step, started):
    """Waits until the run has logged a step."""
    path = workdir / "metrics.jsonl"
    while not (path.exists() and path.stat().st_size and rows(workdir)[-1]["step"] >= step):
        assert all(process.poll() is None for process in started), ended(started)
        time.sleep(0.01)


def same_curve(workdir, expected):
    """The rows are the expected ones: steps, skipped steps and filled bins of t exactly, losses to 1e-5."""
    found, expected = rows(workdir), rows(expected)
    assert [(row["step"], row["skipped"]) for row in found] == [(row["step"], row["skipped"]) for row in expected]
    np.testing.assert_allclose([row["loss"] for row in found], [row["loss"] for row in expected], rtol=1e-5)
    by_t, expected_by_t = (np.array([row["loss_by_t"] for row in of], float) for of in (found, expected))
    np.testing.assert_allclose(by_t, expected_by_t, rtol=1e-4)  # an example with another t fills another bin


def test_two_processes_stop_together_and_one_goes_on_to_the_same_losses(tmp_path, undisturbed):
    """Catches: a process's rows counted from its own first; a step skipped in the one process that met
    the NaN; a stop that only the process that got the signal sees (the other would hang); a
    checkpoint that only the mesh it was written on can read."""
    workdir = tmp_path / "two"
    started = start_processes(workdir, 2, pause=0.6, **BAD)
    when_step(workdir, 4, started)
    started[1].send_signal(signal.SIGTERM)
    ends = ended(started)
    assert [status for status, _ in ends] == [75, 75], ends
    step = checkpoint.steps_saved(workdir)[-1]
    assert 4 < step < 30
    for _, said in ends:
        assert f"told to stop at step {step} of 30" in said
    assert "step 4/30" in ends[0][1] and "step 4/30" not in ends[1][1]  # one process tells
    tiny_train(workdir, **BAD)
    same_curve(workdir, undisturbed)


# `start_processes` of two slices of four devices, and of one slice of eight.
SLICES = {"count": 2, "devices": 4, "overrides": {"mesh.slices": 2, "mesh.data": 4, "mesh.fsdp": 2}}
WHOLE = {"count": 1, "devices": 8, "overrides": {"mesh.data": 2, "mesh.fsdp": 4}}


@pytest.mark.parametrize("first, then", [(SLICES, WHOLE), pytest.param(WHOLE, SLICES, marks=pytest.mark.full)])
def test_two_slices_and_one_are_the_same_run(tmp_path, undisturbed, first, then):
    """One of the two is told to stop, and the other goes on from its checkpoint. Catches: examples or noise that depend
    on the slice; gradients summed inside a slice alone; a checkpoint that only the slices that wrote it can read."""
    workdir = tmp_path / "run"
    started = start_processes(workdir, pause=0.6, **first, **BAD)
    when_step(workdir, 4, started)
    started[-1].send_signal(signal.SIGTERM)
    ends = ended(started)
    assert [status for status, _ in ends] == [75] * first["count"], ends
    assert 4 < checkpoint.steps_saved(workdir)[-1] < 30
    ends = ended(start_processes(workdir, **then, **BAD))
    assert [status for status, _ in ends] == [0] * then["count"], ends
    same_curve(workdir, undisturbed)


@pytest.mark.full
@pytest.mark.parametrize(
    "mesh, order",
    [
        ({"mesh.slices": 2, "mesh.data": 4, "mesh.tensor": 2}, (0, 2, 4, 6, 1, 3, 5, 7)),  # two processes a slice
        ({"mesh.slices": 4, "mesh.data": 4, "mesh.fsdp": 2}, range(8)),
        ({"mesh.data": 2, "mesh.fsdp": 4}, range(8)),
        ({"mesh.data": 4, "mesh.tensor": 2}, (0, 2, 4, 6, 1, 3, 5, 7)),  # no process's rows follow each other
        ({"mesh.data": 2, "mesh.tensor": 4}, range(8)),  # two processes hold the same rows
    ],
)
def test_four_processes_of_two_devices_are_one(tmp_path, undisturbed, mesh, order):
    workdir = tmp_path / "four"
    ends = ended(start_processes(workdir, 4, 2, overrides=mesh, order=list(order), **BAD), 600)
    assert [status for status, _ in ends] == [0] * 4, ends
    same_curve(workdir, undisturbed)


@pytest.mark.full
def test_a_checkpoint_goes_round_all_meshes_without_losing_a_bit(tmp_path):
    """Four processes of two devices -> one of eight -> two of one -> four of two."""
    step, fsdp = 6, {"mesh.data": 2, "mesh.fsdp": 4, "train.steps": 6}
    ends = ended(start_processes(tmp_path / "a", 4, 2, overrides=fsdp), 600)
    assert [status for status, _ in ends] == [0] * 4, ends
    expected = checkpoint.read_facts(tmp_path / "a", step)["checksums"]
    assert len(expected) > 20
    ways = [("a", "b", 1, 8, fsdp), ("b", "c", 2, 1, {"mesh.fsdp": 2, "mesh.data": 1}), ("c", "d", 4, 2, fsdp)]
    for source, target, processes, devices, mesh in ways:
        arguments = {"copy_to": str(tmp_path / target), "overrides": mesh}
        ends = ended(start_processes(tmp_path / source, processes, devices, **arguments), 600)
        assert [status for status, _ in ends] == [0] * processes, ends
        assert checkpoint.read_facts(tmp_path / target, step)["checksums"] == expected


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_the_same_command_goes_on(tmp_path, undisturbed, victim):
    """Catches: a process that waits for ever in a collective; a silent end, or one that no scheduler requeues on."""
    workdir = tmp_path / "two"
    started = start_processes(workdir, 2, pause=0.15, **BAD)
    when_step(workdir, 8, started)
    started[victim].kill()
    began = time.monotonic()
    ends = ended(started)
    assert time.monotonic() - began < 60  # the heartbeat's ten seconds, on a busy machine
    status, said = ends[1 - victim]
    assert status == 75 and f"process {victim}" in said and "the same command goes on" in said, ends
    if victim:
        assert run_folder.read_status(workdir)["state"] in ("stopped", "running")
    ends = ended(start_processes(workdir, 2, **BAD))
    assert [status for status, _ in ends] == [0, 0], ends
    same_curve(workdir, undisturbed)


@pytest.mark.full
def test_a_process_that_fails_alone_ends_the_others_too(tmp_path, undisturbed):
    """Catches: a failure that the others wait for in a collective, for ever; one whose reason is lost among theirs."""
    workdir = tmp_path / "two"
    ends = ended(start_processes(workdir, 2, damaged=[1, 20], **BAD))
    assert ends[1][0] == 1 and "shard 3 is damaged" in ends[1][1], ends
    assert ends[0][0] == 75 and "process 1" in ends[0][1], ends
    ends = ended(start_processes(workdir, 2, **BAD))
    assert [status for status, _ in ends] == [0, 0], ends
    same_curve(workdir, undisturbed)


def test_a_coordinator_that_is_not_there_is_named():
    """Catches JAX's abort in its place, a wait without an end, and a status that no scheduler requeues on."""
    with pytest.raises(Preempted, match="the coordinator 127.0.0.1:9 was not reached in 1 s .*process 1 of 2"):
        distributed.join(Job("the test", 2, 1, "127.0.0.1:9"), connect_seconds=1)
    assert not distributed.many()


@pytest.mark.full
def test_another_number_of_devices_goes_on_with_the_same_curve(tmp_path, undisturbed):
    """1 process x 4 devices, then 2 x 1, then 1 x 1."""
    workdir = tmp_path / "any"
    for processes, devices, until in ((1, 4, 8), (2, 1, 16)):
        started = start_processes(workdir, processes, devices, pause=0.6, **BAD)
        when_step(workdir, until, started)
        started[0].send_signal(signal.SIGTERM)
        ends = ended(started)
        assert [status for status, _ in ends] == [75] * processes, ends
    tiny_train(workdir, **BAD)
    same_curve(workdir, undisturbed)
