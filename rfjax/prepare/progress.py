"""Reports the progress of work on a source: a line on standard error every few seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rfjax.console import printable_lines
from rfjax.training.progress import format_duration

SAID_EVERY = 10.0  # seconds


class ShardProgress:
    """Prints how much is done, how fast, and how long the rest will take.

    `total` is the size of the parts to be made now, in the source's unit (records or bytes). Parts that an earlier
    command made do not count.
    """

    def __init__(self, total: float | int, *, clock: Callable[[], float] = time.monotonic):
        self._total, self._clock = total, clock
        self._began = self._said = clock()
        self._name, self._done = "", 0.0
        self._kept = self._dropped = 0  # images of the finished parts
        self._part = (0.0, 0, 0)  # done, kept, dropped in the current part

    @contextlib.contextmanager
    def of(self, name: str, size: float | int) -> Iterator[None]:
        """Returns a context in which one part is made, with `size` in the unit of `total`. Prints a line at the end."""
        self._name, self._part = name, (0.0, 0, 0)
        yield
        _, kept, dropped = self._part
        self._done, self._kept, self._dropped = self._done + size, self._kept + kept, self._dropped + dropped
        self._part = (0.0, 0, 0)
        self._line()

    def tell(self, done: float | int, kept: int, dropped: int) -> None:
        """Records how much of the current part is done, and how many of its images were kept and dropped."""
        self._part = (done, kept, dropped)
        if self._clock() - self._said >= SAID_EVERY:
            self._line()

    def _line(self):
        self._said = self._clock()
        seconds = self._said - self._began
        done, kept, dropped = self._done + self._part[0], self._kept + self._part[1], self._dropped + self._part[2]
        through = done / self._total
        left = f", {format_duration(seconds * (1 - through) / through)} left" if 0 < through < 1 else ""
        rate = (kept + dropped) / max(seconds, 1e-9)
        speed = f"{rate:.3g} images/s, {100 * through:.0f} %{left}"
        say(f"{self._name}: {kept:,} images kept, {dropped:,} dropped, {speed}")


def say(text: str) -> None:
    """Prints a line on standard error."""
    print(f"rfjax: {printable_lines(text)}", file=sys.stderr, flush=True)
