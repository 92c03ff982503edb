"""Converts values to Python's own types, which JSON can hold."""

from __future__ import annotations

import math
from dataclasses import is_dataclass

import numpy as np
import pandas as pd


def plain(value: object) -> object:
    """Converts a value to Python's own types.

    A dataclass becomes the result of its `to_json()` if it has this method, else a dict of its fields. Arrays and
    tuples become lists. Missing values and numbers that are not finite become None. The items of dicts and lists are
    converted, too.
    """
    kind = type(value)
    if kind is str or kind is int or kind is bool:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if is_dataclass(value):
        value = value.to_json() if hasattr(value, "to_json") else vars(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if value is None or value is pd.NA:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
