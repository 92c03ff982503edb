"""The ending of a command: alone, or with the processes of a job, and the exit status that tells how."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback

from rfjax.errors import ConfigError, Preempted, RfjaxError


def together(args, act, from_shell: bool, *, resumes: bool) -> int:
    """`act()` with the processes of this job, if there are others; its exit status, or its error's."""
    with _told_early() if from_shell and resumes else contextlib.nullcontext():
        if getattr(args, "dry_run", False) or getattr(args, "collect", False):
            return act()
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
            status = act()
        except BaseException as error:
            if not distributed.many():
                raise
            return distributed.leave(ended(distributed.explained(error)), alone=True)
        return distributed.leave(status)


@contextlib.contextmanager
def _told_early():
    """Makes SIGTERM the end that schedulers requeue on, also while nothing polls for it: during imports,
    or while the other processes are awaited."""

    def stop(*_):
        raise Preempted("told to stop before anything was begun, or after it was done; give the same command again")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ended(error: BaseException) -> int:
    """Says how it ended, and gives the exit status."""
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
