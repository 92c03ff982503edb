"""FID's Inception network: TensorFlow's `inception-2015-12-05`. Its last pooling gives FID's 2048 features.

The tensors have torchvision's names, as in the commonly distributed port, `pt_inception-2015-12-05-6726825d.pth`.
The network differs from torchvision's Inception v3 in its pooling: averages leave the padding out, and the last block
takes a maximum, as in the published TensorFlow graph.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import nn
from torch.nn import functional

from rfjax.scorers.files import content_hash
from rfjax.scorers.weight_files import fill

FILE = "pt_inception-2015-12-05-6726825d.pth"
OFFICIAL_SHA256 = "6726825d"  # the first digits, which are also in the file's name
UNUSED = ("fc.weight", "fc.bias", "AuxLogits")  # tensors that the features do not depend on

# Kernel sizes (height, width).
ONE, THREE, FIVE, WIDE, HIGH = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels: int, kernel=ONE, stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x):
        return functional.relu(self.bn(self.conv(x)))


def average(x):
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def maximum(x):
    return functional.max_pool2d(x, 3, stride=1, padding=1)


def halve(x):
    return functional.max_pool2d(x, 3, stride=2)


class Mixed(nn.Module):
    """A block of parallel branches. Their outputs are concatenated along the channels.

    `branches` maps a branch's name to its convolutions in order, each (channels, kernel). In place of a convolution
    there may be a list of two: both take the same input, and their outputs are concatenated. The branch `branch_pool`
    begins with `pooling`. Sizes are kept, unless `pooling` is `halve`: then the last convolution of each branch has
    stride 2 and no padding. A convolution is named after its branch, plus `_1`, `_2`, ... if the branch has several,
    plus `a` or `b` in a list.
    """

    def __init__(self, channels_in: int, branches: Mapping[str, list], pooling):
        super().__init__()
        self.pooling, self.routes = pooling, {}
        for branch, places in branches.items():
            before, route = channels_in, []
            for number, place in enumerate(places, 1):
                name = branch if len(places) == 1 else f"{branch}_{number}"
                layers = {name: place}
                if isinstance(place, list):
                    layers = dict(zip((f"{name}a", f"{name}b"), place, strict=True))
                stride = 2 if pooling is halve and number == len(places) else 1
                for layer, (channels, kernel) in layers.items():
                    padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else 0
                    self.add_module(layer, Conv(before, channels, kernel, stride, padding))
                before = sum(channels for channels, _ in layers.values())
                route.append(tuple(layers))
            self.routes[branch] = route

    def forward(self, x):
        outs = []
        for branch, route in self.routes.items():
            out = self.pooling(x) if branch == "branch_pool" else x
            for names in route:
                out = torch.cat([getattr(self, name)(out) for name in names], 1)
            outs.append(out)
        return torch.cat(outs, 1)


def branches_5(pool: int) -> dict[str, list]:
    return {
        "branch1x1": [(64, ONE)],
        "branch5x5": [(48, ONE), (64, FIVE)],
        "branch3x3dbl": [(64, ONE), (96, THREE), (96, THREE)],
        "branch_pool": [(pool, ONE)],
    }


def branches_6(middle: int) -> dict[str, list]:
    return {
        "branch1x1": [(192, ONE)],
        "branch7x7": [(middle, ONE), (middle, WIDE), (192, HIGH)],
        "branch7x7dbl": [(middle, ONE), (middle, HIGH), (middle, WIDE), (middle, HIGH), (192, WIDE)],
        "branch_pool": [(192, ONE)],
    }


BRANCHES_6A = {"branch3x3": [(384, THREE)], "branch3x3dbl": [(64, ONE), (96, THREE), (96, THREE)], "branch_pool": []}
BRANCHES_7A = {
    "branch3x3": [(192, ONE), (320, THREE)],
    "branch7x7x3": [(192, ONE), (192, WIDE), (192, HIGH), (192, THREE)],
    "branch_pool": [],
}
SPLIT = [(384, (1, 3)), (384, (3, 1))]
BRANCHES_7 = {
    "branch1x1": [(320, ONE)],
    "branch3x3": [(384, ONE), SPLIT],
    "branch3x3dbl": [(448, ONE), (384, THREE), SPLIT],
    "branch_pool": [(192, ONE)],
}
# The blocks in order: name -> (channels in, branches, pooling).
MIXED = {
    "Mixed_5b": (192, branches_5(32), average),
    "Mixed_5c": (256, branches_5(64), average),
    "Mixed_5d": (288, branches_5(64), average),
    "Mixed_6a": (288, BRANCHES_6A, halve),
    "Mixed_6b": (768, branches_6(128), average),
    "Mixed_6c": (768, branches_6(160), average),
    "Mixed_6d": (768, branches_6(160), average),
    "Mixed_6e": (768, branches_6(192), average),
    "Mixed_7a": (768, BRANCHES_7A, halve),
    "Mixed_7b": (1280, BRANCHES_7, average),
    "Mixed_7c": (2048, BRANCHES_7, maximum),
}


class Inception(nn.Module):
    """Maps images in [-1, 1), 299 x 299, to the spatial means of the last block's 2048 channels."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, THREE, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, THREE)
        self.Conv2d_2b_3x3 = Conv(32, 64, THREE, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, THREE)
        for name, block in MIXED.items():
            self.add_module(name, Mixed(*block))

    def forward(self, x: Float32[torch.Tensor, "n 3 299 299"]) -> Float32[torch.Tensor, "n 2048"]:
        x = halve(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name in MIXED:
            x = getattr(self, name)(x)
        return x.mean((2, 3))


@dataclass(frozen=True, eq=False)
class Loaded:
    """The network on a device."""

    model: Inception
    device: torch.device
    official: bool  # whether the weights are FID's
    sha256: str  # hash of the weights' file

    @torch.inference_mode()
    def embed_images(self, inputs: Float32[torch.Tensor, "n 3 299 299"]) -> Float32[torch.Tensor, "n 2048"]:
        return self.model(inputs.to(self.device))


def load(path: str | os.PathLike, device: torch.device) -> Loaded:
    """Loads the network with the weights of a file, in evaluation mode. Reads the file with `weights_only=True`.

    Raises `ConfigError`, naming a tensor, if one is missing, unknown or of another shape.
    """
    model = fill(Inception(), path, f"FID's {FILE}", UNUSED)
    sha256 = content_hash(path)
    return Loaded(model.eval().to(device), device, sha256.startswith(OFFICIAL_SHA256), sha256)
