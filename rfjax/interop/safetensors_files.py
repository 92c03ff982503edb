"""Writes and reads safetensors files one tensor at a time.

The writer of the library safetensors needs all tensors in memory. `Writer` needs only one, even for a model of 8B
parameters; the format is a length, a JSON header and the bytes (github.com/huggingface/safetensors, "Format"). `Reader`
reads with the library.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from rfjax.errors import ConfigError, RfjaxError

DTYPES = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
_CODES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
READABLE = {code: DTYPES[name] for name, code in _CODES.items()}


# The first bytes of a file that was fetched in a wrong way -> what it is, and the remedy.
_IN_ITS_PLACE = {
    b"version https://git-lfs": "it is a pointer of Git LFS: fetch it by git lfs pull",
    b"<": "it is a web page: fetch the file itself, by its download link",
}


def _in_its_place(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            start = file.read(64).lstrip()
    except OSError:
        start = b""
    return "; " + next((what for mark, what in _IN_ITS_PLACE.items() if start.startswith(mark)), "fetch it again")


class Writer:
    """A context manager that writes the tensors of a file in any order.

    The file gets its full length at the start, so that a full disk is found at once. After an exception the file is
    removed.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, metadata: Mapping[str, str]):
        self.path, self.dtype, self.sha256 = path, DTYPES[dtype], {}
        header, offset, self._places = {"__metadata__": dict(metadata)}, 0, {}
        for name, shape in shapes.items():
            end = offset + math.prod(shape) * self.dtype.itemsize
            header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            self._places[name] = (offset, tuple(shape))
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._file = open(path, "xb")
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, self._start + offset)
            else:  # on macOS a full disk is found only while writing
                self._file.truncate(self._start + offset)
            self._file.write(struct.pack("<Q", len(text)) + text)
        except BaseException:
            self._file.close()
            path.unlink()
            raise

    def write(self, name: str, array: Shaped[np.ndarray, " ..."]) -> None:
        """Casts and writes one tensor. Raises `ConfigError` for a number that is not finite, or that overflows in the
        cast to f16."""
        offset, shape = self._places[name]
        if array.shape != shape:
            raise ValueError(f"{name} is {array.shape}, planned as {shape}")
        if not np.isfinite(array).all():
            raise ConfigError(f"{name} holds numbers that are not finite; export an earlier step with --step")
        with np.errstate(over="ignore"):  # the error below names the tensor
            cast = np.ascontiguousarray(array).astype(self.dtype, copy=False)
        if self.dtype == DTYPES["f16"] and not np.isfinite(cast).all():
            largest = float(np.abs(array).max())
            raise ConfigError(f"{name} holds {largest:g}, which float16 cannot; use --dtype bf16 or f32")
        data = cast.reshape(-1).view(np.uint8)
        self.sha256[name] = hashlib.sha256(data).hexdigest()
        self._file.seek(self._start + offset)
        self._file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            missing = self._places.keys() - self.sha256.keys()
            if missing:
                raise ValueError(f"{self.path} was closed without {sorted(missing)[0]}")
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if kind is not None:
            self.path.unlink(missing_ok=True)


class Tensor(NamedTuple):
    """A tensor's file, shape and type, from its file's header."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Reader:
    """Reads tensors by name from several files. Opening reads only the headers.

    Raises `RfjaxError`, naming the file, if one is damaged or truncated or has a tensor that another file has, too.
    Raises `ConfigError` if a file is missing, or if the tensor to read is not of a type in `READABLE`.
    """

    def __init__(self, paths: Sequence[Path]):
        self._stack, self._files, self.tensors, self.metadata = ExitStack(), {}, {}, {}
        for path in paths:
            if not path.is_file():
                raise ConfigError(f"{path} is missing; get all files of the checkpoint, then import again")
            try:
                file = self._stack.enter_context(safe_open(path, "np"))
                self.metadata |= file.metadata() or {}
                for name in file.keys():
                    if name in self.tensors:
                        raise RfjaxError(f"{name} is in {self.tensors[name].file} and in {path}; remove the wrong file")
                    part = file.get_slice(name)
                    self.tensors[name] = Tensor(path, tuple(part.get_shape()), part.get_dtype())
            except (SafetensorError, OSError) as error:
                raise RfjaxError(f"{path} is no whole safetensors file ({error}){_in_its_place(path)}") from error
            self._files[path] = file

    def read(self, name: str) -> Shaped[np.ndarray, " ..."]:
        tensor = self.tensors[name]
        if tensor.dtype not in READABLE:
            raise ConfigError(f"{name} in {tensor.file} is of type {tensor.dtype}; it must be {', '.join(READABLE)}")
        return self._files[tensor.file].get_tensor(name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()


def sha256_of(array: Shaped[np.ndarray, " ..."]) -> str:
    """Returns the SHA-256 of a tensor's bytes, which the manifest stores."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()


def split_by_size(
    shapes: Mapping[str, tuple[int, ...]], itemsize: int, limit: int | float
) -> list[dict[str, tuple[int, ...]]]:
    """Splits the tensors into files of at most `limit` bytes each; a larger tensor gets a file of its own."""
    files, used = [{}], 0
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if files[-1] and used + size > limit:
            files.append({})
            used = 0
        files[-1][name] = shape
        used += size
    return files
