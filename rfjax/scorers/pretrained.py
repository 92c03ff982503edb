"""Models of transformers from local folders, whole or refused."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers.utils import logging

from rfjax.errors import ConfigError

LISTED = 3


def load(kind: type, path: str | os.PathLike, name: str, without: tuple[str, ...] = ()):
    """The model of class `kind` in a folder, for evaluation, in float32; nothing is downloaded.

    `name` is what errors call it. transformers fills tensors that a folder lacks with random numbers: here that is
    refused, but for those called `without`. Raises `ConfigError`.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise ConfigError(f"no {name} at {path}; give a folder with transformers' config.json and weights")
    logging.disable_progress_bar()
    try:
        model, told = kind.from_pretrained(path, local_files_only=True, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ConfigError(f"cannot load {name} from {path} ({first_line(error)}); is the folder whole?") from None
    wrong = sorted({*told["missing_keys"]} - {*without}) + sorted(str(key) for key in told["mismatched_keys"])
    if wrong:
        listed = ", ".join(wrong[:LISTED]) + (", ..." if len(wrong) > LISTED else "")
        raise ConfigError(
            f"{path} lacks {len(wrong)} tensors of {name} ({listed}); they would be random numbers: get the "
            "folder again"
        )
    return model.eval()


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
