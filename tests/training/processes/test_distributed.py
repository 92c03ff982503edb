"""The waits of many processes come to an end: short ones here, in processes of their own."""

import socket
import subprocess
import sys

import pytest

from helpers import child_process

JOIN = """
import sys, time
from rfjax.errors import RfjaxError
from rfjax.training.processes import distributed
from rfjax.training.processes.cluster import Job
port, processes, index, seconds = map(int, sys.argv[1:])
try:
    distributed.join(Job("the test", processes, index, f"127.0.0.1:{port}"), heartbeat_seconds=10, \
connect_seconds=seconds)
except RfjaxError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_status)
"""
ALONE = """
if index == 0:  # as in a collective that waits for process 1
    time.sleep(60)
distributed._heartbeat = -9  # a second for the word that process 0 is lost, which it is not
try:
    distributed.point_ended(4, OSError("the disk is full"), patience_seconds=2)
except RfjaxError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(distributed.leave(error.exit_status, alone=True, patience_seconds=1))
print("nobody was waited for", file=sys.stderr)
"""


def start(script, processes, index, port, seconds):
    command = [sys.executable, "-c", script, *map(str, (port, processes, index, seconds))]
    return subprocess.Popen(command, env=child_process.quick_environment(), stderr=subprocess.PIPE, text=True)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("index, says", [(0, "did not come together"), (1, "the coordinator")])
def test_a_job_whose_others_do_not_come_is_to_be_started_again(port, index, says):
    """Catches a status that schedulers take for a failure: nodes of a job may start too far apart.

    Process 0 waits in JAX, which aborts; another waits for process 0 to listen.
    """
    process = start(JOIN, 2, index, port, 2)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 75 and says in said and f"127.0.0.1:{port}" in said, said


def test_a_point_that_fails_alone_gives_up_on_the_others(port):
    """Catches a wait for ever for processes that are in a collective and wait for this one."""
    first, second = (start(JOIN + ALONE, 2, index, port, 60) for index in (0, 1))
    try:
        said = second.communicate(timeout=120)[1]
        assert second.returncode == 1, said
        assert "RfjaxError: process 1 of 2 failed alone: the disk is full" in said
    finally:
        first.kill()
        first.communicate()
