"""File names of exported checkpoints."""

from __future__ import annotations

from pathlib import Path

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
WEIGHTS = {"diffusers": "diffusion_pytorch_model", "plain": "model"}  # layout -> stem of the weights' file names
MANIFEST = "rfjax.json"


def manifest_of(source: Path) -> Path:
    """Returns the path of the manifest of an exported folder or file."""
    return source.with_suffix(".rfjax.json") if source.suffix in SAFETENSORS else source / MANIFEST


def index_of(source: Path, layout: str) -> Path:
    return source / f"{WEIGHTS[layout]}.safetensors.index.json"


def shard_names(layout: str, count: int) -> list[str]:
    """Returns the names of `count` files of weights, as in Hugging Face's libraries."""
    stem = WEIGHTS[layout]
    parts = [f"-{i + 1:05d}-of-{count:05d}" for i in range(count)] if count > 1 else [""]
    return [f"{stem}{part}.safetensors" for part in parts]
