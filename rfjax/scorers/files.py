"""Hashes the files that a score depends on: weights, prompts, images. No torch here."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from rfjax.errors import ConfigError

CHUNK = 1 << 22
# Suffixes of the files in a model's folder that decide its output. Others, such as a readme, may change.
SUFFIXES = (".json", ".jinja", ".txt", ".safetensors", ".bin", ".model", ".pth", ".pt", ".npz", ".npy")


def content_hash(path: str | os.PathLike) -> str:
    """Computes the SHA-256 of a file or, for a folder, of the names and hashes of the files directly in it that have
    one of the `SUFFIXES`.

    Raises `ConfigError` if the path cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file() and entry.suffix in SUFFIXES)
        lines = "".join(f"{name} {content_hash(path / name)}\n" for name in names)
        return hashlib.sha256(lines.encode()).hexdigest()
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}; check the path") from None
    return digest.hexdigest()
