"""Runs Mask2Former as mmdet does: finds instances of COCO's 80 classes in an image.

The network is transformers' module. The preprocessing is mmdet's test pipeline and the post-processing mmdet's
`MaskFormerFusionHead`, because GenEval's scores depend on both: transformers' image processor resizes to another size,
and its post-processing has another rule for overlapping masks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image
from torch.nn import functional
from transformers import Mask2FormerForUniversalSegmentation

from rfjax.errors import ConfigError
from rfjax.scorers import mmdet, pretrained
from rfjax.scorers.files import content_hash
from rfjax.scorers.images import opencv_bilinear, pixels
from rfjax.scorers.object_names import OBJECT_NAMES

SHORT, LONG = 800, 1333  # pixels: the shorter side is scaled to SHORT, unless the longer would exceed LONG
DIVISOR = 32  # the input's sides are padded to multiples of this
MEAN = (123.675, 116.28, 103.53)  # of RGB in [0, 255]
STD = (58.395, 57.12, 57.375)
MOST = 100  # instances per image

# OpenMMLab puts the first eight hexadecimal digits of a file's SHA-256 at the end of its name:
# mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth
OFFICIAL_SHA256 = "743b7d99"
SWIN_S = {"embed_dim": 96, "depths": [2, 2, 18, 2], "window_size": 7}


class Instances(NamedTuple):
    """The objects found in an image, unordered: at most `MOST` rows, one for each (query, class) pair.

    Masks may overlap. A box ends one past its mask's last pixel; an empty mask's box is all 0.
    """

    labels: Int[torch.Tensor, " n"]
    scores: Float32[torch.Tensor, " n"]
    boxes: Int[torch.Tensor, "n 4"]
    masks: Bool[torch.Tensor, "n h w"]


@dataclass(frozen=True, eq=False)
class Detector:
    """A Mask2Former on a device. `kind` is the origin of its weights: "official", "hf" or "other"."""

    model: Mask2FormerForUniversalSegmentation
    device: torch.device
    kind: str
    sha256: str  # hash of the weights' files

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[Instances]:
        """Finds the instances of each image. Images whose inputs have the same size are batched."""
        inputs = [network_input(pixels(image)) for image in images]
        found: list[Instances | None] = [None] * len(images)
        by_size: dict[tuple, list[int]] = {}
        for index, (values, _) in enumerate(inputs):
            by_size.setdefault(tuple(values.shape), []).append(index)
        for indices in by_size.values():
            batch = torch.stack([inputs[index][0] for index in indices]).to(self.device)
            output = self.model(pixel_values=batch)
            for place, index in enumerate(indices):
                found[index] = instances(
                    output.class_queries_logits[place],
                    output.masks_queries_logits[place],
                    padded=tuple(batch.shape[-2:]),
                    resized=inputs[index][1],
                    original=(images[index].height, images[index].width),
                )
        return found


def load(path: str | os.PathLike, device: torch.device) -> Detector:
    """Loads the detector of an mmdet checkpoint (a file) or of a transformers folder.

    Raises `ConfigError` if there is neither, or if the network's classes are not COCO's 80.
    """
    path = Path(path)
    if path.is_file():
        model, sha256 = mmdet.load(path), content_hash(path)
        kind = "official" if sha256.startswith(OFFICIAL_SHA256) else "other"
    else:
        loss_alone = ("criterion.empty_weight",)
        model = pretrained.load(Mask2FormerForUniversalSegmentation, path, "Mask2Former", without=loss_alone)
        backbone, sha256 = model.config.backbone_config, content_hash(path)
        found = {name: getattr(backbone, name, None) for name in SWIN_S}
        kind = "hf" if found | {"depths": list(found["depths"] or ())} == SWIN_S else "other"
    labels, wanted = model.config.num_labels, len(OBJECT_NAMES)
    if labels != wanted:
        raise ConfigError(f"{path} has {labels} classes; give an instance segmentation of COCO's {wanted}")
    return Detector(model.eval().to(device), device, kind, sha256)


def resized_to(height: int, width: int) -> tuple[int, int]:
    """Returns the (height, width) to which mmcv scales an image of this size for (1333, 800); the aspect is kept."""
    scale = min(LONG / max(height, width), SHORT / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def network_input(image: UInt8[np.ndarray, "h w 3"]) -> tuple[Float32[torch.Tensor, "3 H W"], tuple[int, int]]:
    """Returns the normalised and padded input, and its (height, width) without padding."""
    size = resized_to(*image.shape[:2])
    values = torch.from_numpy(opencv_bilinear(image, *size)).permute(2, 0, 1).float()
    values = (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    bottom, right = (-side % DIVISOR for side in size)
    return functional.pad(values, (0, right, 0, bottom)), size


def instances(
    class_logits: Float[torch.Tensor, "queries classes_and_none"],
    mask_logits: Float[torch.Tensor, "queries h w"],
    *,
    padded: tuple[int, int],
    resized: tuple[int, int],
    original: tuple[int, int],
) -> Instances:
    """Finds one image's instances in the network's raw logits, as mmdet's `MaskFormerFusionHead` does.

    Masks are scaled bilinearly to the `padded` input, cropped to the `resized` image and scaled to the `original`
    image, each (height, width). The most probable (query, class) pairs are kept, so a query may appear in several
    classes. A mask has the pixels whose logit is above 0. A pair's score is its class's probability times the mean
    probability of the mask's pixels.
    """
    classes = class_logits.shape[-1] - 1
    probabilities = class_logits.float().softmax(-1)[:, :-1].flatten()
    chosen, pairs = probabilities.topk(min(MOST, len(probabilities)), sorted=False)
    queries, place = torch.unique(pairs // classes, return_inverse=True)  # so that each query's mask is scaled once
    logits = mask_logits[queries].float()[:, None]
    logits = functional.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
    logits = logits[..., : resized[0], : resized[1]]
    logits = functional.interpolate(logits, size=original, mode="bilinear", align_corners=False)[:, 0]
    masks = logits > 0
    sums = (logits.sigmoid() * masks).flatten(1).sum(1)
    quality = sums / (masks.flatten(1).sum(1) + 1e-6)
    return Instances(pairs % classes, chosen * quality[place], boxes_of(masks)[place], masks[place])


def boxes_of(masks: Bool[torch.Tensor, "n h w"]) -> Int[torch.Tensor, "n 4"]:
    """Returns [first column, first row, last column + 1, last row + 1] of each mask; zeros for an empty mask."""
    rows, columns = masks.any(2), masks.any(1)
    low = [line.int().argmax(1) for line in (columns, rows)]
    high = [line.shape[1] - line.flip(1).int().argmax(1) for line in (columns, rows)]
    boxes = torch.stack([*low, *high], 1)
    return torch.where(rows.any(1)[:, None], boxes, torch.zeros_like(boxes))
