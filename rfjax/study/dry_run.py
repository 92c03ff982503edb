"""Makes what `rfjax study --dry-run` prints: a table of the study's runs, with the size and cost of each."""

from __future__ import annotations

from collections.abc import Sequence

from rfjax import config as configs
from rfjax.console import format_table
from rfjax.study.cohorts import cohorts
from rfjax.study.size import size_of, spent_flops
from rfjax.study.study import Study, check_told_apart
from rfjax.training.diagnostics import network_advice
from rfjax.training.run import plan_run

# column of the table -> field of the config; a column is shown only if points differ in its field
TOLD = {
    "corpus": "data.corpus",
    "backbone": "model.backbone",
    "formulation": "formulation",
    "rate": "train.learning_rate",
    "seed": "seed",
}


def dry_run_lines(study: Study) -> Sequence[str]:
    """Returns the lines of a table with the size and cost of each of the study's runs, and the notes below the table.

    Raises `ConfigError` if two points have the same config.
    """
    check_told_apart(study)
    flat = {point.id: configs.flatten(point.config) for point in study.points}
    told = {name: key for name, key in TOLD.items() if len({values[key] for values in flat.values()}) > 1}
    branched = any(point.config.train.branches for point in study.points)
    costs = ("FLOPs", "spent") if branched else ("FLOPs",)
    rows = [("point", *told, "depth", "width", "params", "steps", "batch", "GFLOPs/image", *costs, "state")]
    total = spent = 0.0
    for run in study.runs:
        size, config = size_of(run.config), run.config
        own = spent_flops(run, size)
        total, spent = total + size.flops * (run.role != "trunk"), spent + own
        rows.append(
            (
                run.id,
                *(str(flat[run.point][key]) for key in told.values()),
                str(config.model.depth),
                str(config.model.width),
                f"{size.params:,}",
                f"{config.train.steps:,}",
                f"{config.train.batch_size:,}",
                f"{size.flops_per_image / 1e9:,.4g}",
                f"{size.flops:.4g}",
                *((f"{own:.4g}",) if branched else ()),
                _bytes(size.state_bytes),
            )
        )
    notes = [
        "FLOPs: training, three forward passes an image. "
        "State: parameters, average and the optimiser's moments in float32."
    ]
    if branched:
        saved = f"{spent:.4g} FLOPs are spent on runs that would cost {total:.4g} alone ({spent / total:.0%})"
        notes.append(f"Spent: for a branch, the FLOPs after it left its trunk. In all {saved}.")
    said = {}
    for point in study.points:
        for line in network_advice(plan_run(point.config)):
            said.setdefault(line, point.id)
    notes += [f"{point}: {line}" for line, point in said.items()]
    parts = cohorts({point.id: point.config for point in study.points})
    largest = max(map(len, parts))
    together = f", trained in {len(parts)} programs of up to {largest} runs together" if largest > 1 else ""
    return [f"study {study.name}: {len(study.points)} points{together}", *format_table(rows), *notes]


def _bytes(count: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.4g} {unit}"
        count /= 1024
    raise AssertionError
