"""The libraries of the extra `prepare`: imported with a remedy where one is missing, and named with their versions."""

from __future__ import annotations

import contextlib
import importlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from rfjax.errors import ConfigError

LIBRARIES = ("rfjax", "numpy", "pillow", "torch", "transformers", "diffusers", "array_record")  # in a manifest


def require(module: str, need: str):
    """Imports a module. Raises `ConfigError` with `need`, a clause, and the command that installs what is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{need}: pip install 'rfjax[prepare]' ({error})") from None


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """Versions of the libraries that are installed: another PIL or PyTorch may round differently."""
    found = {}
    for name in libraries:
        with contextlib.suppress(PackageNotFoundError):  # not needed, or rfjax run from its source
            found[name] = version(name)
    return found


def surroundings(device: str) -> dict[str, str]:
    """What a manifest records besides the models: Python, the device and the libraries."""
    return {"python": platform.python_version(), "device": device or "default"} | versions(LIBRARIES)
