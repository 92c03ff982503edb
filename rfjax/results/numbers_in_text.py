"""Reads numbers as people write them: with decimal commas, thousands separators, blanks, or signs for a missing value.

A file has one decimal mark. An ambiguous comma (1,234) is never guessed: another cell of the file decides, or the file
is refused.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

MISSING = frozenset(
    ("", "na", "n/a", "#n/a", "nan", "null", "none", "<na>", "-", "–", "—", "nil", "missing", "#value!", "#ref!")
)
_EXPONENT = r"(?:[eEdD][+-]?[0-9]+)?"
_BLANKS = "\u00a0\u202f\u2009 '’_"  # thousands separators, whatever the decimal mark
# The first alternative has thousands separators and no exponent: nobody writes both, and the point of 1.234e18 is a
# decimal one whatever the file's mark.
_GROUPS = {
    mark: re.compile(
        rf"[+-]?[1-9][0-9]{{0,2}}(?:([{group}{_BLANKS}])[0-9]{{3}}(?:\1[0-9]{{3}})*)?(?:{re.escape(mark)}[0-9]*)?"
        rf"|[+-]?[0-9]*(?:{re.escape(mark)}[0-9]*)?{_EXPONENT}"
    )
    for mark, group in ((".", ","), (",", "."))
}


def is_missing(cell: str) -> bool:
    """Whether a cell in a column of numbers means a missing value."""
    return cell.strip().lower() in MISSING


def read_number(cell: str, mark: str = ".") -> float | None:
    """Reads a cell with the decimal mark `mark`; returns nan for a missing value, and None if the cell is not a
    number."""
    text = cell.strip().replace("−", "-")
    if text.lower() in MISSING:
        return math.nan
    if mark == "." or "inf" in text.lower():
        with contextlib.suppress(ValueError):
            return float(text)
    if not re.search("[0-9]", text) or not _GROUPS[mark].fullmatch(text):
        return None
    for sign in (*_BLANKS, "," if mark == "." else "."):
        text = text.replace(sign, "")
    with contextlib.suppress(ValueError):
        return float(text.replace(",", ".").lower().replace("d", "e"))
    return None


@dataclass(frozen=True)
class Marks:
    """What the cells of a file tell about its decimal mark."""

    point: bool = False  # whether some cell can be read only with a decimal point
    comma: bool = False  # whether some cell can be read only with a decimal comma
    both: str = ""  # a cell with a comma that can be read either way; "" if there is none

    def __or__(self, other: Marks) -> Marks:
        return Marks(self.point or other.point, self.comma or other.comma, self.both or other.both)

    @property
    def mark(self) -> str:
        """The decimal mark: a comma if a cell needs it and no cell needs a point, else a point."""
        return "," if self.comma and not self.point else "."

    @property
    def ambiguous(self) -> str:
        """A cell whose comma can be a decimal comma or a thousands separator, if no other cell of the file decides
        which; else ""."""
        return "" if self.point or self.comma else self.both


def find_marks(cells: Iterable[str]) -> Marks:
    """Looks for three kinds of cells: numbers only with a decimal point, numbers only with a decimal comma, and texts
    with a comma that both marks read, as different numbers (the first of these is kept). Ignores all other cells."""
    point, comma, both = False, False, ""
    for cell in cells:
        by_point, by_comma = read_number(cell, "."), read_number(cell, ",")
        if by_point is None or by_comma is None:
            comma = comma or (by_point is None and by_comma is not None)
            point = point or (by_comma is None and by_point is not None)
        elif by_point != by_comma and by_point == by_point and "," in cell:
            both = both or cell
    return Marks(point, comma, both)
