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
_MOSTLY = 0.75  # of UTF-16 text without a mark: the share of Latin letters, by which it is told
_MOST_NULS = 0.2  # of a text: the share of zeros inside it that are taken out
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


class UndecodableText(ValueError):
    """The bytes are no text in an encoding that can be told."""


@dataclass(frozen=True)
class Text:
    """A text, and the encoding that it was read in: utf-8, utf-16-le, utf-16-be, utf-32-le, utf-32-be, windows-1252.

    `nuls` counts the zero characters that were taken out.
    """

    text: str
    encoding: str
    nuls: int = 0


def decode_text(data: bytes, *, without_nuls: bool = False) -> Text:
    """The text of the bytes, without a byte-order mark, and with its lines ended by "\\n".

    A byte-order mark decides the encoding. Without one the bytes are UTF-16 where about half of them are zero, at the
    places where Latin letters in UTF-16 have zeros; else UTF-8, then Windows-1252, which Latin-1 is a part of. With
    `without_nuls`, zeros that end a text, and a few inside it, are taken out, as C's strings and padded fields have
    them. Raises `UndecodableText` for other bytes, for zeros in the text included.
    """
    found = _decode_any(data)
    if "\0" not in found.text:
        return found
    text, nuls = drop_nuls(found.text)
    inner = text.count(" ") - found.text.count(" ")
    # Zeros in half of a text, or beside control characters, are a picture's, or an encoding's that is not known here.
    if not without_nuls or inner > _MOST_NULS * len(text) or _CONTROLS.search(text.encode("utf-8", "surrogatepass")):
        raise UndecodableText("it holds zero bytes, as no text does")
    return Text(text, found.encoding, nuls)


def drop_nuls(text: str) -> tuple[str, int]:
    """The text without zero characters, and how many there were. Those inside become blanks, since they part words."""
    return text.strip("\0").replace("\0", " "), text.count("\0")


def _decode_any(data: bytes) -> Text:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decode(data[len(mark) :], encoding)
    if b"\0" in data:
        return _wide_latin(data) or _decode(data, "utf-8")
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


def _wide_latin(data: bytes) -> Text | None:
    """The text that the bytes are in UTF-16 without a mark; None where they are not mostly Latin letters in UTF-16."""
    if len(data) % 2:
        return None
    for encoding, zeros in (("utf-16-le", 1), ("utf-16-be", 0)):
        high = data[zeros::2]
        units = len(high)
        while units and data[2 * units - 2 : 2 * units] == b"\0\0":  # the zeros that end a text
            units -= 1
        if not units or high[:units].count(0) < _MOSTLY * units:
            continue
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        latin = sum(character < "\u0250" for character in text[:units]) - text[:units].count("\0")
        if latin >= _MOSTLY * units:
            return Text(_lines(text), encoding)
    return None


def _decode(data: bytes, encoding: str) -> Text:
    try:
        return Text(_lines(data.decode(encoding)), encoding)
    except UnicodeDecodeError as error:
        zeros = ", and it holds zero bytes" if b"\0" in data and encoding == "utf-8" else ""
        raise UndecodableText(f"it is no {encoding.upper()}: {error.reason} at byte {error.start}{zeros}") from None


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
