"""Transforms rfjax's arrays to tensors of another layout, and back, bit for bit.

PyTorch stores a linear map as [outputs, inputs]; rfjax's kernels have separate axes for heads, chunks and inputs
(`Linear` in models/layers). A transform's `out` makes tensors of one layer's array; `back` is the inverse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

Arrays = Sequence[Shaped[np.ndarray, " ..."]]


@dataclass(frozen=True)
class Linear:
    """A kernel [*inputs, *outputs] becomes `parts` weights [outputs / parts, inputs]; a bias is split in the same way.

    `inputs` counts the kernel's input axes. `swapped` exchanges the two halves of the outputs: rfjax, like Stability's
    code, puts shift before scale; diffusers puts scale before shift.
    """

    inputs: int = 1
    parts: int = 1
    swapped: bool = False

    def out(self, leaf: str, array: Shaped[np.ndarray, " ..."]) -> Arrays:
        if leaf == "kernel":
            rows = array.reshape(math.prod(array.shape[: self.inputs]), -1).T
        else:
            rows = array.reshape(-1)
        return np.split(self._swap(rows), self.parts)

    def back(self, leaf: str, tensors: Arrays, shape: tuple[int, ...]) -> Shaped[np.ndarray, " ..."]:
        rows = self._swap(np.concatenate(tensors) if len(tensors) > 1 else tensors[0])
        return (rows.T if leaf == "kernel" else rows).reshape(shape)

    def shapes(self, leaf: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        if leaf != "kernel":
            return [(math.prod(shape) // self.parts,)] * self.parts
        inputs = math.prod(shape[: self.inputs])
        return [(math.prod(shape) // inputs // self.parts, inputs)] * self.parts

    def _swap(self, rows):
        return np.concatenate(np.split(rows, 2)[::-1]) if self.swapped else rows


@dataclass(frozen=True)
class Patches:
    """A kernel [row * column * channel, outputs] becomes a convolution's weight [outputs, channel, row, column]."""

    patch: int

    def _apart(self, shape):
        return (self.patch, self.patch, shape[0] // self.patch**2, shape[1])

    def out(self, leaf: str, array: Shaped[np.ndarray, " ..."]) -> Arrays:
        return [array.reshape(self._apart(array.shape)).transpose(3, 2, 0, 1) if leaf == "kernel" else array]

    def back(self, leaf: str, tensors: Arrays, shape: tuple[int, ...]) -> Shaped[np.ndarray, " ..."]:
        (tensor,) = tensors
        return tensor.transpose(2, 3, 1, 0).reshape(shape) if leaf == "kernel" else tensor

    def shapes(self, leaf: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        if leaf != "kernel":
            return [shape]
        rows, columns, channels, outputs = self._apart(shape)
        return [(outputs, channels, rows, columns)]


@dataclass(frozen=True)
class Same:
    """A vector, the scale of a norm, stays as it is."""

    def out(self, leaf: str, array: Shaped[np.ndarray, " ..."]) -> Arrays:
        return [array]

    def back(self, leaf: str, tensors: Arrays, shape: tuple[int, ...]) -> Shaped[np.ndarray, " ..."]:
        return tensors[0]

    def shapes(self, leaf: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [shape]


Transform = Linear | Patches | Same
