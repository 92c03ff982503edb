"""A folder of images numbered by prompt, each with its caption beside it. No torch here.

    FOLDER/00000-0.png    an image of prompt 0
    FOLDER/00000-0.txt    its caption

This layout suits any prompts, because no prompt is part of a file's name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rfjax.files import write_whole


def image_path(folder: str | os.PathLike, index: int, sample: int) -> Path:
    """The path of a prompt's image."""
    return Path(folder) / f"{index:05d}-{sample}.png"


def write(folder: str | os.PathLike, prompts: Sequence[str], images: Iterable[tuple[int, int, bytes]]) -> None:
    """Writes PNGs, given as (prompt index, sample, content), and beside each PNG its prompt as a caption.

    An image that exists is replaced. Raises `RfjaxError` if a file cannot be written.
    """
    for index, sample, png in images:
        path = image_path(folder, index, sample)
        write_whole({path.with_suffix(".txt"): prompts[index] + "\n", path: png})
