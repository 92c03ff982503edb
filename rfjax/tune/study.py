"""Tunes a run of each size of a finished study, and compares each measure before and after tuning.

A measure's changes are fitted by a line against log10 of the pretraining FLOPs. The line gives the mean change, and a
slope: whether tuning changes more at larger sizes. If the slope's interval contains zero, there is no evidence that
tuning changes the slope of the scaling law; it may still shift the law's intercept, which the mean change shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rfjax.errors import ConfigError
from rfjax.evaluation.records import read_records
from rfjax.inputs.json_files import read_json
from rfjax.laws.tuned import LOSS, Change, by_measure, is_loss, shifts
from rfjax.results.run_files import read_run, run_folders
from rfjax.tune import held_out

# evaluation of a record -> (its name in the comparison, the metric and the item of the value that is compared)
MEASURES = {"validation": (LOSS, "loss", "mean"), "geneval": ("GenEval", "geneval", "overall")}


def is_study(folder: Path) -> bool:
    """Whether a folder holds the folders of runs, and is not the folder of a run."""
    return folder.is_dir() and not (folder / "config.json").exists() and bool(run_folders(folder))


def largest_runs(study: Path) -> list[Path]:
    """Chooses the run to tune of each size (number of parameters) in a study. Returns the runs' folders, the smallest
    size first.

    Of each size, the finished run with the most training FLOPs is chosen; among equals, the run with the smallest
    seed. Trunks, sweeps and tuned runs are not considered. Raises `ConfigError` if no run is finished.
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


def tuned_runs(folder: Path) -> dict[str, list[Path]]:
    """Finds the finished tuned runs in a folder. Returns {method of tuning: the folders of its tuned runs}."""
    found: dict[str, list[Path]] = {}
    for run in run_folders(folder):
        facts = read_run(run).facts
        if (facts["role"], facts["state"]) == ("tuned", "done"):
            tuning = read_json(run / "tune.json", dict[str, object], remedy="tune the run again")
            found.setdefault(str(tuning["method"]), []).append(run)
    return found


def read_changes(folders: Iterable[Path]) -> list[Change]:
    """Reads the measures that exist both for tuned runs and for their base runs.

    These are the validation loss, GenEval by each sampler that both have, and the rewards and diversity of
    `held_out.jsonl`. If a reward or diversity was measured with and without guidance, the name of the measure
    without guidance ends with `unguided`.
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
    rows = held_out.read(folder)
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


def _interval(value: tuple[float, float, float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*value)
