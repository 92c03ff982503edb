"""The folders of frozen models: their classes, their weight files, and the hashes that identify them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from rfjax.errors import ConfigError
from rfjax.inputs.json_files import read_json

WEIGHTS = r"(model|diffusion_pytorch_model){variant}(-\d+-of-\d+)?\.safetensors"
OF_TOKENIZERS = (".json", ".txt", ".model", ".jinja")


class ModelConfig(TypedDict):
    """The fields of a model's config.json that name its class."""

    _class_name: NotRequired[str | None]
    architectures: NotRequired[list[str] | None]


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder, its class and its weight files, before anything is loaded."""

    part: Path
    model: str
    weights: tuple[Path, ...]

    def facts(self, folder: Path, tokenizer: str | None) -> dict:
        files = [self.part / "config.json", *self.weights]
        if tokenizer:
            beside = sorted(path for path in (folder / tokenizer).iterdir() if path.is_file())
            if folder / tokenizer == self.part:  # the model's own folder may hold much else
                beside = [path for path in beside if path.suffix in OF_TOKENIZERS and path not in files]
            files += beside
        return identity(self.model, folder, files)


def identity(model: str, folder: Path, files: Sequence[Path]) -> dict:
    """Returns the facts that identify a model: its class, the SHA-256 of each of its files, and one hash of all of
    them."""
    hashes = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    together = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    return {"class": model, "sha256": together, "files": hashes}


def find_model(folder: Path, part: str, variant: str) -> ModelFolder:
    """Finds the model in `folder / part`. `variant` is the part between the dots in the names of the weight files, such
    as fp16; "" for none. Raises `ConfigError` if the model has no config.json or no such weights."""
    config = folder / part / "config.json"
    try:
        about = read_json(config, ModelConfig, remedy="fetch the folder again", error=ConfigError)
    except FileNotFoundError:
        raise ConfigError(
            f"{folder / part} is no model's folder, because it has no config.json; fetch it again"
        ) from None
    model = about.get("_class_name") or next(iter(about.get("architectures") or ()), "model of no known class")
    form = re.compile(WEIGHTS.format(variant=re.escape(f".{variant}") if variant else ""))
    weights = tuple(sorted(path for path in (folder / part).iterdir() if form.fullmatch(path.name)))
    if not weights:
        others = sorted(path.name for path in (folder / part).iterdir() if path.suffix in (".safetensors", ".bin"))
        hint = "--models-variant names the part between the dots, and .bin files are not read"
        hint = f"; it has {', '.join(others)}: {hint}" if others else ""
        wanted = f"model.{variant}.safetensors" if variant else "model.safetensors"
        raise ConfigError(f"{folder / part} has no weights: no {wanted} or shards of it{hint}")
    return ModelFolder(folder / part, model, weights)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
