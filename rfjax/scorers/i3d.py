"""FVD's network: Inflated 3D Inception v1, trained on Kinetics-400 (Carreira & Zisserman, arXiv 1705.07750).

FVD's features are the network's 400 logits, averaged over time. The tensors have the names of `i3d_pretrained_400.pt`,
VideoGPT's conversion of deepmind/i3d-kinetics-400, the module that the authors of FVD use. The batch norms have the
epsilon of that conversion. Padding is TensorFlow's "SAME": if the number of added rows is odd, the end gets one more.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import nn
from torch.nn import functional

from rfjax.errors import ConfigError
from rfjax.scorers.files import content_hash
from rfjax.scorers.weight_files import fill

FILE = "i3d_pretrained_400.pt"
OFFICIAL_SHA256 = "55095f049e706479d48e221adcdb145b2b9dc930ba28b081ed72367ffaa32343"
OFFICIAL = "i3d-kinetics-400"
LEAST_FRAMES = 9  # halved three times, rounded up, they leave two frames, which the last average needs
SIDE = 224

ONE, TWO, THREE, SEVEN = (1, 1, 1), (2, 2, 2), (3, 3, 3), (7, 7, 7)
FLAT, HALF = (1, 3, 3), (1, 2, 2)  # kernel and stride of pooling that keeps the frames


def pad_same(x, kernel: Sequence[int], stride: Sequence[int]):
    """Pads frames, rows and columns with zeros, so that a window of size `kernel` that moves by `stride` has ceil(size
    / stride) positions along each axis."""
    pads = []
    for size, width, step in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        lacking = max(width - (size % step or step), 0)
        pads += [lacking // 2, lacking - lacking // 2]
    return functional.pad(x, pads)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels: int, kernel=ONE, stride=ONE):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv3d = nn.Conv3d(channels_in, channels, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(channels, eps=1e-5)

    def forward(self, x):
        return functional.relu(self.bn(self.conv3d(pad_same(x, self.kernel, self.stride))))


class Pool(nn.Module):
    """The maximum over a window. Its input is not negative, so padding with zeros changes nothing."""

    def __init__(self, kernel, stride):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x):
        return functional.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four parallel branches: a 1x1x1 convolution, two branches of a 1x1x1 and then a 3x3x3 convolution, and pooling
    followed by a 1x1x1 convolution. `channels` are the output channels of the six convolutions, branch by branch."""

    def __init__(self, channels_in: int, channels: Sequence[int]):
        super().__init__()
        a, b, c, d, e, f = channels
        self.b0 = Unit(channels_in, a)
        self.b1a, self.b1b = Unit(channels_in, b), Unit(b, c, THREE)
        self.b2a, self.b2b = Unit(channels_in, d), Unit(d, e, THREE)
        self.pool, self.b3b = Pool(THREE, ONE), Unit(channels_in, f)

    def forward(self, x):
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.pool(x))], 1)


# The layers in order.
LAYERS = {
    "Conv3d_1a_7x7": lambda: Unit(3, 64, SEVEN, TWO),
    "MaxPool3d_2a_3x3": lambda: Pool(FLAT, HALF),
    "Conv3d_2b_1x1": lambda: Unit(64, 64),
    "Conv3d_2c_3x3": lambda: Unit(64, 192, THREE),
    "MaxPool3d_3a_3x3": lambda: Pool(FLAT, HALF),
    "Mixed_3b": lambda: Mixed(192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": lambda: Mixed(256, (128, 128, 192, 32, 96, 64)),
    "MaxPool3d_4a_3x3": lambda: Pool(THREE, TWO),
    "Mixed_4b": lambda: Mixed(480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": lambda: Mixed(512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": lambda: Mixed(512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": lambda: Mixed(512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": lambda: Mixed(528, (256, 160, 320, 32, 128, 128)),
    "MaxPool3d_5a_2x2": lambda: Pool(TWO, TWO),
    "Mixed_5b": lambda: Mixed(832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": lambda: Mixed(832, (384, 192, 384, 48, 128, 128)),
}


class I3D(nn.Module):
    """Maps clips in [-1, 1], 224 x 224, to 400 logits, averaged over time."""

    def __init__(self):
        super().__init__()
        for name, layer in LAYERS.items():
            self.add_module(name, layer())
        self.logits = nn.Module()
        self.logits.conv3d = nn.Conv3d(1024, 400, ONE)

    def forward(self, x: Float32[torch.Tensor, "n 3 frames 224 224"]) -> Float32[torch.Tensor, "n 400"]:
        for name in LAYERS:
            x = getattr(self, name)(x)
        return self.logits.conv3d(functional.avg_pool3d(x, (2, 7, 7), 1)).mean((2, 3, 4))


@dataclass(frozen=True, eq=False)
class Loaded:
    """The network on a device."""

    model: I3D
    device: torch.device
    name: str  # `OFFICIAL`, or "other" for other weights
    sha256: str  # hash of the weights' file

    @torch.inference_mode()
    def embed(self, inputs: Float32[torch.Tensor, "n 3 frames 224 224"]) -> Float32[torch.Tensor, "n 400"]:
        return self.model(inputs.to(self.device))

    @staticmethod
    def check_frames(frames: int) -> None:
        """Raises `ConfigError` for clips that the network cannot take."""
        if frames < LEAST_FRAMES:
            raise ConfigError(f"the clips have {frames} frames, and FVD's I3D needs at least {LEAST_FRAMES}")


def load(path: str | os.PathLike, device: torch.device) -> Loaded:
    """Loads the network with the weights of a file, in evaluation mode. Reads the file with `weights_only=True`, so a
    TorchScript file, which is a program, is refused.

    Raises `ConfigError`, naming a tensor, if one is missing, unknown or of another shape.
    """
    model = fill(I3D(), path, f"{FILE}, which has tensors alone (i3d_torchscript.pt is a program, and is not run)")
    sha256 = content_hash(path)
    return Loaded(model.eval().to(device), device, OFFICIAL if sha256 == OFFICIAL_SHA256 else "other", sha256)
