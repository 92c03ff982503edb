"""Where the scorers' networks run, and in which precision."""

from __future__ import annotations

import torch

from rfjax.errors import ConfigError


def prepared(name: str | None) -> torch.device:
    """The device called `name`, or the GPU if there is one, else the CPU; products are of whole float32.

    TensorFloat-32, which torch lets convolutions use, keeps ten bits of a factor: scores near a
    threshold would depend on the GPU's generation. Raises `ConfigError` on a device that is not there.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device is {name!r}, which torch cannot use here ({str(error).splitlines()[0]}); give cpu"
        ) from None
    return device
