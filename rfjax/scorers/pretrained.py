"""Loads transformers' models from local folders, and refuses folders that lack weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig
from transformers.utils import logging

from rfjax.errors import ConfigError

SAFE = {"local_files_only": True, "trust_remote_code": False}  # nothing is downloaded, no code in a folder is run


def load(kind: type, path: str | os.PathLike, name: str, without: tuple[str, ...] = (), dtype: str = "float32"):
    """Loads a folder's model of class `kind`, in evaluation mode, in `dtype`.

    Downloads nothing, and runs no code in the folder. Errors call the model `name`. If the folder lacks tensors,
    transformers would fill them with random numbers; this function raises `ConfigError`, unless the tensors are in
    `without`.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise ConfigError(f"no {name} at {path}; give a folder with transformers' config.json and weights")
    logging.disable_progress_bar()
    try:
        how = {"dtype": getattr(torch, dtype), "output_loading_info": True, "weights_only": True}
        model, info = kind.from_pretrained(path, **SAFE, **how)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, ImportError) as error:
        raise ConfigError(
            f"cannot load {name} from {path} ({first_line(error)}); check that the folder is whole"
        ) from None
    wrong = sorted({*info["missing_keys"]} - {*without}) + sorted(str(key) for key in info["mismatched_keys"])
    if wrong:
        lacking = f"{len(wrong)} tensors of {name} ({first_names(wrong)})"
        raise ConfigError(f"{path} lacks {lacking}; they would be random numbers: get the folder again")
    return model.eval()


def load_config(path: str | os.PathLike):
    """Loads a folder's configuration. Raises `ConfigError` for one that transformers does not know."""
    try:
        return AutoConfig.from_pretrained(path, **SAFE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} has a config.json of no known kind ({first_line(error)}); give another") from None


def first_names(names: Sequence[str]) -> str:
    """Lists the first three names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, at most 200 characters; its class's name if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
