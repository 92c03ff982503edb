"""File names of the layouts on disk."""

from __future__ import annotations

from pathlib import Path

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
WEIGHTS = {"diffusers": "diffusion_pytorch_model", "plain": "model"}  # of a folder's files, without the ending
MANIFEST = "rfjax.json"


def manifest_of(source: Path) -> Path:
    """Where the manifest of an exported folder, or of a single file, stands."""
    return source / MANIFEST if source.suffix != ".safetensors" else source.with_suffix(".rfjax.json")


def index_of(source: Path, layout: str) -> Path:
    return source / f"{WEIGHTS[layout]}.safetensors.index.json"


def shard_names(layout: str, count: int) -> list[str]:
    """As Hugging Face's libraries name them."""
    stem = WEIGHTS[layout]
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
