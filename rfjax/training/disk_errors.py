"""Tells from an exception of Orbax or TensorStore why a disk failed, and whether trying again may help.

TensorStore's exceptions carry no errno. So the texts of an exception and of its causes are searched for the system's
error texts, such as "No space left on device".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

_FULL = (errno.ENOSPC, errno.EDQUOT)
_WILL_NOT_PASS = (*_FULL, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def is_full(error: BaseException) -> bool:
    """Whether an error, or one of its causes, is a full disk or an exceeded quota."""
    return _is_caused_by(error, _FULL)


def may_pass(error: BaseException) -> bool:
    """Whether trying again may help. It cannot if the error or one of its causes is a fault that a person must mend."""
    return not _is_caused_by(error, _WILL_NOT_PASS)


def _is_caused_by(error: BaseException | None, numbers: Sequence[int]) -> bool:
    while error is not None:
        if getattr(error, "errno", None) in numbers or any(os.strerror(number) in str(error) for number in numbers):
            return True
        error = error.__cause__ or error.__context__
    return False


def brief(error: Exception) -> str:
    """Returns the type and the first line of an error. A long line is shortened in the middle.

    If the cut removes the system's error text, that text is put in front.
    """
    line = (str(error).strip().splitlines() or [""])[0]
    short = line if len(line) <= 360 else f"{line[:120]} ... {line[-240:]}"
    reasons = (os.strerror(number) for number in _WILL_NOT_PASS)
    lost = [reason for reason in reasons if reason in line and reason not in short]
    return f"{type(error).__name__}: {', '.join(lost)}{': ' if lost else ''}{short}"
