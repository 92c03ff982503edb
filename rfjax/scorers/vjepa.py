"""Computes the features of JEDi's distance, by V-JEPA 2 with its attentive probe, from a local transformers folder.

JEDi (arXiv 2410.05203) takes the output of the attentive pooler of V-JEPA ViT-H/16, whose probe was trained on
Something-Something v2. transformers has V-JEPA 2 in place of V-JEPA. The pooler of V-JEPA 2 is deeper: three layers of
self-attention come before the cross-attention. The probe in `MODELS` was trained on the same data as JEDi's; probes of
V-JEPA 2 that were trained on other data, such as Diving48, are published, too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from transformers import VJEPA2ForVideoClassification

from rfjax.errors import ConfigError
from rfjax.scorers import pretrained
from rfjax.scorers.files import content_hash

# name -> (hidden size, layers, patch, tubelet, frames of a clip in training, input size, classes)
MODELS = {"vjepa2-vitl-fpc16-256-ssv2": (1024, 24, 16, 2, 16, 256, 174)}


@dataclass(frozen=True, eq=False)
class Loaded:
    """The network on a device. `name` is a key of `MODELS`, or "other"."""

    model: VJEPA2ForVideoClassification
    device: torch.device
    name: str
    sha256: str  # hash of the folder's files

    @property
    def size(self) -> int:
        """The input's side in pixels."""
        return self.model.config.crop_size

    @torch.inference_mode()
    def embed(self, inputs: Float32[torch.Tensor, "n 3 frames size size"]) -> Float32[torch.Tensor, "n d"]:
        """Returns the pooler's outputs."""
        videos = inputs.to(self.device).movedim(1, 2)  # transformers has the frames first
        return self.model.pooler(self.model.vjepa2(videos, skip_predictor=True).last_hidden_state)

    def check_frames(self, frames: int) -> None:
        """Raises `ConfigError` for clips whose last frames the network would cut off."""
        tubelet = self.model.config.tubelet_size
        if frames % tubelet:
            raise ConfigError(
                f"the clips have {frames} frames, and V-JEPA 2 takes {tubelet} at a time; give a --frames that "
                f"{tubelet} divides"
            )


def load(path: str | os.PathLike, device: torch.device) -> Loaded:
    """Loads the V-JEPA 2 of a transformers folder with its probe, in float32. Raises `ConfigError` if there is none."""
    model = pretrained.load(VJEPA2ForVideoClassification, path, "V-JEPA 2 with its probe")
    c = model.config
    sizes = (c.hidden_size, c.num_hidden_layers, c.patch_size, c.tubelet_size)
    shape = (*sizes, c.frames_per_clip, c.crop_size, c.num_labels)
    name = next((name for name, known in MODELS.items() if known == shape), "other")
    return Loaded(model.to(device), device, name, content_hash(path))
