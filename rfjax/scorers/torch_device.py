"""Chooses the device and the precision of the scorers' networks."""

from __future__ import annotations

import torch

from rfjax.data.prepared.place import choose_device


def choose(name: str | None) -> torch.device:
    """Returns the device called `name`, by default a GPU if there is one, else the CPU. Switches TensorFloat-32 off.

    TensorFloat-32, torch's default for convolutions, keeps ten bits of each factor, so scores near a threshold would
    depend on the GPU's generation. Raises `ConfigError` for a device that does not exist.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return choose_device(torch, name)
