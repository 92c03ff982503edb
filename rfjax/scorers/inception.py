"""The Inception of FID: TensorFlow's `inception-2015-12-05`, of whose last pooling FID's features are.

The tensors are those of the port that is commonly given out, `pt_inception-2015-12-05-6726825d.pth`, with
torchvision's names. The network differs from torchvision's Inception v3 in its pooling: averages
leave the padding out, and the last block takes a maximum (as the published TensorFlow graph does).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import nn
from torch.nn import functional

from rfjax.errors import ConfigError
from rfjax.scorers.files import content_hash
from rfjax.scorers.pretrained import first_line

OFFICIAL_SHA256 = "6726825d"  # the first digits, which stand in the file's name
SIZE = 299  # pixels
FEATURES = 2048
UNUSED = ("fc.weight", "fc.bias", "AuxLogits")  # behind the features

# Kernels, height and width.
ONE, THREE = (1, 1), (3, 3)


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


def halved(x):
    return functional.max_pool2d(x, 3, stride=2)


class Mixed(nn.Module):
    """A block of parallel branches; `ROUTES` are the names that follow each other in each. A tuple of names is
    computed side by side and joined. `layers` are convolutions by name, each (channels in, channels out, kernel,
    stride), padded to keep the size where the stride is 1."""

    ROUTES: tuple[tuple, ...] = ()

    def __init__(self, layers: Mapping[str, tuple], pooling):
        super().__init__()
        self.pooling = pooling
        for name, (before, after, kernel, stride) in layers.items():
            padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else 0
            self.add_module(name, Conv(before, after, kernel, stride, padding))

    def forward(self, x):
        outs = [self._along(route, x) for route in self.ROUTES]
        pooled = self.pooling(x)
        outs.append(self.branch_pool(pooled) if hasattr(self, "branch_pool") else pooled)
        return torch.cat(outs, 1)

    def _along(self, route, x):
        for step in route:
            x = (
                torch.cat([getattr(self, name)(x) for name in step], 1)
                if isinstance(step, tuple)
                else getattr(self, step)(x)
            )
        return x


class MixedA(Mixed):
    ROUTES = (("branch1x1",), ("branch5x5_1", "branch5x5_2"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))

    def __init__(self, n: int, pool: int):
        super().__init__(
            {
                "branch1x1": (n, 64, ONE, 1),
                "branch5x5_1": (n, 48, ONE, 1),
                "branch5x5_2": (48, 64, (5, 5), 1),
                "branch3x3dbl_1": (n, 64, ONE, 1),
                "branch3x3dbl_2": (64, 96, THREE, 1),
                "branch3x3dbl_3": (96, 96, THREE, 1),
                "branch_pool": (n, pool, ONE, 1),
            },
            average,
        )


class MixedB(Mixed):
    ROUTES = (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))

    def __init__(self, n: int):
        super().__init__(
            {
                "branch3x3": (n, 384, THREE, 2),
                "branch3x3dbl_1": (n, 64, ONE, 1),
                "branch3x3dbl_2": (64, 96, THREE, 1),
                "branch3x3dbl_3": (96, 96, THREE, 2),
            },
            halved,
        )


class MixedC(Mixed):
    ROUTES = (
        ("branch1x1",),
        ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
        ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
    )

    def __init__(self, n: int, middle: int):
        super().__init__(
            {
                "branch1x1": (n, 192, ONE, 1),
                "branch7x7_1": (n, middle, ONE, 1),
                "branch7x7_2": (middle, middle, (1, 7), 1),
                "branch7x7_3": (middle, 192, (7, 1), 1),
                "branch7x7dbl_1": (n, middle, ONE, 1),
                "branch7x7dbl_2": (middle, middle, (7, 1), 1),
                "branch7x7dbl_3": (middle, middle, (1, 7), 1),
                "branch7x7dbl_4": (middle, middle, (7, 1), 1),
                "branch7x7dbl_5": (middle, 192, (1, 7), 1),
                "branch_pool": (n, 192, ONE, 1),
            },
            average,
        )


class MixedD(Mixed):
    ROUTES = (("branch3x3_1", "branch3x3_2"), ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"))

    def __init__(self, n: int):
        super().__init__(
            {
                "branch3x3_1": (n, 192, ONE, 1),
                "branch3x3_2": (192, 320, THREE, 2),
                "branch7x7x3_1": (n, 192, ONE, 1),
                "branch7x7x3_2": (192, 192, (1, 7), 1),
                "branch7x7x3_3": (192, 192, (7, 1), 1),
                "branch7x7x3_4": (192, 192, THREE, 2),
            },
            halved,
        )


class MixedE(Mixed):
    ROUTES = (
        ("branch1x1",),
        ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
        ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
    )

    def __init__(self, n: int, pooling):
        super().__init__(
            {
                "branch1x1": (n, 320, ONE, 1),
                "branch3x3_1": (n, 384, ONE, 1),
                "branch3x3_2a": (384, 384, (1, 3), 1),
                "branch3x3_2b": (384, 384, (3, 1), 1),
                "branch3x3dbl_1": (n, 448, ONE, 1),
                "branch3x3dbl_2": (448, 384, THREE, 1),
                "branch3x3dbl_3a": (384, 384, (1, 3), 1),
                "branch3x3dbl_3b": (384, 384, (3, 1), 1),
                "branch_pool": (n, 192, ONE, 1),
            },
            pooling,
        )


class Inception(nn.Module):
    """Images in [-1, 1), 299 x 299, to the means over places of the last block's 2048 channels."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, THREE, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, THREE)
        self.Conv2d_2b_3x3 = Conv(32, 64, THREE, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, THREE)
        self.Mixed_5b = MixedA(192, 32)
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(768, 128)
        self.Mixed_6c = MixedC(768, 160)
        self.Mixed_6d = MixedC(768, 160)
        self.Mixed_6e = MixedC(768, 192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b = MixedE(1280, average)
        self.Mixed_7c = MixedE(2048, maximum)

    def forward(self, x: Float32[torch.Tensor, "n 3 299 299"]) -> Float32[torch.Tensor, "n 2048"]:
        x = halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean((2, 3))


@dataclass(frozen=True, eq=False)
class Loaded:
    model: Inception
    device: torch.device
    official: bool
    sha256: str

    @torch.inference_mode()
    def embed_images(self, inputs: Float32[torch.Tensor, "n 3 299 299"]) -> Float32[torch.Tensor, "n 2048"]:
        return self.model(inputs.to(self.device))


def load(path: str | os.PathLike, device: torch.device) -> Loaded:
    """The network with the weights of a file, for evaluation; read with `weights_only=True`.

    Raises `ConfigError` naming what the file lacks or has beyond it.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"cannot read {path} as weights ({first_line(error)}); give pt_inception-2015-12-05-6726825d.pth"
        ) from None
    model = Inception()
    wanted = {
        name: value.shape for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    found = {
        name: value
        for name, value in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(value, torch.Tensor) and not name.startswith(UNUSED) and not name.endswith("num_batches_tracked")
    }
    wrong = sorted({*wanted} ^ {*found}) or sorted(name for name, shape in wanted.items() if found[name].shape != shape)
    if wrong:
        raise ConfigError(
            f"{path} is not FID's Inception: {len(wrong)} tensors are missing, unknown or of another shape "
            f"({wrong[0]}, ...)"
        )
    model.load_state_dict(found, strict=False)
    sha256 = content_hash(path)
    return Loaded(model.eval().to(device), device, sha256.startswith(OFFICIAL_SHA256), sha256)
