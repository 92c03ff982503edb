"""What a person hears while a corpus is prepared: a line every few seconds, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

SAID_EVERY = 10.0  # seconds


class Progress:
    """Says how far it is, how fast, and how long it will take.

    `sizes` are the source's parts', of which task `own[0]` of `own[1]` makes its own.
    """

    def __init__(self, sizes: Sequence[float | int], own: tuple[int, int]):
        self._sizes = list(sizes)
        self._total = sum(size for part, size in enumerate(sizes) if part % own[1] == own[0])
        self._own, self._began, self._said = own, time.monotonic(), time.monotonic()
        self._skipped = self._done = 0.0  # units of the sizes, before and since the start
        self._kept = self._dropped = 0
        self._part = (0, 0)
        self._name = ""

    def skip(self, part: int) -> None:
        if part % self._own[1] == self._own[0]:
            self._total -= self._sizes[part]

    def start(self, part: int, name: str) -> None:
        self._name, self._part = name, (0, 0)

    def tell(self, done: float | int, kept: int, dropped: int) -> None:
        self._part = (kept, dropped)
        if time.monotonic() - self._said >= SAID_EVERY:
            self._line(done)

    def made(self, part: int) -> None:
        kept, dropped = self._part
        self._kept, self._dropped, self._done = self._kept + kept, self._dropped + dropped, self._done + self._sizes[part]
        self._part = (0, 0)
        self._line(0.0)

    def _line(self, done):
        self._said = time.monotonic()
        seconds = self._said - self._began
        kept, dropped = self._kept + self._part[0], self._dropped + self._part[1]
        through = (self._done + done) / self._total if self._total else 1.0
        left = f", {_duration(seconds * (1 - through) / through)} left" if 0 < through < 1 else ""
        say(f"{self._name}: {kept:,} images kept, {dropped:,} dropped, {(kept + dropped) / max(seconds, 1e-9):.3g} images/s, {100 * through:.0f} %{left}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


def say(text: str) -> None:
    print(f"rfjax: {text}", file=sys.stderr, flush=True)
