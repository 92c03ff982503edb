"""How a command ends: alone, or with the other processes of a job, by itself or told to, and with which exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator

from rfjax.errors import ConfigError, Preempted, RfjaxError

ALONE = ("dry_run", "collect", "list")  # what a verb of many processes does by these options needs one


def run_as_job(args, run: Callable[[], int], from_shell: bool, *, resumes: bool) -> int:
    """`run()` with the processes of this job, if there are others; its exit status, or its error's."""
    with _preempted_when_terminated() if from_shell and resumes else contextlib.nullcontext():
        if any(getattr(args, name, False) for name in ALONE):
            return run()
        from rfjax.training.processes import cluster, distributed

        if args.lost_after < 5:
            raise ConfigError(
                f"--lost-after is {args.lost_after}; a busy machine is silent for a few seconds: give at least 5"
            )
        try:
            job = cluster.find_job(args.coordinator, args.processes, args.process_id)
            distributed.join(job, heartbeat_seconds=args.lost_after)
            if job:
                who = f"process {job.process_id} of {job.processes}, by {job.origin}"
                print(f"rfjax: {who}: all have come together at {job.coordinator}", file=sys.stderr, flush=True)
            status = run()
        except BaseException as error:
            if not distributed.many():
                raise
            return distributed.leave(exit_status_of(distributed.explained(error)), alone=True)
        return distributed.leave(status)


def is_first() -> bool:
    """Whether this process speaks for the job."""
    from rfjax.training.processes import distributed

    return distributed.is_first()


def say(text: str) -> None:
    """A text on standard output, by one process of the job."""
    if is_first():
        print(text, flush=True)


def _preempted_when_terminated():
    """Makes SIGTERM the end that schedulers requeue on, also while nothing polls for it: during imports,
    or while the other processes are awaited."""
    why = "told to stop before anything was begun, or after it was done; give the same command again"
    return _on_sigterm(Preempted(why))


def tidy_when_terminated():
    """Makes SIGTERM an exit that runs what must be run on the way out, as Ctrl-C does."""
    return _on_sigterm(SystemExit(143))


@contextlib.contextmanager
def _on_sigterm(error: BaseException) -> Iterator[None]:
    """Raises `error` where SIGTERM comes."""

    def stop(*_):
        raise error

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_status_of(error: BaseException) -> int:
    """Says how a command ended, and gives the exit status."""
    try:
        raise error
    except RfjaxError:
        print(f"rfjax: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("rfjax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        return 1
