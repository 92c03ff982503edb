"""Runs a descriptor model in ONNX, such as SSCD (Pizzi et al. 2022, "A self-supervised descriptor for image copy
detection").

The model takes RGB images as [n, 3, height, width] or [n, height, width, 3], and returns a vector for each. If the
input has floats, the pixels are normalised by a mean and a deviation. If it has bytes (uint8), the pixels are passed as
they are, because such a model normalises them itself.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from rfjax.errors import ConfigError, RfjaxError
from rfjax.prepare.libraries import require

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


@dataclass(frozen=True)
class Input:
    """A model's input: its name and type, whether channels are the last axis, the batch size (None if the model leaves
    it open), and the sides in pixels. A side that the model leaves open is --model-size or, without that option, equal
    to the fixed side."""

    name: str
    dtype: type
    channels_last: bool
    batch: int | None
    height: int
    width: int


class OnnxModel:
    """A descriptor that runs an ONNX model by onnxruntime.

    `side` is the images' height and width, needed if the model fixes neither. `mean` and `std`, by default ImageNet's,
    normalise the pixels for a model of floats. `output` names the model's output to use, if there are several. With
    `mirrored`, mirror images are described, too. Raises `ConfigError` for a model whose input or output has another
    form than this module's docstring says.
    """

    def __init__(
        self,
        path: str,
        *,
        side: int | None,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        output: str | None,
        mirrored: bool,
    ):
        onnxruntime = require("onnxruntime", "descriptors from an ONNX model need onnxruntime")
        if not Path(path).is_file():
            raise ConfigError(f"--descriptor is {path}, which is no file; give phash, or the .onnx of a model")
        there = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
        try:
            # A copy in an empty folder cannot load weights from other files, which `facts` would not hash.
            with tempfile.TemporaryDirectory() as alone:
                copy = shutil.copyfile(path, Path(alone, "model.onnx"))
                self._session = onnxruntime.InferenceSession(str(copy), providers=providers)
        except Exception as error:  # onnxruntime does not export its error classes
            raise ConfigError(
                f"--descriptor {path} is no ONNX model that onnxruntime loads: {error}. Weights in a file of their own "
                "must be put into it: onnx.save_model(onnx.load(PATH), PATH, save_as_external_data=False)"
            ) from None
        self._path, self._mirrored = path, mirrored
        self._takes = self._input_of(side)
        if self._takes.dtype is np.uint8 and (mean, std) != (None, None):
            given = f"--model-mean and --model-std are for a model of floats, and {path} takes bytes"
            raise ConfigError(f"{given} and normalises them itself; leave them out")
        mean, std = MEAN if mean is None else mean, STD if std is None else std
        self._mean, self._std = np.float32(mean), np.float32(std)
        if len(self._mean) != 3 or len(self._std) != 3 or not (self._std > 0).all():
            given = f"--model-mean is {mean} and --model-std is {std}"
            raise ConfigError(f"{given}; both must be three numbers, and those of --model-std above 0")
        self.height, self.width = self._takes.height, self._takes.width
        self._output = self._output_of(output)
        with open(path, "rb") as file:
            self.facts = {"model": hashlib.file_digest(file, "sha256").hexdigest(), "side": self.height}
        if self.width != self.height:
            self.facts["width"] = self.width
        if self._takes.dtype is not np.uint8:
            self.facts |= {"mean": [float(x) for x in self._mean], "std": [float(x) for x in self._std]}
        self.facts |= {"output": self._output, "mirrored": mirrored}

    def _input_of(self, side):
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(each.name for each in inputs)
            raise ConfigError(f"{self._path} has {len(inputs)} inputs ({names}); give a model that takes images alone")
        shape, kind, name = inputs[0].shape, inputs[0].type, inputs[0].name
        where = f"the input {name} of {self._path} is {kind} {shape}"
        order = _channels_last(shape)
        if kind not in TYPES or order is None:
            allowed = f"{', '.join(TYPES)} [n, 3, height, width] or [n, height, width, 3]"
            raise ConfigError(f"{where}; it must be {allowed}")
        sizes = shape[1:3] if order else shape[2:]
        fixed = [size for size in sizes if isinstance(size, int)]
        if not fixed and side is None:
            remedy = "name the side of the square with --model-size (288 for SSCD)"
            raise ConfigError(f"{self._path} takes images of any size; {remedy}")
        if fixed and side is not None and set(fixed) != {side}:
            raise ConfigError(
                f"--model-size is {side}, and {self._path} takes images of {shape} alone; leave --model-size out"
            )
        height, width = (size if isinstance(size, int) else side or fixed[0] for size in sizes)
        if min(height, width) < 8:
            raise ConfigError(f"--model-size is {side or min(height, width)}; it must be at least 8")
        return Input(name, TYPES[kind], order, shape[0] if isinstance(shape[0], int) else None, height, width)

    def _output_of(self, output):
        names = [each.name for each in self._session.get_outputs()]
        if output is None and len(names) > 1:
            raise ConfigError(
                f"{self._path} has the outputs {', '.join(names)}; name the descriptor with --model-output"
            )
        if output not in (None, *names):
            raise ConfigError(
                f"--model-output is {output}, and {self._path} has the outputs {', '.join(names)}; name one of them"
            )
        return output or names[0]

    def describe(self, pixels: UInt8[np.ndarray, "n height width 3"]) -> Float[np.ndarray, "n views size"]:
        """Returns a unit vector for each image and, with `mirrored`, one for its mirror image.

        A vector that is not finite becomes all NaN; a vector of zeros stays zeros.
        """
        found = [self._vectors(pixels)] + ([self._vectors(pixels[:, :, ::-1])] if self._mirrored else [])
        return np.stack(found, axis=1)

    def _vectors(self, pixels):
        takes = self._takes
        values = pixels if takes.dtype is np.uint8 else (pixels.astype(np.float32) / 255 - self._mean) / self._std
        values = values.astype(takes.dtype) if takes.channels_last else values.transpose(0, 3, 1, 2).astype(takes.dtype)
        step = takes.batch or len(values)
        rows = []
        for start in range(0, len(values), step):
            some = values[start : start + step]
            padded = np.concatenate([some, np.zeros((step - len(some), *some.shape[1:]), takes.dtype)])
            try:
                (given,) = self._session.run([self._output], {takes.name: np.ascontiguousarray(padded)})
            except Exception as error:
                raise RfjaxError(f"{self._path} fails on {padded.shape}: {error}; give another --batch-size") from None
            shape = given.shape if isinstance(given, np.ndarray) and given.dtype.kind == "f" else ()
            if shape[:1] != (step,) or given.size != step * max(shape[1:], default=0):  # axes of length 1 are allowed
                what = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
                name = f"the output {self._output} of {self._path}"
                raise ConfigError(f"{name} is {what} for {step} images; give a model with floating-point [n, size]")
            rows.append(given.reshape(step, -1)[: len(some)].astype(np.float32))
        return unit(np.concatenate(rows))


def _channels_last(shape) -> bool | None:
    """Returns True if the three channels are an input's last axis, False if its second, None if they are neither.

    If both axes are 3, or both are open, the second axis is taken to be the channels: PyTorch exports that order.
    """
    if len(shape) != 4:
        return None
    second, last = shape[1], shape[3]
    if second == 3 or (not isinstance(second, int) and last != 3):
        return False
    return True if last == 3 else None


def unit(vectors: Float[np.ndarray, "n size"]) -> Float[np.ndarray, "n size"]:
    """Divides vectors by their lengths. A vector of zeros stays zeros; a vector that is not finite becomes all NaN."""
    wide = vectors.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        length = np.linalg.norm(wide, axis=1, keepdims=True)
        scaled = np.where(length > 0, wide / length, 0.0)
    scaled[~np.isfinite(wide).all(axis=1)] = np.nan
    return scaled.astype(np.float32)
