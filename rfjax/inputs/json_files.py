"""Reads JSON and checks that it has the expected shape, since a file may be damaged or another program's.

A shape is a type: `str`, `int`, `float`, `bool`, `None`, `object` (anything), `list[X]`, `dict[str, X]`, `X | Y`,
`Literal[...]`, a TypedDict (gives a dict) or a dataclass (gives its instance). An int passes as a float. A bool is not
a number, and a number must be finite.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from rfjax.errors import RfjaxError
from rfjax.inputs.files import is_absent, read_bytes
from rfjax.inputs.text import UndecodableText, decode_text

DEPTH = 64  # deepest nesting of lists and objects; rfjax itself writes fewer than ten levels
Shape = TypeVar("Shape")


_NO_JSON = (json.JSONDecodeError, UnicodeError, UndecodableText)


class WrongJson(ValueError):
    """Raised for JSON that is damaged or has another shape; says where, what was expected and what was found."""


def read_json(
    path: str | Path,
    shape: type[Shape] | Any = dict[str, object],
    *,
    remedy: str = "restore it, or remove it",
    error: type[Exception] = RfjaxError,
) -> Shape:
    """Returns the content of a JSON file, checked against `shape`.

    Raises `error` if the file cannot be read, is not JSON, is nested too deep or has another shape. The message names
    the file, the key (`starts[3].step`), what was found and the remedy. Raises FileNotFoundError if there is no file:
    only the caller knows what that means.
    """
    try:
        return parse_json(read_bytes(path), shape)
    except (OSError, ValueError) as problem:
        if isinstance(problem, OSError) and is_absent(path):
            raise FileNotFoundError(f"no file at {path}") from None
        why = getattr(problem, "strerror", None) or str(problem)
        raise error(f"{path} cannot be read: {why}; {remedy}") from None


def parse_json(data: str | bytes, shape: type[Shape] | Any = dict[str, object]) -> Shape:
    """Returns the value of a JSON text, checked against `shape`. Raises `WrongJson` for a text that is not JSON, is
    nested too deep or has another shape."""
    try:
        text = data if isinstance(data, str) else decode_text(data).text
        value = json.loads(text)
    except RecursionError:
        raise WrongJson(f"it is nested more than {DEPTH} deep") from None
    except ValueError as problem:  # JSON's own errors, and Python's for an integer of too many digits
        what = f"it is no JSON ({problem})" if isinstance(problem, _NO_JSON) else "it has a number of too many digits"
        what = what if data.strip() else "it is empty"
        raise WrongJson(what) from None
    _check_depth(value)
    return check_json(value, shape)


def check_json(value: object, shape: type[Shape] | Any, where: str = "") -> Shape:
    """Checks a parsed JSON `value` against `shape` and returns the value. Messages call it by `where`, such as `facts`.

    Unknown keys are kept for a TypedDict and dropped for a dataclass; `unknown_keys` lists them. Raises `WrongJson`.
    """
    check = _check_of(shape)
    return check(value, where)


def unknown_keys(value: Mapping[str, object], shape: type) -> list[str]:
    """Lists the keys of an object that `shape`, a TypedDict or a dataclass, does not have."""
    return sorted(set(value) - set(typing.get_type_hints(shape)))


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(DEPTH + 1):
        level = [
            part
            for item in level
            if isinstance(item, (dict, list))
            for part in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise WrongJson(f"it is nested more than {DEPTH} deep")


def _describe(value: object) -> str:
    """Says what a value is, in JSON's terms: "a list", "the text 'abc'"."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = "null" if value is None else repr(value).lower() if isinstance(value, bool) else repr(value)
    short = text if len(text) <= 40 else text[:37] + "..."
    return f"the text {short}" if isinstance(value, str) else short


def _wrong(where: str, expected: str, value: object) -> WrongJson:
    return WrongJson(f"{where or 'its content'} must be {expected} and is {_describe(value)}")


@functools.cache
def _check_of(shape):
    """Returns the function (value, where) → value that checks values of a shape."""
    origin, parts = typing.get_origin(shape), typing.get_args(shape)
    if origin in (typing.Required, typing.NotRequired):
        return _check_of(parts[0])
    if origin in (typing.Union, types.UnionType):
        return _union_check(parts)
    if origin is typing.Literal:
        return _plain_check(
            lambda value: value in parts and type(value) in {type(part) for part in parts}, _name(shape)
        )
    if origin is list or shape is list:
        return _list_check(parts[0] if parts else object)
    if origin is dict or shape is dict:
        return _dict_check(parts[1] if parts else object)
    if typing.is_typeddict(shape) or dataclasses.is_dataclass(shape):
        return _object_check(shape)
    return _plain_check(_PLAIN[shape], _name(shape))


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value) -> bool:
    try:
        return _is_number(value) and math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


_HALF_PAIR = re.compile("[\ud800-\udfff]")  # half a surrogate pair: no encoding can write it
_PLAIN = {
    object: lambda value: True,
    str: lambda value: isinstance(value, str) and not _HALF_PAIR.search(value),
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63,
    float: _is_finite,
    type(None): lambda value: value is None,
}
_NAMES = {
    str: "a text",
    bool: "true or false",
    int: "a whole number below 2^63",
    float: "a finite number",
    type(None): "null",
}


def _name(shape) -> str:
    """A shape in words, for messages."""
    origin, parts = typing.get_origin(shape), typing.get_args(shape)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_name, parts))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, parts))
    if origin is list or shape is list:
        return "a list"
    return _NAMES.get(shape, "an object")


def _plain_check(holds, name):
    def check(value, where):
        if not holds(value):
            raise _wrong(where, name, value)
        return value

    return check


def _union_check(parts):
    checks = [_check_of(part) for part in parts]
    name = " or ".join(map(_name, parts))

    def check(value, where):
        problems = []
        for each in checks:
            try:
                return each(value, where)
            except WrongJson as problem:
                problems.append(problem)
        inner = [problem for problem in problems if str(problem).partition(" must be ")[0] != (where or "its content")]
        raise inner[0] if len(inner) == 1 else _wrong(where, name, value)  # if one key of an object is wrong, name it

    return check


def _list_check(part):
    inner = _check_of(part)

    def check(value, where):
        if not isinstance(value, list):
            raise _wrong(where, "a list", value)
        return [inner(item, f"{where}[{index}]") for index, item in enumerate(value)]

    return check


def _dict_check(part):
    inner = _check_of(part)

    def check(value, where):
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        if part is not object and (half := next(filter(_HALF_PAIR.search, value), None)):
            raise _wrong(f"the key {half!r} in {where or 'its content'}", "whole in Unicode", "half a surrogate pair")
        return {key: inner(item, _join(where, key)) for key, item in value.items()}

    return check


def _object_check(shape):
    hints = typing.get_type_hints(shape, include_extras=True)
    checks = {key: _check_of(hint) for key, hint in hints.items()}
    if typing.is_typeddict(shape):
        marks = {key: typing.get_origin(hint) for key, hint in hints.items()}
        optional = {key for key, mark in marks.items() if mark is typing.NotRequired}
        # `__required_keys__` misses the marks Required and NotRequired if annotations are text (from __future__ ...).
        required = shape.__required_keys__ - optional | {k for k, mark in marks.items() if mark is typing.Required}
    else:
        missing = dataclasses.MISSING
        fields = dataclasses.fields(shape)
        required = {field.name for field in fields if field.default is missing and field.default_factory is missing}

    def check(value, where):
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        lacking = sorted(required - set(value))
        if lacking:
            raise WrongJson(f"{where or 'it'} has no {lacking[0]}")
        known = {key: checks[key](item, _join(where, key)) for key, item in value.items() if key in checks}
        return value | known if typing.is_typeddict(shape) else shape(**known)

    return check


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
