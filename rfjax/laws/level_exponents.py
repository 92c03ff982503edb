"""Fits a power law of compute to the loss at each level of t. The law has no floor E, so the exponent is only an
apparent one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rfjax.laws.fitting import Estimate, FitOptions, fit
from rfjax.laws.laws import POWER
from rfjax.results.columns import loss_levels


@dataclass(frozen=True, kw_only=True)
class LevelExponents:
    """The apparent exponent at each level of t, and the levels that have none."""

    columns: dict[float, str]  # t -> the table's column of losses, in order of t
    exponents: dict[float, Estimate | None]  # None where the law was not fitted
    left_out: tuple[float, ...] = ()  # levels at an end of the path (t = 0 or 1), or without a loss for some runs


def level_exponents(rows: pd.DataFrame, options: FitOptions) -> LevelExponents:
    """Fits the power law to each level 0 < t < 1 at which every run has a loss.

    `rows` are the runs that the power law of compute takes. Without a column `flops` there are no levels.
    """
    names = {float(t): name for t, name in loss_levels(map(str, rows.columns)).items()}
    columns = {t: name for t, name in sorted(names.items()) if 0 < t < 1 and _positive(rows[name])}
    if "flops" not in rows:
        columns = {}
    exponents = {}
    for t, name in columns.items():
        found = fit(rows, POWER, options, column=name, held_out=False)
        exponents[t] = found.estimates["b"] if found.identifiable else None
    left = tuple(t for t in names if t not in columns)
    return LevelExponents(columns=columns, exponents=exponents, left_out=left)


def _positive(column):
    values = column.to_numpy(float, na_value=np.nan) if hasattr(column, "to_numpy") else column
    return bool((np.isfinite(values) & (values > 0)).all())
