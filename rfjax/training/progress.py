"""Shows the progress of a run: a bar on a terminal, and elsewhere a plain line now and then."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from rfjax.console import printable_lines


def engineering(value: float, unit: str) -> str:
    """Formats a number with its unit: 1.23e12, "FLOP/s" gives "1.23 TFLOP/s"."""
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def format_duration(seconds: float) -> str:
    """Formats seconds: 3m12s, 5h07m."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


def note(text: str) -> None:
    """Prints a line on standard error, above any progress bar."""
    tqdm.write(printable_lines(text), file=sys.stderr)


def bar(total: int, what: str, unit: str, *, done: int = 0, leave: bool = False) -> tqdm:
    """A progress bar: a context manager with `update(count)`. Only process 0 shows it, and only on a terminal."""
    from rfjax.training.processes import distributed  # this needs JAX; the rest of the file does not

    hidden = None if distributed.is_first() else True  # None: hidden if standard error is no terminal
    return tqdm(total=total, initial=done, desc=what, unit=unit, leave=leave, disable=hidden)


class Progress:
    """Shows step, loss, images/s, FLOP/s, MFU if it is known, and time left; a context manager."""

    def __init__(
        self,
        name: str,
        step: int,
        steps: int,
        messages: Sequence[str] = (),
        *,
        every_seconds: float = 30.0,
        file: io.TextIOBase | None = None,
    ):
        self._name, self._steps, self._every = name, steps, every_seconds
        self._file = sys.stderr if file is None else file
        self._said = time.monotonic()
        self._bar = None
        if self._file.isatty():
            about = {"total": steps, "initial": step, "desc": name, "unit": "step", "mininterval": 0.5}
            self._bar = tqdm(**about, file=self._file, dynamic_ncols=True)
        for message in messages:
            self.note(message)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def note(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        text = printable_lines(text)
        if self._bar is not None:
            self._bar.write(text, file=self._file)
        else:
            print(text, file=self._file, flush=True)

    def step(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def row(self, row: dict) -> None:
        """Shows the loss and the rates of a metrics row."""
        rate = row["images_per_second"]
        parts = [f"loss {row['loss']:.4f}" if row["loss"] is not None else "loss -"]
        if rate:
            parts.append(f"{rate:.4g} images/s")
        if row["flops_per_second"]:
            parts.append(engineering(row["flops_per_second"], "FLOP/s"))
        if row["mfu"] is not None:
            parts.append(f"MFU {100 * row['mfu']:.1f}%")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)  # the bar itself shows the time left
            return
        now = time.monotonic()
        if now - self._said >= self._every or row["step"] == self._steps:
            self._said = now
            if row["steps_per_second"]:
                parts.append(f"{format_duration((self._steps - row['step']) / row['steps_per_second'])} left")
            self.note(f"{self._name}: step {row['step']}/{self._steps}, {', '.join(parts)}")
