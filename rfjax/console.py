"""Output whose failures never stop a command: a closed pipe, a full disk, a terminal that lacks some characters.

Needs no JAX.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from unicodedata import category

# Replacements for the characters of formulas, for a terminal that lacks these characters.
_SIGNS = {
    "×": "x",
    "·": "*",
    "−": "-",
    "–": "-",
    "±": "+-",
    "√": "sqrt ",
    "≤": "<=",
    "≥": ">=",
    "α": "alpha",
    "β": "beta",
    "κ": "kappa",
    "ρ": "rho",
    "τ": "tau",
    "…": "...",
    "’": "'",
    "⟨": "<",
    "⟩": ">",
}
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True))


def in_encoding(text: str, encoding: str) -> str:
    """Rewrites a text in the characters that an encoding has: 10⁻³ becomes 10^-3, and a missing character without such
    a replacement becomes an escape."""
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        text = re.sub(f"[{''.join(_RAISED)}]+", lambda found: "^" + "".join(map(_RAISED.get, found[0])), text)
        text = "".join(_SIGNS.get(sign, sign) for sign in text)
        return text.encode(encoding, "backslashreplace").decode(encoding)


def printable(text: str) -> str:
    """Makes a line safe for a terminal: writes control characters, which could move the cursor, as escapes."""
    # Zs keeps the no-break spaces in our numbers, which `isprintable` rejects.
    kept = (sign.isprintable() or category(sign) == "Zs" for sign in text)
    return "".join(s if keep else s.encode("unicode_escape").decode() for s, keep in zip(text, kept, strict=True))


def printable_lines(text: str) -> str:
    """Applies `printable` to each line of a text."""
    return "\n".join(map(printable, text.split("\n")))


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Formats rows of texts as lines with aligned columns. The first column, which has names, is aligned to the left;
    all other columns are aligned to the right."""
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for name, *cells in rows
    ]


class UnfailingStream(io.TextIOBase):
    """A text stream whose writes never raise. After the first write that fails, all output is dropped.

    `tell_loss(reason)` is then called once, unless the cause is a closed pipe, such as `| head`.
    """

    def __init__(self, stream: io.TextIOBase, tell_loss=lambda reason: None):
        self._stream, self._tell_loss, self._lost = stream, tell_loss, False

    def __getattr__(self, name):  # encoding, buffer, name and so on
        return getattr(self._stream, name)

    @property
    def encoding(self):
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self):
        return getattr(self._stream, "errors", None)

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        try:
            self._stream.write(in_encoding(text, self.encoding))
        except (OSError, ValueError) as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """Sends all later output to the null device, including what Python flushes when it exits. Tells the loss,
        unless `error` is that of a closed pipe. Does nothing after the first call."""
        if self._lost:
            return
        self._lost = True
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if getattr(error, "errno", None) != errno.EPIPE:
            self._tell_loss(getattr(error, "strerror", None) or str(error))


def make_unfailing() -> None:
    """Replaces standard output and standard error by streams that never raise. Called once, when a command begins."""
    for number in (0, 1, 2):  # otherwise the next file to be opened could get a closed stream's number, then our output
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    sys.stderr = UnfailingStream(sys.stderr)
    sys.stdout = UnfailingStream(sys.stdout, _tell_loss_of_output)


def quiet_background() -> None:
    """Hides two sorts of tracebacks from libraries' background threads, since the command reports the error itself.

    Orbax's threads log exceptions that nobody asked for ("never retrieved"). TensorStore's callbacks fail if they come
    after Orbax has closed its event loop.
    """
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())
    before = sys.unraisablehook

    def hook(unraisable):
        if not isinstance(unraisable.exc_value, RuntimeError) or str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _tell_loss_of_output(reason: str) -> None:
    print(f"rfjax: what follows on standard output is lost ({reason}); the work goes on", file=sys.stderr, flush=True)
