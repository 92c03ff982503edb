"""File names of exported checkpoints."""

from __future__ import annotations

from pathlib import Path

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
WEIGHTS = {"diffusers": "diffusion_pytorch_model", "plain": "model"}  # stems of a folder's files
MANIFEST = "rfjax.json"


def manifest_of(source: Path) -> Path:
    """The manifest's path for an exported folder or a single file."""
    return source.with_suffix(".rfjax.json") if source.suffix in SAFETENSORS else source / MANIFEST


def index_of(source: Path, layout: str) -> Path:
    return source / f"{WEIGHTS[layout]}.safetensors.index.json"


def shard_names(layout: str, count: int) -> list[str]:
    """The names of `count` files of weights, as Hugging Face's libraries name them."""
    stem = WEIGHTS[layout]
    parts = [f"-{i + 1:05d}-of-{count:05d}" for i in range(count)] if count > 1 else [""]
    return [f"{stem}{part}.safetensors" for part in parts]
