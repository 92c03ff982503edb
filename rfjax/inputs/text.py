"""Reads a user's text in any usual encoding, with or without a byte-order mark, with any line ends."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from rfjax.errors import ConfigError
from rfjax.inputs.files import read_bytes

# Byte-order marks. UTF-32's begins with UTF-16's, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Three letters beyond ASCII in a row, or four characters beyond ASCII, are Cyrillic, Greek, Chinese or Japanese in an
# encoding other than Unicode. Western European text has at most two such letters in a row, and at most three such
# characters (a letter between quotation marks).
_OTHER_SCRIPT = re.compile(rb"[\xc0-\xff]{3}|[\x80-\xff]{4}")
_MOSTLY = 0.75  # smallest share of Latin letters by which UTF-16 without a mark is recognised
_MOST_NULS = 0.2  # largest share of zero characters inside a text that are removed; with more, the text is refused
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


class UndecodableText(ValueError):
    """Raised for bytes that are not text in an encoding that can be recognised."""


@dataclass(frozen=True)
class Text:
    """A text and its encoding: utf-8, utf-16-le, utf-16-be, utf-32-le, utf-32-be or windows-1252.

    `nuls` counts the zero characters that were removed.
    """

    text: str
    encoding: str
    nuls: int = 0


def decode_text(data: bytes, *, without_nuls: bool = False) -> Text:
    """Decodes bytes to a text without byte-order mark whose lines end with "\\n".

    A byte-order mark decides the encoding. Without one the bytes are UTF-16 if about half of them are zero, at the
    places where UTF-16 has zeros for Latin letters. Otherwise UTF-8 is tried, then Windows-1252, which contains
    Latin-1's letters. With `without_nuls`, zeros at the end of a text and a few inside it are removed: C strings and
    padded fields have them. Raises `UndecodableText` for other bytes, and for other zeros in the text.
    """
    found = _decode_any(data)
    if "\0" not in found.text:
        return found
    text, nuls = drop_nuls(found.text)
    inner = text.count(" ") - found.text.count(" ")
    # A text with many zeros, or with zeros and control characters, is a picture, or is in an unknown encoding.
    if not without_nuls or inner > _MOST_NULS * len(text) or _CONTROLS.search(text.encode("utf-8", "surrogatepass")):
        raise UndecodableText("it holds zero bytes, as no text does")
    return Text(text, found.encoding, nuls)


def drop_nuls(text: str) -> tuple[str, int]:
    """Returns (`text` without its zero characters, the number of zero characters). Zeros inside the text become spaces,
    because they separate words."""
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
    try:  # half a surrogate pair, left by programs that cut a text; no other encoding looks like it
        return Text(_lines(data.decode("utf-8", "surrogatepass")), "utf-8")
    except UnicodeDecodeError:
        pass
    if _OTHER_SCRIPT.search(data) or _CONTROLS.search(data):
        raise UndecodableText(f"it is neither UTF-8 (see {where}) nor UTF-16 nor Windows-1252")
    return _decode(data, "windows-1252")


def _wide_latin(data: bytes) -> Text | None:
    """Decodes bytes as UTF-16 without a mark; None if that does not give mostly Latin letters."""
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
    """Splits an option's value at commas; None gives (). Raises `ConfigError` for an empty or a repeated name."""
    names = () if text is None else tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ConfigError(f"{option} is {text!r}, with an empty name; write names between single commas")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{option} is {text!r}, which has {twice!r} twice; leave one")
    return names


def read_text(path: str | Path, what: str, error: type[Exception] = ConfigError) -> str:
    """Returns the text of a user's file. `what` is what the error calls the file, such as "--prompts".

    Raises `error`, naming the file, why it cannot be read, and the remedy.
    """
    try:
        return decode_text(read_bytes(path)).text
    except UndecodableText as problem:
        remedy = "save it as UTF-8 (iconv -f ENCODING -t UTF-8)"
        raise error(f"{what} {path} cannot be read: {problem}; {remedy}") from None
    except OSError as problem:
        why = problem.strerror or str(problem)
        raise error(f"{what} {path} cannot be read: {why}; give a text file") from None
