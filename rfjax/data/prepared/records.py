"""One record of a prepared corpus: named arrays and a few facts, as the bytes of a safetensors file.

The safetensors library writes the bytes. Reading makes views of the bytes, without the library and without a copy,
because a batch of text features has hundreds of megabytes. No pickle is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NotRequired, TypedDict

import numpy as np
from safetensors.numpy import save

from rfjax.inputs.json_files import check_json

DTYPES = {"F16": np.float16, "F32": np.float32, "I8": np.int8, "U8": np.uint8}
FACTS = "facts"  # a single key, because safetensors writes several keys in no fixed order


class ImageFacts(TypedDict):
    """The facts in an image's record, beside its latents and thumbnail."""

    key: str
    width: int
    height: int
    original: list[int]  # numbers of captions in the captions' file of the same unit
    synthetic: list[int]
    start: NotRequired[float]  # of a clip: seconds since its file's first picture


class TextFacts(TypedDict):
    """The facts in a caption's record, beside its features."""

    caption: str


FACTS_OF = {"images": ImageFacts, "captions": TextFacts}


def pack(arrays: Mapping[str, np.ndarray], facts: Mapping[str, object]) -> bytes:
    """Returns the bytes of a record. Arrays are float16, float32, int8 or uint8; facts are what JSON can hold."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(whole, {FACTS: json.dumps(facts, ensure_ascii=False)})


def unpack(record: bytes, shape: type = dict) -> tuple[dict[str, np.ndarray], dict]:
    """Returns the arrays, which are read-only views of `record`, and the facts, checked to have `shape`
    (`rfjax.inputs.json_files`).

    Raises `ValueError` for bytes that are not a record, and for facts of another shape.
    """
    size = int.from_bytes(record[:8], "little")
    start = 8 + size
    try:
        header = json.loads(record[8:start])
        facts = check_json(json.loads(header.pop("__metadata__")[FACTS]), shape)
        arrays = {}
        for name, about in header.items():
            first, last = about["data_offsets"]
            dtype = np.dtype(DTYPES[about["dtype"]])
            flat = np.frombuffer(record, dtype, (last - first) // dtype.itemsize, start + first)
            arrays[name] = flat.reshape(about["shape"])
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"it is not as it was written: {error}") from None
    return arrays, facts
