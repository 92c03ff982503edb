"""Imports libraries of rfjax's extras, or says how to install them; lists the versions of libraries."""

from __future__ import annotations

import contextlib
import importlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from rfjax.errors import ConfigError

LIBRARIES = ("rfjax", "numpy", "pillow", "torch", "transformers", "diffusers", "array_record")  # listed in manifests


def require(module: str, need: str, extra: str = "prepare"):
    """Imports and returns a module. If it is missing, raises `ConfigError`, whose message has the clause `need` and the
    command that installs rfjax's extra `extra`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{need}: pip install 'rfjax[{extra}]' ({error})") from None


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """Returns {library: version} of those `libraries` that are installed. They are recorded because another version of
    PIL or PyTorch may round differently."""
    found = {}
    for name in libraries:
        with contextlib.suppress(PackageNotFoundError):  # not needed, or rfjax run from its source
            found[name] = version(name)
    return found


def surroundings(device: str, more: Sequence[str] = ()) -> dict[str, str]:
    """Returns what a manifest records besides the models: Python's version, the device, and the versions of `LIBRARIES`
    and of the libraries in `more`."""
    return {"python": platform.python_version(), "device": device or "default"} | versions((*LIBRARIES, *more))
