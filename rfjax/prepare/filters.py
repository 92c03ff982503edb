"""Filters that keep or drop records by their columns: comparisons such as `aesthetic>=5`, never evaluated as code."""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rfjax.errors import ConfigError
from rfjax.prepare.captions import column, is_missing

COMPARISONS: dict[str, Callable[[object, object], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
MEASURED = ("width", "height", "aspect", "short_side")  # columns measured on the image; aspect is width / height
FORM = re.compile(r"\s*([\w.-]+)\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*")
WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class Filter:
    """The test `column comparison value`. A record that passes is kept."""

    text: str
    column: str
    comparison: str
    value: int | float | str | bool  # a whole number stays an int: Python compares ints exactly with any number

    @property
    def measured(self) -> bool:
        """Whether the filter needs the decoded image."""
        return self.column in MEASURED

    def refuses(self, columns: Mapping[str, object]) -> str | None:
        """Returns why a record is dropped, such as "lacks width"; None if it is kept."""
        value = column(columns, self.column)
        if is_missing(value):
            return f"lacks {self.column}"
        if isinstance(value, (bytes, str)):
            value = _read(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)
        if type(value) is not type(self.value) and not (_is_number(value) and _is_number(self.value)):
            return f"{self.column} is of another type"
        return None if COMPARISONS[self.comparison](value, self.value) else f"not {self.text}"


def first_refusal(filters: Iterable[Filter], columns: Mapping[str, object]) -> str | None:
    """Returns the reason of the first filter that drops a record; None if all filters keep it."""
    return next(filter(None, (test.refuses(columns) for test in filters)), None)


def parse_filter(text: str) -> Filter:
    """Reads `aesthetic>=5`, `nsfw=="UNLIKELY"`, `watermarked==false`. Raises `ConfigError` for anything else."""
    match = FORM.fullmatch(text)
    if not match:
        raise ConfigError(f"--filter {text!r} is no comparison by {' '.join(COMPARISONS)}; write it as aesthetic>=5")
    value = _read(match[3])
    if value != value:
        raise ConfigError(
            f"--filter {text!r} compares with nan, which gives every image the same answer; give a number"
        )
    if not _is_number(value) and match[2] not in ("==", "!="):
        raise ConfigError(f"--filter {text!r} compares by size with {match[3]}, which is no number; use == or !=")
    return Filter(f"{match[1]}{match[2]}{match[3]}", match[1], match[2], value)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _read(text: str) -> int | float | str | bool:
    """Converts a text to the value that it means: a number, true or false, or a text without its quotes."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text
