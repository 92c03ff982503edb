"""Computes CLIP's embeddings of images and texts, with transformers and the weights of a local folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32
from transformers import CLIPModel, CLIPTokenizer

from rfjax.errors import ConfigError
from rfjax.scorers import pretrained
from rfjax.scorers.files import content_hash

# name of an image tower -> (width, layers, patch, input size)
TOWERS = {
    "ViT-B/32": (768, 12, 32, 224),
    "ViT-L/14": (1024, 24, 14, 224),
    "ViT-L/14@336": (1024, 24, 14, 336),
    "ViT-H/14": (1280, 32, 14, 224),
}
# activation -> (the models that need it, the remedy if a folder has another activation)
ACTIVATIONS = {
    "quick_gelu": ("OpenAI's CLIP", "take the folder of openai/clip-vit-*"),
    "gelu": ("PickScore's CLIP", "take the folder of yuvalkirstain/PickScore_v1, with its tokenizer"),
}


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP model on a device. `name` is the name of its image tower (such as ViT-L/14) if that is known, else
    "other"."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    device: torch.device
    name: str
    sha256: str  # hash of the folder's files

    @property
    def size(self) -> int:
        """The input's side in pixels."""
        return self.model.config.vision_config.image_size

    @torch.inference_mode()
    def embed_images(self, inputs: Float32[torch.Tensor, "n 3 size size"]) -> Float32[torch.Tensor, "n d"]:
        """Returns projected embeddings, not normalised."""
        pooled = self.model.vision_model(pixel_values=inputs.to(self.device)).pooler_output
        return self.model.visual_projection(pooled).float()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float32[torch.Tensor, "n d"]:
        """Returns projected embeddings, not normalised. Cuts a text to CLIP's 77 tokens, and keeps its end token."""
        lengths = {"max_length": self.model.config.text_config.max_position_embeddings, "padding": "max_length"}
        tokens = self.tokenizer(list(texts), truncation=True, return_tensors="pt", **lengths)
        pooled = self.model.text_model(input_ids=tokens["input_ids"].to(self.device)).pooler_output
        return self.model.text_projection(pooled).float()


def load(path: str | os.PathLike, device: torch.device, activation: str = "quick_gelu") -> Clip:
    """Loads the CLIP of a transformers folder (config.json, weights, tokenizer), in float32.

    Raises `ConfigError` if the folder holds no CLIP, or if its config names another activation than `activation`.
    OpenAI's weights were trained with QuickGELU, LAION's and PickScore's with `gelu`. If the config names the wrong
    activation, the model runs, but gives wrong embeddings.
    """
    path = Path(path)
    model = pretrained.load(CLIPModel, path, "CLIP")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(path, **pretrained.SAFE)
    except (OSError, ValueError, TypeError) as error:
        reason = pretrained.first_line(error)
        raise ConfigError(
            f"cannot load CLIP's tokenizer from {path} ({reason}); check that the folder is whole"
        ) from None
    for tower in ("text_config", "vision_config"):
        found = getattr(model.config, tower).hidden_act
        if found != activation:
            needs, remedy = ACTIVATIONS[activation]
            raise ConfigError(f"{path} has {tower}.hidden_act {found!r}, and {needs} needs {activation!r}; {remedy}")
    vision = model.config.vision_config
    shape = (vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size)
    name = next((name for name, tower in TOWERS.items() if tower == shape), "other")
    return Clip(model.to(device), tokenizer, device, name, content_hash(path))


def unit(embeddings: Float32[torch.Tensor, "*n d"]) -> Float32[torch.Tensor, "*n d"]:
    """Scales embeddings to length 1."""
    return embeddings / embeddings.norm(dim=-1, keepdim=True)
