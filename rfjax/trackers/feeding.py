"""Feeds the trackers while runs train (`follow`), with one thread for each tracker.

Training does not wait for a tracker, and does not fail if a tracker fails. Every few seconds the thread looks at the
run's folder, and sends the items that are final (`items`) and not sent yet (`cursor`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rfjax.config import flatten
from rfjax.outputs import open_to_append
from rfjax.trackers.cursor import FOLDER, Cursor, read_cursor, write_cursor
from rfjax.trackers.items import Final, final_of, next_batch
from rfjax.trackers.table import About, Tracker, check, opener
from rfjax.training.processes import distributed
from rfjax.training.progress import note
from rfjax.training.run import Run

try:
    import fcntl
except ImportError:  # not a POSIX system: as in training/run_folder.py
    fcntl = None

LOOK_SECONDS = 5.0  # between looks at the folder
AGAIN_SECONDS = (15.0, 60.0, 300.0)  # pauses after the first, second and any further failure in a row
LAST_SECONDS = 60.0  # how long the end of training waits for what is not sent yet
HASTY_SECONDS = 5.0  # the same if the tracker fails, or after an error or a signal: a kill may follow soon


@contextlib.contextmanager
def follow(runs: Sequence[Run]) -> Iterator[None]:
    """Feeds the trackers of `config.train.trackers` while the body of the `with` trains the runs. All runs must
    name the same trackers.

    Only process 0 sends. When the body ends, the rest is sent. Anything that cannot be sent in time is sent by the next
    start in the same folder. Raises `ConfigError`, before the body, for a tracker that cannot be used here.
    """
    names = runs[0].config.train.trackers
    distributed.from_first(lambda: check(names))
    followers = [Follower(name, runs) for name in names] if distributed.is_first() else []
    for follower in followers:
        follower.start()
    seconds = HASTY_SECONDS
    try:
        yield
        seconds = LAST_SECONDS
    finally:
        began = time.monotonic()
        for follower in followers:
            follower.ending.set()
        for follower in followers:
            patience = min(seconds, HASTY_SECONDS) if follower.failing else seconds
            follower.join(max(0.0, began + patience - time.monotonic()))
            if follower.is_alive():
                note(f"{follower.tracker}: some values are not sent yet; the same command sends the rest")


class Follower(threading.Thread):
    """The thread that feeds one tracker. It is a daemon, so a tracker that hangs does not keep the process alive."""

    def __init__(self, tracker: str, runs: Sequence[Run]):
        super().__init__(name=f"tracker {tracker}", daemon=True)
        self.tracker, self.ending = tracker, threading.Event()
        self._runs = [_Fed(tracker, run) for run in runs]
        self._failures = 0
        self._warned = False

    @property
    def failing(self) -> bool:
        """Whether the last attempt to send failed."""
        return self._failures > 0

    def run(self) -> None:
        with contextlib.ExitStack() as locks:
            last = False
            while not last:
                last = self.ending.wait(self._pause())
                self._look(locks)
            for fed in self._runs:
                self._try(fed.close)

    def _pause(self) -> float:
        return AGAIN_SECONDS[min(self._failures, len(AGAIN_SECONDS)) - 1] if self._failures else LOOK_SECONDS

    def _look(self, locks: contextlib.ExitStack) -> None:
        fine = [self._try(lambda fed=fed: fed.feed(locks)) for fed in self._runs]
        if all(fine) and self._failures:
            note(f"{self.tracker}: goes on; nothing was lost")
        self._failures = 0 if all(fine) else self._failures + 1

    def _try(self, do) -> bool:
        """Calls `do()` and returns whether it succeeded. Only the first failure in this process is shown."""
        try:
            do()
            return True
        except Exception as error:
            if not self._warned:
                self._warned = True
                why = " ".join(str(error).split())[:300] or type(error).__name__
                note(f"{self.tracker}: {why}. Training goes on, and what was not sent is sent later")
            return False


class _Fed:
    """Sends one run to one tracker."""

    def __init__(self, tracker: str, run: Run):
        self._tracker, self._run, self._workdir = tracker, run, run.workdir
        self._open: Tracker | None = None
        self._sent: Final | None = None  # the last `Final` whose items were all sent
        self._locked = False

    def feed(self, locks: contextlib.ExitStack) -> None:
        """Sends all items that are final and not sent yet."""
        if not (self._workdir / "run.json").exists():
            return
        final = final_of(self._workdir)
        if final == self._sent or not self._lock(locks):
            return
        cursor = read_cursor(self._workdir, self._tracker)
        if cursor.outbox is not None:
            cursor = self._deliver(cursor)
        while True:
            batch = next_batch(self._workdir, final, cursor.step, cursor.records)
            if batch.step == cursor.step and not batch.records:
                break
            sending = cursor.sending(batch)
            write_cursor(self._workdir, self._tracker, sending)
            cursor = self._deliver(sending)
        self._sent = final

    def _deliver(self, cursor: Cursor) -> Cursor:
        """Sends the cursor's outbox. Stores and returns the cursor with an empty outbox."""
        try:
            if self._open is None:
                self._open = opener(self._tracker)(self._about(cursor))
            self._open.send(cursor.outbox or (), cursor.number)
            self._open.flush()
        except Exception:
            self._abandon()
            raise
        after = cursor.sent()
        write_cursor(self._workdir, self._tracker, after)
        return after

    def _about(self, cursor: Cursor) -> About:
        config = {key: value for key, value in flatten(self._run.config).items() if value is not None}
        about = {"name": self._run.name, "group": self._run.study or "", "workdir": self._workdir}
        return About(id=cursor.id, config=config, begun=cursor.number > 0, **about)

    def _abandon(self) -> None:
        """Drops the connection to a tracker that failed; the next attempt opens a new one."""
        broken, self._open = self._open, None
        if broken is not None:
            with contextlib.suppress(Exception):
                broken.close(False)

    def close(self) -> None:
        if self._open is not None:
            done = self._run.config.train.steps == getattr(self._sent, "step", None)
            self._open.close(done)

    def _lock(self, locks: contextlib.ExitStack) -> bool:
        """Locks this run's feed to this tracker until `locks` ends. Returns False if another process holds the lock."""
        if not self._locked:
            self._locked = _take(locks, self._workdir / FOLDER / f"{self._tracker}.lock")
        return self._locked


def _take(locks: contextlib.ExitStack, path: Path) -> bool:
    path.parent.mkdir(exist_ok=True)
    file = locks.enter_context(open_to_append(path, "lock"))
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
    return True
