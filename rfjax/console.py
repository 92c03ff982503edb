"""Output that never ends the work: a log that is gone, a disk that is full, a terminal that lacks signs. No JAX."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import sys
from unicodedata import category

# Signs of formulas, for a terminal that lacks them.
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
    """The text in the signs that an encoding has: 10⁻³ becomes 10^-3, and what has no such form an escape."""
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        text = re.sub(f"[{''.join(_RAISED)}]+", lambda found: "^" + "".join(map(_RAISED.get, found[0])), text)
        text = "".join(_SIGNS.get(sign, sign) for sign in text)
        return text.encode(encoding, "backslashreplace").decode(encoding)


def printable(text: str) -> str:
    """A line for a terminal: control characters, which would move its cursor or colour it, are written as escapes."""
    # Blanks that do not break are in our numbers.
    kept = (sign.isprintable() or category(sign) == "Zs" for sign in text)
    return "".join(s if keep else s.encode("unicode_escape").decode() for s, keep in zip(text, kept, strict=True))


def printable_lines(text: str) -> str:
    """As `printable`, for a text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


class UnfailingStream(io.TextIOBase):
    """A text stream whose writes never raise. What cannot be written is lost, and so is all that follows.

    `tell_loss(reason)` is called once when something is lost, but not where a reader has gone, as `| head` does.
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
        """Sends all that follows, what Python flushes at its end too, to nowhere."""
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
    """Makes standard output and standard error streams that never raise. Called once, when a command begins."""
    for number in (0, 1, 2):  # a closed one would be given to the next file that is opened, and be written into
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
    """Keeps the tracebacks of libraries' background threads off the screen, where the command itself tells the error:
    what Orbax's threads log, and what TensorStore calls back after Orbax has closed its event loop."""
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())
    before = sys.unraisablehook

    def hook(unraisable):
        if not isinstance(unraisable.exc_value, RuntimeError) or str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _tell_loss_of_output(reason: str) -> None:
    print(f"rfjax: what follows on standard output is lost ({reason}); the work goes on", file=sys.stderr, flush=True)
