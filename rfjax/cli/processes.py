"""Runs a command alone or as one process of a job, ends it at SIGTERM, and finds its exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator

from rfjax.cli.environment import check_devices
from rfjax.console import printable_lines
from rfjax.errors import ConfigError, Preempted, RfjaxError, disk_trouble

ALONE = ("dry_run", "collect", "list")  # with these options a verb needs one process only


def run_as_job(args, run: Callable[[], int], from_shell: bool, *, resumes: bool) -> int:
    """Joins this job's other processes, if any, calls `run()`, and returns the exit status that `run()` returned.

    If `run()` raises an error, a process of a job returns the error's exit status; a process alone raises the error.
    `from_shell` says whether a shell started the command, and `resumes` whether the same command resumes its work. If
    both are true, SIGTERM ends the command with the status on which schedulers requeue.
    """
    with _preempt_when_terminated() if from_shell and resumes else contextlib.nullcontext():
        if any(getattr(args, name, False) for name in ALONE):
            return run()
        from rfjax.training.processes import cluster, distributed

        if args.lost_after < 5:
            reason = "a busy machine is silent for a few seconds: give at least 5"
            raise ConfigError(f"--lost-after is {args.lost_after}; {reason}")
        try:
            job = cluster.find_job(args.coordinator, args.processes, args.process_id)
            if job:
                where = f"{job.processes - 1} other processes of this job, by {job.origin}"
                how = "if there are none, unset the environment variables that describe the job"
                print(f"rfjax: waiting for the {where}, at {job.coordinator}; {how}", file=sys.stderr, flush=True)
            distributed.join(job, heartbeat_seconds=args.lost_after)
            if job:
                who = f"process {job.process_id} of {job.processes}, by {job.origin}"
                print(f"rfjax: {who}: all have come together at {job.coordinator}", file=sys.stderr, flush=True)
            check_devices()
            check_same_flags()
            keep_programs(args.compilation_cache)
            status = run()
        except BaseException as error:
            if not distributed.many():
                raise
            return distributed.leave(exit_status_of(distributed.explained(error)), alone=True)
        return distributed.leave(status)


def check_same_flags() -> None:
    """Raises `ConfigError` if the job's processes compile with different flags: their collectives may not match."""
    from rfjax.training import xla_flags
    from rfjax.training.processes import distributed

    every = distributed.everyones(os.environ.get(xla_flags.ADDED, ""))
    if len(set(every)) > 1:
        given = f"rfjax set XLA flags {every[0] or '(none)'} in process 0 and others elsewhere"
        raise ConfigError(f"{given}; give every process --no-xla-flags, and set the flags yourself")


def keep_programs(given: str | None) -> None:
    """Turns on the cache of compiled programs on disk as the option --compilation-cache says. Call it after JAX has
    initialised its devices."""
    from rfjax.training import compilation_cache

    compilation_cache.turn_on(given, _say_aside)


def _say_aside(text: str) -> None:
    """Prints a text to standard error, but only in the first process of the job."""
    from rfjax.training.processes import distributed

    if distributed.is_first():
        print(printable_lines(text), file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Prints a text, but only in the first process of the job."""
    from rfjax.training.processes import distributed

    if distributed.is_first():
        print(printable_lines(text), flush=True)


def _preempt_when_terminated():
    """Makes SIGTERM end the command with the status on which schedulers requeue.

    SIGTERM then works even while no code polls for it: during imports, or while waiting for other processes.
    """
    why = "told to stop before anything was begun, or after it was done; give the same command again"
    return _on_sigterm(Preempted(why))


def exit_when_terminated():
    """Makes SIGTERM end the command as Ctrl-C does: `finally` clauses still run."""
    return _on_sigterm(SystemExit(143))


@contextlib.contextmanager
def _on_sigterm(error: BaseException) -> Iterator[None]:
    """Within the context, SIGTERM raises `error`."""

    def stop(*_):
        raise error

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_status_of(error: BaseException) -> int:
    """Prints the error that ended a command; returns the command's exit status. A `SystemExit` is raised again, and a
    `BrokenPipeError` is not printed."""
    try:
        raise error
    except RfjaxError:
        print(f"rfjax: {printable_lines(str(error))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("rfjax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit:
        raise
    except OSError as error:
        if (trouble := disk_trouble(error)) is None:
            traceback.print_exc()
            return 1
        return exit_status_of(trouble)
    except BaseException:
        traceback.print_exc()
        return 1
