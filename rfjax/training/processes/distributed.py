"""Makes many processes act as one: they join, decide together, and leave without waiting for a lost process.

JAX's coordination service does the work: it knows which processes are alive, and carries the short texts that they
exchange. A single process waits for nothing here, and exchanges nothing.

Arrays travel in collectives, which hang or fail if a process is missing. So before a collective, the processes tell
each other by such texts whether anything that can fail in a single process (a file, a lock) has failed.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from rfjax import errors
from rfjax.errors import Preempted, RfjaxError
from rfjax.training.processes import watch
from rfjax.training.processes.cluster import CONNECT_SECONDS, Job
from rfjax.training.processes.jax_internals import coordination_client

HEARTBEAT_SECONDS = 60  # a process that is silent for this long counts as lost
_FOREVER_MS = 2**31 - 1  # no time limit: only the heartbeat or the watch over progress ends such a wait
_REMEDY = "the same command goes on from the last checkpoint"

_job: Job | None = None  # set by `join`
_heartbeat = HEARTBEAT_SECONDS
_numbers = itertools.count()  # the numbers of exchanges between processes; each process counts alike
_lost: list[str] = []  # once a process is lost: which one and why, in words
_leaving = threading.Event()
_listener: threading.Thread | None = None
_kept = None  # the handler of aborts, held here so that it is not garbage-collected


class PeerLost(Preempted):
    """Another process of the job is lost. The job resumes when it is started again."""


class Apart(Preempted):
    """The processes of a job did not all connect in time. Starting the job again may help."""


def join(
    job: Job | None, *, heartbeat_seconds: int = HEARTBEAT_SECONDS, connect_seconds: int = CONNECT_SECONDS
) -> None:
    """Connects this process with the job's other processes; does nothing for None. Call it before any other use of JAX.

    From then on, if another process is lost, this process ends within about `heartbeat_seconds`, with a message and the
    exit status of `Preempted`. If the others do not come, for example because their nodes start too late, this raises
    `Apart`, or ends the process with the exit status of `Apart`. Raises `RfjaxError` if JAX refuses the connection.
    """
    global _job, _heartbeat
    if job is None:
        return
    where = f"process {job.process_id} of {job.processes}, by {job.origin}"
    if job.process_id:
        _wait_for_coordinator(job.coordinator, connect_seconds, where)
    remedy = (
        "Start all of them with the same --coordinator and --processes and each with a --process-id of its "
        "own, and look at the logs of those that are missing"
    )
    apart = (
        f"the {job.processes} processes did not come together at {job.coordinator} within {connect_seconds} s ({where})"
    )
    jax.config.update("jax_enable_preemption_service", True)
    failed = []

    def connect():
        try:
            jax.distributed.initialize(
                job.coordinator,
                job.processes,
                job.process_id,
                job.local_device_ids,
                cluster_detection_method="deactivate",
                initialization_timeout=connect_seconds,
                heartbeat_timeout_seconds=heartbeat_seconds,
            )
        except Exception as error:
            failed.append(error)

    # `connect` runs in a thread of its own, because Python handles signals only between calls, and JAX's call may last
    # minutes. If the other processes do not come, JAX aborts this process instead of raising an error.
    _on_abort(lambda: _end(f"{apart}. {remedy}", Apart.exit_status))
    thread = threading.Thread(target=connect, daemon=True, name="rfjax-connect")
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if failed:
        kind = Apart if "DEADLINE_EXCEEDED" in str(failed[0]) else RfjaxError
        raise kind(f"{apart}: {_first_line(failed[0])}. {remedy}") from failed[0]
    _job, _heartbeat = job, heartbeat_seconds
    _watch_over_peers(job, heartbeat_seconds)


def _wait_for_coordinator(address, seconds, where) -> None:
    """Waits until process 0 listens; raises `Apart` after `seconds`. JAX's own wait cannot be interrupted, and the
    error that ends that wait explains nothing."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return _touch(address)
        except OSError as error:
            if time.monotonic() > deadline:
                raise Apart(
                    f"the coordinator {address} was not reached in {seconds} s ({error}; {where}). Process 0 must run "
                    "there, and the port must be free and open between the machines; see process 0's log"
                ) from None
            time.sleep(0.5)


def many() -> bool:
    """Whether this process is one of several."""
    return _job is not None


def is_first() -> bool:
    """Whether this is process 0, which alone writes the files that all processes share."""
    return _job is None or _job.process_id == 0


def together(what: str) -> None:
    """Waits until every process has called this. Unlike a collective, it can wait as long as a compilation takes."""
    if many():
        with watch.doing(f"waiting for the other processes ({what})"):
            coordination_client().wait_at_barrier(f"rfjax/{next(_numbers)}", _FOREVER_MS)


def compiled(what: str, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program, and returns it once every process has compiled it. Otherwise a process that compiles fast
    would time out in the first collective."""
    with watch.doing(f"compiling {what}"):
        program = lowered.compile()
    together(what)
    return program


def compiled_at_first_call(what: str, jitted: Callable) -> Callable:
    """Makes a function that waits for all processes when it compiles, so that none times out while another compiles.

    With one process it is `jitted` itself. With many, it compiles by `compiled` at the first call with each set of
    shapes, and then calls the compiled program.
    """
    programs = {}

    def call(*arguments):
        shapes = tuple(jax.numpy.shape(leaf) for leaf in jax.tree.leaves(arguments))
        if shapes not in programs:
            programs[shapes] = compiled(what, jitted.lower(*arguments))
        return programs[shapes](*arguments)

    return call if many() else jitted


def from_first(make: Callable[[], Any]) -> Any:
    """Calls `make()` in process 0, and returns its result (plain JSON) in all processes; an `RfjaxError` is raised in
    all. Decisions based on files are made once, because other machines may see a changed file late."""
    if not many():
        return make()
    key = f"rfjax/first/{next(_numbers)}"
    if is_first():
        try:
            answer = {"value": make()}
        except BaseException as error:
            kind = type(error).__name__ if isinstance(error, RfjaxError) else "RfjaxError"
            coordination_client().key_value_set(key, json.dumps({"error": kind, "message": str(error) or repr(error)}))
            raise
        coordination_client().key_value_set(key, json.dumps(answer))
        return json.loads(json.dumps(answer["value"]))
    with watch.doing("waiting for process 0"):
        answer = json.loads(coordination_client().blocking_key_value_get(key, _FOREVER_MS))
    if "error" in answer:
        raise getattr(errors, answer["error"], RfjaxError)(answer["message"])
    return answer["value"]


def everyones(word: str | None) -> list[str | None]:
    """Returns every process's `word`, in the order of processes. A word is a short text, such as a failure, of which
    all processes are to hear; None is no word."""
    if not many():
        return [word]
    folder = f"rfjax/words/{next(_numbers)}"
    coordination_client().key_value_set(f"{folder}/{_job.process_id}", json.dumps(word))
    together("their words")
    found = dict(coordination_client().key_value_dir_get(folder))
    return [json.loads(found[f"{folder}/{index}"]) for index in range(_job.processes)]


def first_failure(error: Exception | None) -> str | None:
    """The failure of the first process that has one; None if no process failed. Each process passes its own `error`."""
    words = everyones(None if error is None else str(error) or type(error).__name__)
    failed = [(index, word) for index, word in enumerate(words) if word is not None]
    if not failed:
        return None
    index, word = failed[0]
    return word if len(failed) == len(words) else f"in process {index} of {len(words)}: {word}"


def point_ended(number: int, failure: Exception | None, *, patience_seconds: float = 120.0) -> str | None:
    """Returns how the study's point `number` ended: None if no process failed, else the failure of one process that
    failed. All processes get the same answer. Each process passes its own `failure`, or None.

    A process that failed waits `patience_seconds` for the others. If they do not come, it failed alone, and they wait
    for it elsewhere. Then this raises `RfjaxError`: the job must end and be started again.
    """
    global _numbers
    if not many():
        return None if failure is None else str(failure)
    folder = f"rfjax/point/{number}"
    word = json.dumps([None if failure is None else str(failure), next(_numbers)])
    coordination_client().key_value_set(f"{folder}/{_job.process_id}", word)
    try:
        coordination_client().wait_at_barrier(
            f"{folder}-ended", int(1000 * patience_seconds) if failure else _FOREVER_MS
        )
    except Exception as error:
        lost = explained(error)
        if isinstance(lost, PeerLost):
            raise lost from failure
        raise RfjaxError(f"process {_job.process_id} of {_job.processes} failed alone: {failure or error}") from failure
    words = [json.loads(word) for _, word in sorted(coordination_client().key_value_dir_get(folder))]
    # The processes may have failed in different exchanges. From here on they count alike again.
    _numbers = itertools.count(1 + max(number for _, number in words))
    return next((word for word, _ in words if word is not None), None)


# Being told to stop

_polls = itertools.count(1)
_agreed = False


def stop_agreed() -> bool:
    """Whether to stop. After any process was sent SIGTERM, this becomes true at the same call in all processes.

    JAX's pre-emption service gets the number of each call, and agrees on the largest number of any process, plus one.
    So all processes must call this function equally often.
    """
    global _agreed
    if not _agreed:
        _agreed = bool(multihost_utils.reached_preemption_sync_point(next(_polls)))
    return _agreed


# Losing a process


def _watch_over_peers(job: Job, heartbeat_seconds: int) -> None:
    """Sees to it that this process ends with a message and the exit status of `Preempted` if another process is lost.

    When a process is lost, a barrier that can never complete fails, and the barrier's error names the lost process. JAX
    then aborts this process, and a handler in C catches the abort. This is safe, because the abort comes from a C++
    thread at a known point. An abort for any other reason is left as it is.
    """

    def listen():
        try:
            coordination_client().wait_at_barrier(f"rfjax/never/{job.process_id}", _FOREVER_MS)
        except Exception as error:
            if not _leaving.is_set() or "heartbeat" in str(error):
                _lost.append(_who(str(error), job, heartbeat_seconds))

    global _listener
    _listener = threading.Thread(target=listen, daemon=True, name="rfjax-peers")
    _listener.start()

    def aborted():
        for _ in range(40):
            if _lost:
                break
            time.sleep(0.05)
        if not _lost and job.process_id and not _listens(job.coordinator):
            _lost.append(f"process 0, the coordinator at {job.coordinator}, is gone")
        if _lost:
            _end_as_lost()

    _on_abort(aborted)


def _on_abort(do: Callable[[], None] | None) -> None:
    """Calls `do` once when C++ aborts the process; None calls nothing. The process ends even if `do` returns."""
    global _kept
    libc = ctypes.CDLL(None)
    install = getattr(libc, "sysv_signal", None)  # an abort resets this handler, so a second abort does not call it
    if install is None:  # not glibc: the abort then ends the process, with JAX's own message
        return
    install.argtypes, install.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    _kept = None if do is None else ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: do())
    install(signal.SIGABRT, ctypes.cast(_kept, ctypes.c_void_p) if _kept else None)


def _who(error: str, job: Job, heartbeat_seconds: int) -> str:
    """Says which process was lost, as far as the error of JAX's coordination service tells."""
    lost = re.search(r"Task (\d+) heartbeat", error)
    if lost:
        return f"process {lost[1]} has not been heard of for {heartbeat_seconds} s"
    if "leader" in error and job.process_id:
        return f"process 0, the coordinator at {job.coordinator}, is gone or cannot be reached"
    return f"another process is gone ({error.splitlines()[0]})"


def _listens(address: str) -> bool:
    try:
        _touch(address)
        return True
    except OSError:
        return False


def _touch(address: str) -> None:
    """Raises `OSError` where no process listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def _end_as_lost() -> None:
    _end(
        f"{_lost[0]}, so that this one (process {_job.process_id} of {_job.processes}) cannot go on; {_REMEDY}",
        Preempted.exit_status,
    )


def _end(message: str, status: int) -> None:
    os.write(2, f"rfjax: {message}\n".encode())
    os._exit(status)


def explained(error: BaseException) -> BaseException:
    """Returns `error`, or `PeerLost` if a lost process caused it. A connection breaks before JAX's service reports the
    process as lost, so this waits for the report."""
    if not many() or not _is_of_connections(error):
        return error
    deadline = time.monotonic() + _heartbeat + 10
    while not _lost and time.monotonic() < deadline:
        time.sleep(0.1)
    return PeerLost(f"{_lost[0]}; {_REMEDY}") if _lost else error


_SIGNS = ("gloo", "nccl", "connection", "socket", "unavailable", "deadline", "heartbeat", "barrier", "aborted")


def _is_of_connections(error: BaseException | None) -> bool:
    """Whether an error, or an error that caused it, may come from another process's silence."""
    while error is not None:
        ours = isinstance(error, RfjaxError) or not isinstance(error, Exception)
        if not ours and any(sign in str(error).lower() for sign in _SIGNS):
            return True
        error = error.__cause__
    return False


# Leaving


def leave(status: int, *, alone: bool = False, patience_seconds: float = 10.0) -> int:
    """Leaves the job. Waits until all processes leave, and returns this process's exit `status`.

    The wait is there because process 0 may still have a report to write. `alone` means that perhaps only this process
    has failed. The wait then ends after `patience_seconds`, and so does the process: the others may be waiting for it
    in a collective, and notice the failure only when the process ends.
    """
    if _job is None:
        return status
    sys.stdout.flush()
    sys.stderr.flush()
    _leaving.set()
    try:
        coordination_client().wait_at_barrier("rfjax/left", int(1000 * patience_seconds) if alone else _FOREVER_MS)
        _on_abort(None)
        jax.distributed.shutdown()
        _listener.join()  # the thread's wait ends with the service; Python must not exit before
        return status
    except Exception:
        if status == 0 and _lost:
            _end_as_lost()
        os._exit(status or Preempted.exit_status)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
