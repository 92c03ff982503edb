"""GenEval's zero-shot classifier of an object's colour, by CLIP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Real
from PIL import Image

from rfjax.data.geneval_names import COLORS
from rfjax.scorers.clip import Clip, unit
from rfjax.scorers.images import clip_transform

TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
BACKGROUND = "#999"
BATCH = 16


class ColorClassifier:
    """Classifies each object's colour as one of `COLORS`. It embeds the texts of a class only once."""

    def __init__(self, clip: Clip):
        self.clip = clip
        self._classes: dict[str, torch.Tensor] = {}

    def weights(self, name: str) -> torch.Tensor:
        """Returns a unit vector for each colour, [colours, d], for the class `name`: the mean of the unit embeddings of
        the colour's three texts, scaled to length 1."""
        if name not in self._classes:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            embedded = unit(self.clip.embed_texts(texts)).unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._classes[name] = unit(embedded.mean(1))
        return self._classes[name]

    @torch.inference_mode()
    def __call__(
        self,
        image: Image.Image,
        boxes: Real[np.ndarray, "n values"],
        masks: Sequence[Bool[np.ndarray, "h w"]],
        name: str,
    ) -> tuple[str, ...]:
        """Returns the colour of each object of the class `name`. An object is embedded on a grey background, cropped to
        its box. The rows of `boxes` begin with x1, y1, x2, y2, in pixels."""
        cuts = [cut_out(image, box, mask) for box, mask in zip(boxes, masks, strict=True)]
        crops = [clip_transform(cut, self.clip.size) for cut in cuts]
        found = []
        for start in range(0, len(crops), BATCH):
            embedded = unit(self.clip.embed_images(torch.stack(crops[start : start + BATCH])))
            found += (embedded @ self.weights(name).T).argmax(1).tolist()
        return tuple(COLORS[index] for index in found)


def cut_out(image: Image.Image, box: Real[np.ndarray, " values"], mask: Bool[np.ndarray, "h w"]) -> Image.Image:
    """Returns the image where the mask is true, grey elsewhere, cropped to the box [x1, y1, x2, y2)."""
    ground = Image.new("RGB", image.size, BACKGROUND)
    shape = Image.fromarray(mask.astype(np.uint8) * 255)
    left, top, right, bottom = (int(side) for side in box[:4])
    return Image.composite(image.convert("RGB"), ground, shape).crop((left, top, right, bottom))
