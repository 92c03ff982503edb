"""Values of typed fields: checked against a type annotation, or read from a command line's text.

The types are those of a config's fields: int, float, bool, str, tuples of int or of str, and each of these or None.
"""

from __future__ import annotations

import ast
import contextlib
import math
import types
import typing

from rfjax.errors import ConfigError


def convert_value(annotation: object, value: object, field: str) -> object:
    """Returns `value` as the annotated type: an int may become a float, and a list a tuple. Raises `ConfigError`,
    naming the field, for a value of any other type, and for a number that is not finite."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return convert_value(next(a for a in args if a is not type(None)), value, field)
    if origin is tuple:
        if isinstance(value, (list, tuple)) and all(
            isinstance(item, args[0]) and not isinstance(item, bool) for item in value
        ):
            return tuple(value)
    elif annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond the largest float
            if math.isfinite(value):
                return float(value)
    elif annotation is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif annotation in (bool, str) and isinstance(value, annotation):
        return value
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:40]}... ({len(shown)} characters)"
    raise ConfigError(f"{field} is {shown}; it must be {_describe(annotation)}")


def parse_value(annotation: object, text: str, field: str) -> object:
    """Parses a text of the command line as a value of the annotated type, and returns the value. Raises `ConfigError`,
    naming the field, for a text that cannot be parsed. The value is not checked: `convert_value` does that."""
    if annotation is str:
        return text
    if annotation == tuple[str, ...]:
        parts = tuple(part.strip(" '\"") for part in text.strip("()[] ").split(",") if part.strip(" '\""))
        if not parts and not text.strip("() []") == "":
            raise ConfigError(f"{field} is {text!r}, which names nothing; write () for an empty list")
        return parts
    literal = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
    if annotation == tuple[int, ...]:  # the texts 16,24 and 16 are lists, too
        literal = f"({text.strip('()[] ').rstrip(',')},)" if text.strip("()[] ,") else "()"
    try:
        return ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        raise ConfigError(f"{field} is {text!r}; it must be {_describe(annotation)}") from None


def _describe(annotation):
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else _describe(a) for a in typing.get_args(annotation))
    names = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}
    return names.get(annotation, "a list of integers" if annotation == tuple[int, ...] else "a list of texts")
