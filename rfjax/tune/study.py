"""Tunes a run of each size of a finished study, and compares each measure before and after tuning.

A measure's changes are fitted by a line against log10 of the pretraining FLOPs. The line gives the mean change, and a
slope: whether tuning changes more at larger sizes. If the slope's interval contains zero, there is no evidence that
tuning changes the slope of the scaling law; it may still shift the law's intercept, which the mean change shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy import stats

from rfjax.errors import ConfigError
from rfjax.evaluation.records import read_records
from rfjax.inputs.json_files import read_json
from rfjax.results.run_files import read_run, run_folders
from rfjax.tune import watch

LOSS = "validation loss"
# evaluation of a record -> (its name in the comparison, the metric and the item of the value that is compared)
MEASURES = {"validation": (LOSS, "loss", "mean"), "geneval": ("GenEval", "geneval", "overall")}
FEWEST_SIZES = 3  # a line through fewer sizes has no interval


def is_study(folder: Path) -> bool:
    """Whether a folder holds the folders of runs, and is not the folder of a run."""
    return folder.is_dir() and not (folder / "config.json").exists() and bool(run_folders(folder))


def largest_runs(study: Path) -> list[Path]:
    """Chooses a study's run to tune for each size (number of parameters), the smallest size first.

    It is the finished run with the most training FLOPs; among equals, the one with the smallest seed. Trunks, sweeps
    and tuned runs are not considered. Raises `ConfigError` if no run is finished.
    """
    found: dict[int, tuple] = {}
    for folder in run_folders(study):
        facts = read_run(folder).facts
        if facts["state"] != "done" or facts["role"] not in ("run", "branch"):
            continue
        record = read_json(folder / "run.json", dict[str, object], remedy="train the run again")
        rank = (-float(record["flops"]), int(facts["seed"]), folder.name)
        if facts["params"] not in found or rank < found[facts["params"]][0]:
            found[facts["params"]] = (rank, folder)
    if not found:
        raise ConfigError(f"{study} holds no finished run to tune; finish its study first, or name a run")
    return [found[size][1] for size in sorted(found)]


def tune_study(study: Path, workdir: Path, method: str, tune_one: Callable[[Path, Path], None]) -> list[Path]:
    """Calls `tune_one(run, folder)` for each of `largest_runs`, and returns the folders of the tuned runs.

    The same call resumes. Raises `ConfigError` if `workdir` is the study's own folder, because tuned runs must not mix
    with the runs that its laws are fitted to.
    """
    if study.resolve() == workdir.resolve():
        raise ConfigError(f"--workdir {workdir} is the study's own folder; name another for its tuned runs")
    runs = largest_runs(study)
    folders = [workdir / f"{run.name}-{method}" for run in runs]
    for number, (run, folder) in enumerate(zip(runs, folders, strict=True), 1):
        print(f"[{number}/{len(runs)}] {run} -> {folder}", flush=True)
        tune_one(run, folder)
    return folders


@dataclass(frozen=True)
class Change:
    """A measure of a run before it was tuned and after, each with the ends of its 95 % interval."""

    run: str
    params: int
    flops: float  # FLOPs of pretraining
    measure: str
    before: tuple[float, float, float]
    after: tuple[float, float, float]


def read_changes(folders: Iterable[Path]) -> list[Change]:
    """Reads the measures that exist both for tuned runs and for their base runs.

    These are the validation loss, GenEval by each sampler that both have, and the rewards and diversity of
    `held_out.jsonl`. The names of rewards that were measured without guidance contain `unguided`.
    """
    changes = []
    for folder in folders:
        record = read_json(folder / "run.json", dict[str, object], remedy="tune the run again")
        parent = Path(record["parent"]["path"])
        base = read_json(parent / "run.json", dict[str, object], remedy="restore the run that was tuned")
        about = (str(base["run"]), int(base["params"]), float(record["parent"]["flops"]))
        before, after = _evaluations(parent, record["parent"]["step"]), _evaluations(folder, record["step"])
        for measure in before.keys() & after.keys():
            changes.append(Change(*about, measure, before[measure], after[measure]))
        changes.extend(Change(*about, *each) for each in _held_out(folder))
    return sorted(changes, key=lambda change: (change.measure, change.flops))


def _evaluations(folder: Path, step: int) -> dict[str, tuple[float, float, float]]:
    found = {}
    for record in read_records(folder):
        key = record["key"]
        if (key["step"], key["weights"]) != (step, "ema"):
            continue
        name, *wanted = MEASURES.get(key["evaluation"], ("",))
        for value in record["values"]:
            if [value["metric"], value["item"]] == wanted:
                how = "" if key["sampler"] == "-" else f" by {key['sampler']}"
                found[name + how] = (value["value"], value["low"], value["high"])
    return found


def _held_out(folder: Path):
    rows = watch.read(folder)
    last = max((row["step"] for row in rows), default=0)
    own = max((row["guidance_scale"] for row in rows), default=1.0)
    ends = {0: {}, last: {}}
    for row in rows:
        if row["step"] in ends and row["prompts"] == "held_out":
            plain = " unguided" if row["guidance_scale"] == 1 != own else ""
            ends[row["step"]][f"held-out {row['measure']}{plain}"] = (row["value"], row["low"], row["high"])
    for measure in ends[0]:
        if measure in ends[last]:
            yield measure, ends[0][measure], ends[last][measure]


@dataclass(frozen=True)
class Shift:
    """How a measure's change depends on size: its mean over the sizes, and its slope against log10 of the FLOPs."""

    measure: str
    sizes: int
    slope_before: float
    slope_after: float
    mean_change: tuple[float, float, float] | None  # with a 95 % interval; None for fewer than `FEWEST_SIZES` sizes
    slope_change: tuple[float, float, float] | None

    @property
    def verdict(self) -> str:
        """Says in words whether tuning changes the law's slope, only its intercept, or neither."""
        if self.mean_change is None or self.slope_change is None:
            return f"undecided: an interval needs {FEWEST_SIZES} sizes"
        slope, mean = (not low <= 0 <= high for _, low, high in (self.slope_change, self.mean_change))
        if slope:
            return "the slope changes"
        return "only the intercept moves" if mean else "no change is shown"


def line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[tuple[float, float, float], ...] | None:
    """Fits the least-squares line. Returns ((value at the mean of x, low, high), (slope, low, high)).

    The 95 % intervals come from the scatter about the line, by Student's t with n - 2 degrees of freedom. Returns None
    for fewer than `FEWEST_SIZES` points, or if all x are equal.
    """
    count, spread = len(x), float(np.square(x - np.mean(x)).sum())
    if count < FEWEST_SIZES or spread == 0:
        return None
    slope = float(((x - x.mean()) * y).sum() / spread)
    rest = y - y.mean() - slope * (x - x.mean())
    error = math.sqrt(float(np.square(rest).sum()) / (count - 2))
    t = float(stats.t.ppf(0.975, count - 2))
    widths = t * error / math.sqrt(count), t * error / math.sqrt(spread)
    return tuple(
        (value, value - width, value + width) for value, width in zip((float(y.mean()), slope), widths, strict=True)
    )


def is_loss(measure: str) -> bool:
    """Whether a measure is a loss. Losses are compared by their logarithms, in which a power law is a straight line."""
    return measure == LOSS


def shifts(changes: Sequence[Change]) -> list[Shift]:
    """Computes the shift of each measure that two or more sizes have. Losses enter by their logarithms."""
    found = []
    for measure in dict.fromkeys(change.measure for change in changes):
        rows = [change for change in changes if change.measure == measure]
        if len({row.flops for row in rows}) < 2:
            continue
        scale = np.log if is_loss(measure) else np.asarray
        x = np.log10([row.flops for row in rows])
        before, after = (scale(np.array([getattr(row, end)[0] for row in rows])) for end in ("before", "after"))
        slopes = [float(np.polyfit(x, y, 1)[0]) for y in (before, after)]
        fitted = line(x, after - before)
        found.append(Shift(measure, len(rows), *slopes, *(fitted or (None, None))))
    return found


def table(changes: Sequence[Change]) -> list[str]:
    """Lines with each measure before and after tuning for each size, and a verdict for each measure."""
    lines = []
    for measure, own in by_measure(changes).items():
        lines.append(measure)
        lines.extend(
            f"  {change.params:>13,} parameters  {_interval(change.before):>22} -> {_interval(change.after):<22}"
            for change in own
        )
        found = shifts(own)
        if found and found[0].mean_change and found[0].slope_change:
            unit = "log loss" if is_loss(measure) else "score"
            lines.append(
                f"  change in {unit} {_interval(found[0].mean_change)}, and {_interval(found[0].slope_change)} for "
                f"each factor of 10 in pretraining FLOPs: {found[0].verdict}"
            )
        elif found:
            lines.append(f"  {found[0].verdict}")
    return lines


def by_measure(changes: Sequence[Change]) -> dict[str, list[Change]]:
    """Groups the changes by measure."""
    groups: dict[str, list[Change]] = {}
    for change in changes:
        groups.setdefault(change.measure, []).append(change)
    return groups


def _interval(value: tuple[float, float, float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*value)
