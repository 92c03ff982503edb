"""Checks the rows of users' JSON-lines files. An error names the file, the line, the value and the remedy. No numpy
here."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from pathlib import Path

from rfjax.data.geneval_names import RELATIONS
from rfjax.errors import ConfigError


def json_lines(path) -> Iterator[tuple[str, object]]:
    """Yields (file:line, value) for each line. There must be at least one line, and blank lines may only end the
    file."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}; check the path") from None
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise ConfigError(f"{path} is not UTF-8 text ({where}); save it as UTF-8") from None
    lines = text.rstrip().split("\n")  # JSON texts may hold other line breaks
    if lines == [""]:
        raise ConfigError(f"{path} has no rows; it must have one JSON object a line")
    for number, line in enumerate(lines, 1):
        place = f"{path}:{number}"
        try:
            value = json.loads(line, object_pairs_hook=_object, parse_constant=_constant)
        except RecursionError:
            raise ConfigError(f"{place}: nested too deeply; it must be one JSON object a line") from None
        except ValueError as error:
            raise ConfigError(f"{place}: malformed JSON ({error}); it must be one JSON object a line") from None
        yield place, value


def _object(pairs):
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} given twice")
    return values


def _constant(name):
    raise ValueError(f"{name} is not a number")


def check_keys(place, name, value, keys):
    of = f"{name} " if name else ""
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: {of or 'the row '}is {_short(value)}; it must be an object with {', '.join(keys)}")
    for key in value:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            remedy = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(keys)}"
            raise ConfigError(f"{place}: {of}has the unknown key {key!r}; {remedy}")
    for key, required in keys.items():
        if required and key not in value:
            raise ConfigError(f"{place}: {of}has no {key!r}; add it")


def check_choice(place, name, value, choices):
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        remedy = f"did you mean {near[0]}?" if near else f"it must be one of {', '.join(choices)}"
        raise ConfigError(f"{place}: {name} is {_short(value)}; {remedy}")


def check_text(place, name, value):
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{place}: {name} is {_short(value)}; it must be text")


def check_integer(place, name, value, low, high):
    if type(value) is not int or not low <= value <= high:
        top = f"an integer from {low} to {high}" if math.isfinite(high) else f"an integer of at least {low}"
        allowed = top if high >= low else "left out here, as nothing comes before it"
        raise ConfigError(f"{place}: {name} is {_short(value)}; it must be {allowed}")


def check_row(place, row, keys, tags):
    """Raises `ConfigError` if a row of a metadata file lacks a key or has another than `keys` ({key: required}), or if
    its tag is none of `tags`, its prompt is no text or its `held_out` is not true or false."""
    check_keys(place, "", row, keys)
    check_choice(place, "tag", row["tag"], tags)
    check_text(place, "prompt", row["prompt"])
    if not isinstance(row.get("held_out", False), bool):
        raise ConfigError(f"{place}: held_out is {row['held_out']!r}; it must be true or false")


def check_item(place, name, item, keys):
    """Raises `ConfigError` if an item of a row has other keys than `keys`, no class, or a count below 1."""
    check_keys(place, name, item, keys)
    check_text(place, f"{name} class", item["class"])
    check_integer(place, f"{name} count", item["count"], 1, math.inf)


def check_position(place, name, key, value, index):
    """Raises `ConfigError` if `value`, the position asked for by a row's item number `index`, is not a list of a
    relation and the index of an earlier item."""
    if not isinstance(value, list) or len(value) != 2:
        raise ConfigError(f"{place}: {name} {key} is {value!r}; it must be [relation, target]")
    check_choice(place, f"{name} relation", value[0], RELATIONS)
    check_integer(place, f"{name} target", value[1], 0, index - 1)


def check_boxes(place, boxes):
    if not isinstance(boxes, dict):
        raise ConfigError(f"{place}: detections is {_short(boxes)}; it must map each class to its boxes")
    for name, rows in boxes.items():
        if not isinstance(rows, list):
            raise ConfigError(f"{place}: the boxes of {name!r} are {_short(rows)}; they must be a list")
        for row in rows:
            if not isinstance(row, list) or len(row) != 5 or any(type(number) not in (int, float) for number in row):
                raise ConfigError(f"{place}: a box of {name!r} is {_short(row)}; it must be [x1, y1, x2, y2, score]")


def check_colors(place, colors, known):
    if not isinstance(colors, dict):
        raise ConfigError(f"{place}: colors is {_short(colors)}; it must map each class to a colour per box")
    for name, values in colors.items():
        if not isinstance(values, list):
            raise ConfigError(f"{place}: the colors of {name!r} are {_short(values)}; they must be a list")
        for value in values:
            check_text(place, f"a color of {name!r}", value)
            meant = value.strip().lower()
            if value not in known and meant in known:  # it would match no prompt
                raise ConfigError(f"{place}: a color of {name!r} is {value!r}; did you mean {meant!r}?")


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
