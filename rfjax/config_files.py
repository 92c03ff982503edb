"""Reads a user's Python files (configs, and sites for `rfjax launch`) and a run's config.json. No JAX here.

A mistake in a Python file is reported with the file, its line and the error, never as a traceback of rfjax.
"""

from __future__ import annotations

import os
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rfjax.config import Config, apply_overrides, from_dict
from rfjax.config_rules import check_is_read
from rfjax.errors import ConfigError
from rfjax.inputs.files import read_bytes
from rfjax.inputs.json_files import read_json
from rfjax.inputs.paths import local_path, local_text
from rfjax.shipped import find_config, find_site


def load_file(file: str | Path, kind: str = "config") -> types.ModuleType:
    """Runs a user's Python file and returns the file's module. A config file must have the function `get_config()`.
    With `kind` "site" the file is a site of `rfjax launch`, which must have `get_site()`.

    `file` is a `Path`, or a text: a path or the name of a shipped file (`shipped.find_config`). Raises `ConfigError`
    for a file that fails or lacks the function.
    """
    find = {"config": find_config, "site": find_site}[kind]
    text = local_text(file, f"the {kind} file")
    path = find(text if isinstance(file, str) else os.path.join(".", text))  # a Path is never a name
    if path.suffix == ".json":
        raise ConfigError(f"{path} is JSON; give the Python file with get_{kind}()")
    module = types.ModuleType(f"rfjax_{kind}_{path.stem}")
    module.__file__ = str(path)
    try:  # compiled here, so that neither a stored .pyc is run nor one is left in the user's folder
        exec(compile(read_bytes(path), path, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        raise ConfigError(_failed(f"{kind} file {path}", path, error)) from error
    if not callable(getattr(module, f"get_{kind}", None)):
        raise ConfigError(f"{kind} file {path} has no get_{kind}(); it must return a ConfigDict")
    return module


def load(path: str | Path, overrides: Mapping[str, object] | None = None) -> Config:
    """Returns the checked config of `path` with dotted overrides applied. `path` is a config file, the name of a
    shipped config, or a run's config.json."""
    if str(path).endswith(".json"):
        values = _read_json(local_path(path, "the config file"))
    else:
        values = returned_config(load_file(path), path)
    config = apply_overrides(from_dict(values), overrides or {})
    if not str(path).endswith(".json"):  # a config.json gives every field, so nothing tells which a user chose
        check_file(values, [config], overrides or {})
    return config


def check_file(values: Mapping | ConfigDict, configs: Sequence[Config], overrides: Mapping[str, object]) -> None:
    """Checks the fields of `train` that `get_config()` returned in `values`. `configs` are all configs made from the
    file. Raises `ConfigError` for a field that only some learning-rate schedules read, if none of `configs` has such a
    schedule. Nothing is checked if the command line chooses the schedule."""
    if "train.schedule" not in overrides:
        check_is_read((f"train.{name}" for name in values.get("train", {})), (c.train.schedule for c in configs))


def _read_json(path: Path) -> dict:
    remedy = "give the config.json of a run, or a Python file with get_config()"
    try:
        return read_json(path, error=ConfigError, remedy=remedy)
    except FileNotFoundError as error:
        raise ConfigError(f"{error}; {remedy}") from None


def call(module: types.ModuleType, function: str, path: str | Path):
    """Calls a function of a config file's module and returns its result. An exception inside the function is raised as
    a `ConfigError`."""
    try:
        return getattr(module, function)()
    except (Exception, SystemExit) as error:
        raise ConfigError(_failed(f"{function}() of {path}", module.__file__, error)) from error


def returned_config(module: types.ModuleType, path: str | Path) -> Mapping | ConfigDict:
    """What a config file's `get_config()` returns. Raises `ConfigError` for anything but a mapping."""
    values = call(module, "get_config", path)
    if not isinstance(values, (Mapping, ConfigDict)):
        raise ConfigError(f"get_config() of {path} returned {values!r}; it must return a ConfigDict")
    return values


def _failed(what: str, path: str | Path, error: BaseException) -> str:
    """The message for an error inside a user's Python file: the line of the file, and the error in one line."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.lineno:
        lines, text = [error.lineno], error.msg
    else:
        text = str(error) if not isinstance(error, SystemExit) else f"it ends the program ({error.code})"
    place = f" in line {lines[-1]}" if lines else ""
    if not lines and isinstance(error, SyntaxError):
        text += " (is it a Python file, saved as UTF-8?)"
    return f"{what} failed{place}: {type(error).__name__}: {' '.join(text.split())[:400]}"
