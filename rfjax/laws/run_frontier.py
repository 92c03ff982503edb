"""Chooses the runs of a foreign table that a law of compute is fitted to: if sizes compete, those on the frontier.

Sizes compete if a larger network was trained with no more compute than a smaller one. Most runs then do not have the
best size for their compute, and a law through all of them would describe no way of training. So laws of compute are
fitted to the runs that no other run beats in both loss and FLOPs. If these runs are too few, the law is fitted to all
runs, and `rule` says so. If a table has one size for each compute, its law is fitted to all runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from rfjax.laws.laws import Law

SPARE = 2  # runs beyond the law's parameters: one degree of freedom, and one run that can be left out
# What the runs of one sweep of the learning rate share, besides their size and images. Runs that differ in one of these
# are no seeds of each other. A table of one's own may lack the columns.
OF_SWEEP = "train_corpus formulation backbone schedule parametrization optimizer batch_size".split()
SAME_SIZE = 0.02  # relative difference; a size may be flops / images, which tables print to three digits


@dataclass(frozen=True, kw_only=True, eq=False)
class ChosenRuns:
    """The rows that a law is fitted to. `rule` says which rows and why; it is "" where nothing was chosen, or where the
    choice is stated elsewhere."""

    rows: pd.DataFrame
    rule: str = ""
    on_frontier: bool = False


def choose_runs(table: pd.DataFrame, law: Law) -> ChosenRuns:
    """Chooses the rows that a law is fitted to. `table` has one row for each run.

    Laws without `flops` take all rows. So do laws of compute if a `flops` or `loss` is missing or not positive;
    `fitting.fit` then raises an error that names the row.
    """
    flops, loss = (_positive(table, name) for name in ("flops", "loss"))
    if "flops" not in law.variables or flops is None or loss is None:
        return ChosenRuns(rows=table)
    runs = f"{len(table)} run{'s'[: len(table) != 1]}"
    sizes = _sizes(table, flops)
    if sizes is None:
        remedy = "whether these are the best at their compute is not known without a column params or images"
        return ChosenRuns(rows=table, rule=f"the {law.name} law goes through all {runs}; {remedy}")
    if not sizes_compete(flops, sizes):
        return ChosenRuns(rows=table, rule=f"the {law.name} law goes through all {runs}: each compute has one size")
    chosen = on_frontier(table)
    least, count = len(law.parameters) + SPARE, int(chosen.sum())
    if count < least:
        why = f"{count} on the frontier {'is' if count == 1 else 'are'} too few, {least} are needed"
        rule = f"the {law.name} law goes through all {runs}, of several sizes for a compute: it is no law of the "
        return ChosenRuns(rows=table, rule=f"{rule}compute-optimal runs ({why})")
    rule = f"the {law.name} law is fitted to the {count} of {runs} on the frontier, which no other run beats in both "
    return ChosenRuns(rows=table[chosen], rule=f"{rule}loss and FLOPs", on_frontier=True)


def sizes_compete(flops: Float[np.ndarray, " runs"], sizes: Float[np.ndarray, " runs"]) -> bool:
    """Whether any larger network was trained with no more compute than a smaller one."""
    by_flops = pd.Series(sizes).groupby(flops)
    return bool((by_flops.max().cummax() > by_flops.min() * (1 + SAME_SIZE)).any())


def on_frontier(points: pd.DataFrame) -> Bool[np.ndarray, " runs"]:
    """Whether each run is on the compute frontier: no run of fewer FLOPs has as low a loss, and no run of equal FLOPs
    has a lower loss.

    Runs that differ only in their seed are judged together, by their mean loss: the luckiest seed alone would bend the
    frontier down. Columns are `flops`, `loss` and, if present, `params`, `learning_rate` and those of `OF_SWEEP`.
    """
    settings = [name for name in ("flops", "params", "learning_rate", *OF_SWEEP) if name in points]
    mean = points.groupby(settings, dropna=False)["loss"].transform("mean").to_numpy(float)
    flops = points["flops"].to_numpy(float)
    least = pd.Series(mean).groupby(flops).min()  # in order of FLOPs
    before = least.cummin().shift(fill_value=np.inf)  # the least mean of all runs with fewer FLOPs
    return (mean < before.loc[flops].to_numpy()) & (mean <= least.loc[flops].to_numpy())


def _sizes(table, flops):
    """Returns a number proportional to each run's size: its parameters, else its FLOPs per image. None if the table has
    neither."""
    params = _positive(table, "params")
    if params is not None:
        return params
    images = _positive(table, "images")
    return None if images is None else flops / images


def _positive(table, name):
    """Returns a column's numbers; None if it is missing or has a value that is not a positive number."""
    if name not in table:
        return None
    values = pd.to_numeric(table[name], errors="coerce").to_numpy(float, na_value=np.nan)
    return values if len(values) and (np.isfinite(values) & (values > 0)).all() else None
