"""Runs, for GenEval, any detector of COCO's 80 classes that transformers loads as `AutoModelForObjectDetection`.

Such a detector gives boxes and no masks. So an object's mask is its whole box, and its colour is judged with the
background inside the box. The scores are a variant of GenEval whose name contains the detector's name. They never
share a column with the official GenEval.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from jaxtyping import Float
from PIL import Image
from transformers.models.auto import modeling_auto

from rfjax.errors import ConfigError
from rfjax.scorers import mask2former, pretrained
from rfjax.scorers.files import content_hash
from rfjax.scorers.mask2former import MOST, Detector, Instances
from rfjax.scorers.object_names import OBJECT_NAMES

KINDS = modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES  # type in config.json -> class
MASKS = "mask2former"
# What configs call a class -> GenEval's name: COCO's names, and the older ones that RT-DETR's configs have.
OTHER_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
    "doughnut": "donut",
}


@dataclass(frozen=True, eq=False)
class BoxDetector:
    """A detector on a device. `classes` maps its labels to indices in `OBJECT_NAMES`; objects with other labels are
    ignored."""

    model: torch.nn.Module
    processor: object
    device: torch.device
    name: str  # of the folder
    sha256: str  # hash of the folder's files
    classes: Mapping[int, int]
    kind: str = "boxes"

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[Instances]:
        """Finds the objects of each image; returns at most `MOST` objects an image, those of the highest scores. The
        model's own processor scales the images and reads the output."""
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device)
        sides = torch.tensor([(image.height, image.width) for image in images])
        output = self.model(**inputs)
        found = self.processor.post_process_object_detection(output, threshold=0.0, target_sizes=sides)
        return [self._instances(each, image) for each, image in zip(found, images, strict=True)]

    def _instances(self, found, image) -> Instances:
        labels, scores, boxes = (found[name].cpu() for name in ("labels", "scores", "boxes"))
        known = torch.tensor([int(label) in self.classes for label in labels], dtype=torch.bool)
        labels, scores, boxes = labels[known], scores[known].float(), boxes[known]
        best = scores.argsort(descending=True, stable=True)[:MOST]
        places = torch.tensor([self.classes[int(label)] for label in labels[best]], dtype=torch.int64)
        whole = whole_pixels(boxes[best].float(), image.height, image.width)
        masks = torch.zeros((len(best), image.height, image.width), dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, whole.tolist(), strict=True):
            mask[top:bottom, left:right] = True
        return Instances(places, scores[best], whole, masks)


def whole_pixels(boxes: Float[torch.Tensor, "n 4"], height: int, width: int) -> torch.Tensor:
    """Returns each box as [left, top, right, bottom] in whole pixels, cut to the image. Right and bottom are exclusive.

    A returned box contains every pixel that the given box touches, and at least one pixel.
    """
    low, high = boxes[:, :2].floor(), boxes[:, 2:].ceil()
    most = torch.tensor([width, height])
    low = torch.minimum(low.clamp(min=0), most - 1)
    high = torch.maximum(torch.minimum(high, most), low + 1)
    return torch.cat([low, high], 1).long()


def load(path: str | os.PathLike, device: torch.device) -> Detector | BoxDetector:
    """Loads a detector: Mask2Former as `mask2former.load` does, or any detector of boxes from a transformers folder.

    Raises `ConfigError` for a model of another kind, with a list of the kinds, and for a detector whose classes are not
    COCO's.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        return mask2former.load(path, device)
    config = pretrained.load_config(path)
    if config.model_type == MASKS:
        return mask2former.load(path, device)
    if config.model_type not in KINDS:
        known = ", ".join(sorted(KINDS))
        given = f"{path} is a model of the kind {config.model_type}"
        raise ConfigError(f"{given}; --detector takes {MASKS} or a detector of one of the kinds {known}")
    classes = coco_classes(config.id2label, path)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(path, **pretrained.SAFE)
    except Exception as error:  # of many kinds; also if a library is missing
        lack = f"{path} has no image processor that can be loaded: {pretrained.first_line(error)}"
        raise ConfigError(f"{lack}; fetch the model whole, and what it names") from None
    model = pretrained.load(transformers.AutoModelForObjectDetection, path, "the detector")
    return BoxDetector(model.to(device), processor, device, path.absolute().name, content_hash(path), classes)


def coco_classes(names: Mapping[int, str], path: Path) -> dict[int, int]:
    """Returns {label: index in `OBJECT_NAMES`} from the {label: name} of a model's config.

    Raises `ConfigError` if a class of COCO has no label, or has two labels.
    """
    places = {name: place for place, name in enumerate(OBJECT_NAMES)}
    found: dict[int, int] = {}
    for label, name in names.items():
        plain = name.strip().lower().replace("_", " ")
        place = places.get(OTHER_NAMES.get(plain, plain))
        if place is None:
            continue
        if place in found.values():
            raise ConfigError(
                f"{path} has two labels for {OBJECT_NAMES[place]!r}; give a detector of COCO's 80 classes"
            )
        found[int(label)] = place
    lacking = [name for name, place in places.items() if place not in found.values()]
    if lacking:
        said = f"{path} has no label for {len(lacking)} of COCO's 80 classes, {', '.join(lacking[:3])} first"
        raise ConfigError(f"{said}; give a detector of these classes, with their names in id2label")
    return found
