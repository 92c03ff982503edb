"""Converts configs, which are nested frozen dataclasses, to and from nested dicts and dotted keys.

It works for any config: the arguments `cls` and `root` are the dataclass of a whole config, such as
`rfjax.config.Config`. If that class has an attribute `OWNER`, messages about unknown keys name the owner. No JAX here.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rfjax.errors import ConfigError
from rfjax.inputs.typed_values import convert_value, parse_value

# Metadata of a field that `written` leaves out at its default.
WRITTEN_WHERE_SET = {"written": "where set"}


def build(cls: type, values: Mapping | ConfigDict) -> Any:
    """Builds the dataclass `cls` from a nested mapping, each value converted to the type of its field.

    Raises `ConfigError` for an unknown key, with the nearest valid key, and for a value of another type.
    """
    return _build(cls, values, "", cls)


def _build(cls, values, prefix, root):
    values = values.to_dict() if hasattr(values, "to_dict") else values
    if not isinstance(values, Mapping):
        what = f"config.{prefix.rstrip('.')}" if prefix else "the config"
        raise ConfigError(f"{what} is {values!r}; it must be a section with fields")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ConfigError(_unknown(root, prefix + key))
    arguments = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]):
            arguments[key] = _build(hints[key], value, f"{prefix}{key}.", root)
        else:
            arguments[key] = convert_value(hints[key], value, f"config.{prefix}{key}")
    return cls(**arguments)


def written(config: Any) -> dict:
    """Returns a config as a nested dict of JSON values, without `WRITTEN_WHERE_SET` fields at their defaults."""
    return json.loads(json.dumps(_written(config)))


def _written(section) -> dict:
    pairs = ((field, getattr(section, field.name)) for field in dataclasses.fields(section))
    return {
        field.name: _written(value) if dataclasses.is_dataclass(value) else value
        for field, value in pairs
        if field.metadata != WRITTEN_WHERE_SET or value != field.default
    }


def flatten(config: Any) -> dict[str, object]:
    """Returns {dotted key: JSON value} of all fields of a config."""
    return flatten_nested(json.loads(json.dumps(dataclasses.asdict(config))))


def flatten_nested(nested: Mapping, prefix: str = "") -> dict[str, object]:
    """Returns {dotted key: value} of a config's nested dict; each key begins with `prefix`."""
    flat = {}
    for key, value in nested.items():
        flat |= flatten_nested(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def annotation_of(root: type, key: str) -> Any:
    """Returns the type of the field that a dotted key names. Raises `ConfigError` if the key names no field, or names a
    section."""
    cls = root
    for part in key.split("."):
        hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        if part not in hints:
            raise ConfigError(_unknown(root, key))
        cls = hints[part]
    if dataclasses.is_dataclass(cls):
        fields = ", ".join(typing.get_type_hints(cls))
        raise ConfigError(f"config.{key} is a section; name one of its fields: {fields}")
    return cls


def with_overrides(root: type, nested: dict, overrides: Mapping[str, object]) -> dict:
    """Replaces the values of dotted keys in `nested`, the nested dict of a config, and returns `nested`. A text is
    parsed by its field's type.

    Raises `ConfigError` as `annotation_of` does, and for a text that is not a value of the type.
    """
    for key, value in overrides.items():
        annotation = annotation_of(root, key)
        *names, last = key.split(".")
        target = nested
        for name in names:
            target = target.setdefault(name, {})  # a section at its defaults may be left out
        target[last] = parse_value(annotation, value, f"config.{key}") if isinstance(value, str) else value
    return nested


def _unknown(root, key):
    keys = list(flatten(root()))
    near = difflib.get_close_matches(key, keys, 1, 0.5)
    if not near:  # a right name in the wrong section
        leaves = {other.rsplit(".", 1)[-1]: other for other in reversed(keys)}  # of equal names the first counts
        near = [leaves[leaf] for leaf in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, 1, 0.6)]
    hint = f"; did you mean config.{near[0]}?" if near else f"; the fields are: {', '.join(keys)}"
    return f"unknown config key config.{key}{getattr(root, 'OWNER', '')}{hint}"
