"""Reads a user's text, whatever program wrote it: encodings, byte-order marks, line ends."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from rfjax.errors import ConfigError
from rfjax.inputs.files import read_bytes

# The marks that a file may begin with; UTF-32's begins with UTF-16's, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Three letters beyond ASCII in a row, or four signs: Cyrillic, Greek, Chinese or Japanese in an encoding of its own.
# Text of Western Europe has two letters at most, and three signs where a letter stands in quotes.
_OTHER_SCRIPT = re.compile(rb"[\xc0-\xff]{3}|[\x80-\xff]{4}")
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


class UndecodableText(ValueError):
    """The bytes are no text in an encoding that can be told."""


@dataclass(frozen=True)
class Text:
    """A text, and the encoding that it was read in: utf-8, utf-16-le, utf-16-be, utf-32-le, utf-32-be, windows-1252."""

    text: str
    encoding: str


def decode_text(data: bytes) -> Text:
    """The text of the bytes, without a byte-order mark, and with its lines ended by "\\n".

    A byte-order mark decides the encoding; without one it is UTF-8, then UTF-16 (recognised by its zero bytes), then
    Windows-1252, which Latin-1 is a part of. Raises `UndecodableText` for bytes that are none of these.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decode(data[len(mark) :], encoding)
    if b"\0" in data[:4096]:
        return _decode(data, _wide_encoding(data[:4096]))
    try:
        return Text(_lines(data.decode("utf-8")), "utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {error.start}"
    try:  # half of a surrogate pair, which other programs cut off and which no other encoding has
        return Text(_lines(data.decode("utf-8", "surrogatepass")), "utf-8")
    except UnicodeDecodeError:
        pass
    if _OTHER_SCRIPT.search(data) or _CONTROLS.search(data):
        raise UndecodableText(f"it is neither UTF-8 (see {where}) nor UTF-16 nor Windows-1252")
    return _decode(data, "windows-1252")


def _wide_encoding(start: bytes) -> str:
    """UTF-16's byte order, by the half of the bytes in which the zeros are. Text in Latin letters has zeros in one."""
    even, odd = start[::2].count(0), start[1::2].count(0)
    if even and odd and max(even, odd) < 4 * min(even, odd):
        raise UndecodableText("it holds zero bytes, as no text does")
    return "utf-16-be" if even > odd else "utf-16-le"


def _decode(data: bytes, encoding: str) -> Text:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UndecodableText(f"it is no {encoding.upper()}: {error.reason} at byte {error.start}") from None
    if "\0" in text:
        raise UndecodableText("it holds zero bytes, as no text does")
    return Text(_lines(text), encoding)


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def split_names(text: str | None, option: str) -> tuple[str, ...]:
    """The names of an option's value, which commas separate; none of None. Raises `ConfigError` for an empty name."""
    names = () if text is None else tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ConfigError(f"{option} is {text!r}, with an empty name; write names between single commas")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{option} is {text!r}, which has {twice!r} twice; leave one")
    return names


def read_text(path: str | Path, what: str, error: type[Exception] = ConfigError) -> str:
    """The text of a user's file. `what` says what it is in the error, such as "--prompts".

    Raises `error` naming the file, why it cannot be read, and the remedy.
    """
    try:
        return decode_text(read_bytes(path)).text
    except UndecodableText as problem:
        remedy = "save it as UTF-8 (iconv -f ENCODING -t UTF-8)"
        raise error(f"{what} {path} cannot be read: {problem}; {remedy}") from None
    except OSError as problem:
        why = problem.strerror or str(problem)
        raise error(f"{what} {path} cannot be read: {why}; give a text file") from None
