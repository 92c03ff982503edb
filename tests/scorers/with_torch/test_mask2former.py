"""Mask2Former as mmdet runs it: the input, and instances from raw logits."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import tiny_scorers
from rfjax.errors import ConfigError
from rfjax.scorers import mask2former


def bilinear(values, height, width, every=1):
    """Bilinear at half-pixel centres, one output pixel after another."""
    rows, columns = values.shape
    out = np.zeros((height, width))
    for i in range(0, height, every):
        y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
        top = int(y)
        below = min(top + 1, rows - 1)
        for j in range(0, width, every):
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            left = int(x)
            right = min(left + 1, columns - 1)
            upper = values[top, left] * (1 - (x - left)) + values[top, right] * (x - left)
            lower = values[below, left] * (1 - (x - left)) + values[below, right] * (x - left)
            out[i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return out


def formula(class_logits, mask_logits, padded, resized, original, most=100):
    """{(query, class): (score, box, mask)} by the published rule, pixel by pixel, in float64."""
    queries, width = class_logits.shape
    pairs = []
    for query in range(queries):
        exponentials = [math.exp(value - class_logits[query].max()) for value in class_logits[query]]
        pairs += [(exponentials[label] / sum(exponentials), query, label) for label in range(width - 1)]
    pairs.sort(reverse=True)
    found = {}
    for probability, query, label in pairs[:most]:
        logits = bilinear(mask_logits[query], *padded)[: resized[0], : resized[1]]
        logits = bilinear(logits, *original)
        inside = [(i, j) for i in range(original[0]) for j in range(original[1]) if logits[i, j] > 0]
        mean = sum(1 / (1 + math.exp(-logits[i, j])) for i, j in inside) / (len(inside) + 1e-6)
        box = [0, 0, 0, 0]
        if inside:
            rows, columns = [i for i, _ in inside], [j for _, j in inside]
            box = [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
        found[query, label] = probability * mean, box, logits > 0
    return found


@pytest.mark.parametrize("classes, queries", [(80, 3), (4, 9)])
def test_instances_are_mmdets(classes, queries):
    """Scores to 1e-5, boxes exactly, masks pixel by pixel. Catches a softmax that drops the wrong class, a
    limit per query instead of over pairs, masks scaled once instead of twice, padding that is kept, a box without
    the + 1, and the mean of the sigmoid taken over the box."""
    generator = np.random.default_rng(classes)
    class_logits = generator.normal(size=(queries, classes + 1)).astype(np.float32) * 2
    masks = generator.normal(size=(queries, 6, 8)).astype(np.float32) * 3 - 1
    masks[-1] = -1.0  # nowhere
    masks[0, :, :] = -1.0
    masks[0, 2, 3] = 9.0  # a small object
    padded, resized, original = (24, 32), (21, 32), (17, 26)
    found = mask2former.instances(
        torch.from_numpy(class_logits), torch.from_numpy(masks), padded=padded, resized=resized, original=original
    )
    wanted = formula(class_logits.astype(float), masks.astype(float), padded, resized, original)
    assert len(found.labels) == len(wanted) == min(100, classes * queries)
    remaining = dict(wanted)
    for label, score, box, mask in zip(*found, strict=True):
        near = min(remaining, key=lambda pair: abs(remaining[pair][0] - score) + (pair[1] != label) * 9)
        expected_score, expected_box, expected_mask = remaining.pop(near)
        assert near[1] == label
        assert abs(expected_score - float(score)) < 1e-5
        assert box.tolist() == expected_box
        assert (mask.numpy() == expected_mask).all()
    assert any(value[1] == [0, 0, 0, 0] for value in wanted.values())


def test_one_query_may_be_of_several_classes_and_masks_overlap():
    """Catches transformers' own rule, which gives each pixel to one object."""
    class_logits = torch.tensor([[2.0, 1.9, -4.0], [2.0, -4.0, -4.0]])
    found = mask2former.instances(class_logits, torch.ones(2, 4, 4), padded=(8, 8), resized=(8, 8), original=(8, 8))
    strong = found.scores > 0.2
    assert sorted(found.labels[strong].tolist()) == [0, 0, 1]
    assert found.masks[strong].all()


@pytest.mark.parametrize(
    "original, resized, padded",
    [
        ((512, 512), (800, 800), (800, 800)),
        ((480, 640), (800, 1067), (800, 1088)),
        ((300, 1200), (333, 1333), (352, 1344)),
    ],
)
def test_input_sizes(original, resized, padded):
    """By hand: 800 on the short side, at most 1333 on the long one, rounded half up, padded to multiples of 32."""
    values, size = mask2former.network_input(np.zeros((*original, 3), np.uint8))
    assert size == resized and tuple(values.shape) == (3, *padded)
    black = [-123.675 / 58.395, -116.28 / 57.12, -103.53 / 57.375]
    assert values[:, 0, 0].tolist() == pytest.approx(black)
    if padded != resized:
        assert values[:, -1, -1].tolist() == [0, 0, 0]


def test_input_is_resized_bilinearly_in_rgb():
    """Within a level of the formula, which OpenCV rounds in its own way (test_scorer_images.py has its very
    levels). Catches corners aligned, antialiasing, and channels in another order."""
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    values, (height, width) = mask2former.network_input(image)
    for channel, (mean, std) in enumerate(zip(mask2former.MEAN, mask2former.STD, strict=True)):
        wanted = bilinear(image[..., channel].astype(float), height, width, every=40)[::40, ::40]
        found = values[channel, :height, :width][::40, ::40].numpy() * std + mean
        assert np.abs(found - wanted).max() <= 1.01


def test_a_batch_is_its_images(detector_folder):
    """Images of two sizes, mixed. Catches an image that gets another's instances, and padding by a batch's largest."""
    detector = mask2former.load(detector_folder, torch.device("cpu"))
    generator = np.random.default_rng(2)
    sizes = [(40, 40), (40, 60), (40, 40)]
    images = [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    together = detector(images)
    for image, found in zip(images, together, strict=True):
        assert found.masks.shape[1:] == (image.height, image.width)
    alone = detector(images[2:])[0]
    assert torch.allclose(together[2].scores.sort().values, alone.scores.sort().values, atol=1e-5)
    assert not torch.allclose(together[0].scores.sort().values, alone.scores.sort().values, atol=1e-4)


def test_a_detector_of_other_classes_and_a_lacking_one_are_refused(tmp_path, detector_folder):
    """Catches 133 classes of a panoptic model scored as COCO's 80, and random numbers in place of weights."""
    tiny_scorers.mask2former(classes=7).save_pretrained(tmp_path / "seven")
    with pytest.raises(ConfigError, match="7 classes"):
        mask2former.load(tmp_path / "seven", torch.device("cpu"))
    with pytest.raises(ConfigError, match="no Mask2Former at"):
        mask2former.load(tmp_path, torch.device("cpu"))
    model = tiny_scorers.mask2former()
    state = model.state_dict()
    del state["class_predictor.weight"]
    model.save_pretrained(tmp_path / "lacking", state_dict=state)
    with pytest.raises(ConfigError, match=r"lacks 1 tensors of Mask2Former \(class_predictor.weight\)"):
        mask2former.load(tmp_path / "lacking", torch.device("cpu"))
    assert mask2former.load(detector_folder, torch.device("cpu")).kind == "other"  # not Swin-S
