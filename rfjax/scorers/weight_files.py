"""Fills one of rfjax's networks with the tensors of a file."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

from rfjax.errors import ConfigError
from rfjax.scorers.pretrained import first_line

Network = TypeVar("Network", bound=nn.Module)


def fill(model: Network, path: str | os.PathLike, wanted_file: str, unused: tuple[str, ...] = ()) -> Network:
    """Fills the model with the tensors of a file of PyTorch, read with `weights_only=True`, and returns it.

    A tensor whose name begins with one of `unused` is ignored. `wanted_file` says in errors which file to give. Raises
    `ConfigError`, naming a tensor, if one is missing, unknown or of another shape.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of a TorchScript file, which is refused just after
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(f"cannot read {path} as weights ({first_line(error)}); give {wanted_file}") from None
    wanted = _used(model.state_dict(), unused)
    found = _used(state, unused) if isinstance(state, Mapping) else {}
    wrong = sorted({*wanted} ^ {*found}) or sorted(name for name in wanted if found[name].shape != wanted[name].shape)
    if wrong:
        raise ConfigError(
            f"{path} has {len(wrong)} tensors missing, unknown or of another shape ({wrong[0]}, ...); "
            f"give {wanted_file}"
        )
    model.load_state_dict(found, strict=False)
    return model


def _used(tensors, unused):
    """Selects the tensors that decide the output."""
    return {
        name: value
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor) and not name.startswith(unused) and not name.endswith("num_batches_tracked")
    }
