"""Runs a study: trains and evaluates every point, skips what is done, and goes on after failures."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rfjax import config as configs
from rfjax import config_files
from rfjax.config import Config
from rfjax.data.corpus import load_corpus
from rfjax.errors import ConfigError, Preempted, RfjaxError
from rfjax.inputs.paths import local_path
from rfjax.outputs import check_output_folder
from rfjax.study.cohorts import cohorts, failure_text, kind, run_cohort
from rfjax.study.planned_runs import PlannedRun, runs_of
from rfjax.study.run import run_config
from rfjax.study.settled_rate import KEY as RATE
from rfjax.study.settled_rate import settled_rate, sweep_folder
from rfjax.study.size import describe, size_of, spent_flops
from rfjax.trackers.table import check as check_trackers
from rfjax.training import checkpoint, run_folder
from rfjax.training.processes import distributed
from rfjax.training.processes.preemption import StopSignal

POINT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # the name of a folder
RESERVED = ("results", "report", "launch")  # folders of a study that hold no run


@dataclass(frozen=True)
class Point:
    """One point of a study: its id, with which the names of its runs' folders begin, and its config."""

    id: str
    config: Config

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """The runs that a study trains for this point: one run, or a trunk and its branches."""
        return runs_of(self.id, self.config)


@dataclass(frozen=True)
class Study:
    """A study's name and its points, in the order of its config file."""

    name: str
    points: tuple[Point, ...]

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        return tuple(run for point in self.points for run in point.runs)

    def point(self, id: str) -> Point:
        for point in self.points:
            if point.id == id:
                return point
        raise ConfigError(f"the study {self.name} has no point {id!r}; it has {', '.join(p.id for p in self.points)}")


@dataclass(frozen=True)
class Outcome:
    """How a run of a study ended."""

    run: PlannedRun
    error: str | None  # None if the run is trained and evaluated
    seconds: float  # wall time; runs trained together share their time equally


def load_study(path: str | Path, overrides: Mapping[str, object] | None = None) -> Study:
    """Returns the study of a config file; a file without `points()` is a study of one point, `main`.

    A point's own overrides are applied to the base config first, then `overrides`, which are the same for all points.
    Raises `ConfigError` for a file or a point that is not valid, and if two runs would lie in the same folder.
    """
    module = config_files.load_file(path)
    values, base_sweep = _take_sweep(config_files.returned_config(module, path))
    base = configs.from_dict(values)
    points = {"main": {}}
    if hasattr(module, "points"):
        if not callable(module.points):
            raise ConfigError(f"points of {path} is {_shown(module.points)}; it must be a function: def points(): ...")
        points = config_files.call(module, "points", path)
    if not isinstance(points, Mapping) or not points:
        given = f"points() of {path} returned {_shown(points)}"
        raise ConfigError(f"{given}; it must return a mapping of at least one id to its overrides")
    made = []
    for id, changes in points.items():
        if not isinstance(id, str) or not POINT_ID.fullmatch(id) or id in RESERVED:
            remedy = "use letters, digits, . _ -, at most 200 of them"
            raise ConfigError(f"point id {_shown(id)} of {path} cannot name a folder; {remedy}")
        if not isinstance(changes, Mapping) or not all(isinstance(key, str) for key in changes):
            example = '{"model.depth": 3}'
            given = f"point {id} of {path} is {_shown(changes)}"
            raise ConfigError(f"{given}; it must be a mapping of config keys to values, as {example}")
        try:
            made.append(Point(id, _config_of(base, base_sweep, {**changes, **(overrides or {})})))
        except ConfigError as error:
            raise ConfigError(f"point {id}: {error}") from None
    config_files.check_file(values, [point.config for point in made], overrides or {})
    study = Study(made[0].config.name, tuple(made))
    ids = [run.id for run in study.runs]
    if twice := next((id for id in ids if ids.count(id) > 1 or not POINT_ID.fullmatch(id)), None):
        remedy = "a point with train.branches has POINT-trunk and POINT-stepsT: give points other ids"
        raise ConfigError(f"two runs of {path} would lie in the folder {twice}, or its name is too long; {remedy}")
    return study


def _take_sweep(values: Mapping | ConfigDict) -> tuple[Mapping | ConfigDict, str | None]:
    """Returns a config's values and the folder of the sweep that its learning rate names; the values are then without
    the learning rate. If the rate names no sweep, returns all values and None."""
    train = values.get("train", None)
    folder = sweep_folder(train.get("learning_rate", None)) if isinstance(train, (Mapping, ConfigDict)) else None
    if folder is None:
        return values, None
    kept = {key: value for key, value in dict(train).items() if key != "learning_rate"}
    return {**dict(values), "train": kept}, folder


def _config_of(base: Config, base_sweep: str | None, changes: Mapping[str, object]) -> Config:
    """Returns the config of a point: `base` with `changes`. A learning rate `from:RUNS` is taken from the sweep in the
    folder RUNS. `base_sweep` is the RUNS of the base config, for points that do not set the rate."""
    folder = sweep_folder(changes[RATE]) if RATE in changes else base_sweep
    if folder is None:
        return configs.apply_overrides(base, changes)
    config = configs.apply_overrides(base, {key: value for key, value in changes.items() if key != RATE})
    stored = config.data.corpus == "prepared"  # the data of the other corpora follows from their names
    fingerprint = load_corpus(config.data, config.seed).fingerprint if stored else None
    return configs.apply_overrides(config, {RATE: settled_rate(folder, config, fingerprint)})


def _shown(value: object) -> str:
    """Returns a value from a user's file as one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def check_told_apart(study: Study) -> None:
    """Raises `ConfigError` if two points have the same config, for example because an override sets the field in which
    they differ."""
    first: dict[Config, str] = {}
    for point in study.points:
        other = first.setdefault(point.config, point.id)
        if other != point.id:
            raise ConfigError(
                f"the points {other} and {point.id} of {study.name} have one and the same config; give no --config "
                "override of "
                "what the points differ in, or run one with --point"
            )


def run_point(study: Study, point: Point, root: Path, *, stop: Callable[[], bool] | None = None) -> None:
    """Trains and evaluates the runs of one point, each in `root/<id>`. A run that was interrupted is resumed.

    Each due checkpoint is evaluated as training passes it. Evaluations that an earlier attempt missed are made from
    stored checkpoints. If a run fails, the point's other runs that can still be trained are trained, and then the first
    error is raised.
    """
    failures = {}
    with contextlib.ExitStack() as stack:
        stop = stop or stack.enter_context(StopSignal())
        for run in point.runs:
            try:
                if lack := _lack_of_trunk(run, root, failures):
                    raise RfjaxError(lack)
                _train_and_measure(study, run, root, stop)
            except Preempted:
                raise
            except RfjaxError as error:
                failures[run.id] = error
    if failures:
        raise next(iter(failures.values()))


def _train_and_measure(study, run, root, stop):
    place = {"role": run.role, "trunk": run.trunk(root, study.name), "keep_steps": run.keeps}
    run_config(run.config, root / run.id, study=study.name, point=run.point, **place, stop=stop)


def _lack_of_trunk(run: PlannedRun, root: Path, failures: Mapping[str, object]) -> str:
    """Returns the reason why a branch cannot begin after its trunk failed; "" for a run that can begin.

    A branch of a failed trunk can still begin if the trunk has a checkpoint at the departure, and can go on if it has a
    checkpoint of its own. `failures` has the ids of the runs that failed, with their errors.
    """
    if run.role != "branch" or run.trunk_id not in failures:
        return ""
    begun = checkpoint.steps_saved(root / run.id)
    if begun or run.departs in checkpoint.steps_saved(root / run.trunk_id):
        return ""
    return f"its trunk {run.trunk_id} failed before step {run.departs}, where it leaves: {failures[run.trunk_id]}"


def run_study(study: Study, root: str | Path, *, say: Callable[[str], None] = print) -> list[Outcome]:
    """Runs every point in turn. Returns the outcome of each run.

    If a run fails, the failure is noted and the next run begins. SIGTERM or SIGINT at any time raises `Preempted`, with
    everything saved. The processes of one job all train the same run at a time, and agree on how it ended. If a process
    fails alone, `RfjaxError` ends the job.
    """
    say = say if distributed.is_first() else lambda text: None
    together = max(point.config.train.together for point in study.points)
    if together > 1 and distributed.many():
        raise ConfigError(
            f"config.train.together is {together}, and one process alone must train such runs; give every process "
            "points of its own with --point, or set config.train.together=1"
        )
    check_told_apart(study)
    trackers = sorted({name for point in study.points for name in point.config.train.trackers})
    distributed.from_first(lambda: check_trackers(trackers))
    root = local_path(root, "the study's folder")
    _check_folder(study, root)
    with StopSignal() as stop:
        return _run_points(study, root, say, stop)


def _check_folder(study, root):
    """Refuses a study's folder that holds something else, before any point is trained. Otherwise a point might be
    refused only after hours."""
    if (root / "config.json").exists():
        raise ConfigError(
            f"{root} is the folder of one run (it has a config.json); give the study a --workdir of its own"
        )
    check_output_folder(root, "--workdir")
    differing = {}
    for run in study.runs:
        with contextlib.suppress(RfjaxError):  # a damaged file is refused when its run's turn comes
            differing[run.id] = run_folder.changed_keys(root / run.id, run.config)
    differing = {id: keys for id, keys in differing.items() if keys}
    if differing:
        id, keys = next(iter(differing.items()))
        raise ConfigError(
            f"{root} holds runs of another config: {len(differing)} of the {len(study.runs)} runs of {study.name} "
            f"differ from theirs, {id} in {', '.join('config.' + key for key in keys)}. Use another --workdir, or the "
            "config that they were trained with"
        )


def _run_points(study, root, say, stop):
    """Trains and evaluates the study's groups of runs in order. Returns the outcome of each run."""
    runs = study.runs
    outcomes: dict[str, Outcome] = {}
    sizes = {run.id: size_of(run.config) for run in runs}
    ahead = {run.id: spent_flops(run, sizes[run.id]) * (1.0 - _done_before(root / run.id, run)) for run in runs}
    began, spent, total = time.monotonic(), 0.0, sum(ahead.values())
    programs: dict = {}  # compiled evaluations, which points that are alike share
    last, failures = None, {}
    for group in _groups(study):
        before, last = last, kind(group[0].point, study.point(group[0].point).config)
        if last != before:
            jax.clear_caches()
            programs.clear()
        place = len(outcomes) + 1
        number = f"{place}-{place + len(group) - 1}" if len(group) > 1 else f"{place}"
        said = describe(group[0].id, group[0].config, sizes[group[0].id]) + (
            f"; with {len(group) - 1} more, the last {group[-1].id}" if len(group) > 1 else ""
        )
        say(f"[{number}/{len(runs)}] {said}{_time_left(began, spent, total)}")
        start = time.monotonic()
        if stop():
            raise Preempted(f"told to stop before point {group[0].id}; the same command goes on from there")
        errors = {run.id: lack for run in group if (lack := _lack_of_trunk(run, root, failures))}
        able = [run for run in group if run.id not in errors]
        if len(able) > 1:
            errors |= _run_together(study, able, root, programs, stop)
        elif able:
            errors |= _run_alone(study, able[0], root, place, stop)
        for run in group:
            error = errors.get(run.id)
            if error:
                say(f"    {run.id} failed, going on: {error}")
                _note_failure(root / run.id, error)
                total -= ahead[run.id]
                failures[run.id] = error
            else:
                spent += ahead[run.id]
            outcomes[run.id] = Outcome(run, error, (time.monotonic() - start) / len(group))
    return [outcomes[run.id] for run in runs]


def _groups(study: Study) -> list[list[PlannedRun]]:
    """Returns the groups of runs that are trained together, in order. For each cohort of points there is a group of its
    runs or trunks; if the points have branches, a group for each length of the branches follows."""
    together = cohorts({point.id: point.config for point in study.points})
    return [list(group) for ids in together for group in zip(*(study.point(id).runs for id in ids), strict=True)]


def _run_alone(study, run, root, number, stop) -> dict[str, str]:
    """Trains and measures one run. Returns {id: failure}, or {} if there is none; all processes return the same."""
    failure = None
    try:
        _train_and_measure(study, run, root, stop)
    except Preempted:
        raise
    except RfjaxError as raised:
        failure = raised
    except Exception as raised:
        failure = distributed.explained(raised)
        if isinstance(failure, Preempted):
            raise failure from raised
        if distributed.is_first():
            run_folder.note_traceback(root / run.id, raised)
        failure = RfjaxError(f"{type(failure).__name__}: {failure}")
    error = distributed.point_ended(number, failure)
    return {run.id: error} if error else {}


def _run_together(study, runs, root, programs, stop) -> dict[str, str]:
    """Trains and measures runs in one program. Returns {id: failure} for the runs that failed."""
    try:
        return run_cohort(runs, root, study.name, programs=programs, stop=stop)
    except Preempted:
        raise
    except Exception as raised:
        return dict.fromkeys((run.id for run in runs), failure_text(raised, root / runs[0].id))


def _note_failure(workdir: Path, error: str) -> None:
    """Writes a failure that came before training to status.json, for the report. (Training writes its own failures.)

    An existing status is kept, because a refused command must not harm a run that is done, or that another process is
    training. A folder that was moved away is not made again, because then it could not be moved back.
    """
    if not distributed.is_first() or run_folder.GONE in error:  # another process's error is known only as text
        return
    workdir.mkdir(parents=True, exist_ok=True)
    if run_folder.read_status(workdir)["state"] == "new":
        run_folder.write_status(workdir, "failed", 0, error)


def strangers(study: Study, root: Path) -> list[str]:
    """Returns a line for each of the study's runs that was not run yet, or whose config cannot be read. The lines are
    for a reader of the collected results.

    Raises `ConfigError` if the run in a folder has another config than its point gives it, because its results would
    be shown under the wrong config.
    """
    notes = []
    for run in study.runs:
        try:
            keys = run_folder.changed_keys(root / run.id, run.config)
        except RfjaxError as error:
            notes.append(f"{run.id} is not compared with its point: {error}")
            continue
        if keys is None:
            notes.append(f"not run: {run.id}")
        elif keys:
            raise ConfigError(
                f"{root / run.id} was trained with another config than {study.name} now gives it; it differs in "
                f"{', '.join('config.' + key for key in keys)}. Collect with the config that it was trained with"
            )
    return notes


def _done_before(workdir: Path, run: PlannedRun) -> float:
    """Returns the share of a run's own steps that earlier attempts trained. These steps do not count in the estimate of
    the time left."""
    with contextlib.suppress(RfjaxError):  # a damaged file is refused when its point's turn comes
        if run_folder.read_status(workdir)["state"] in ("done", "diverged"):
            return 1.0
        step = (run_folder.read_name(workdir) or {}).get("step", 0)
        return min(max(step - run.departs, 0) / run.own_steps, 1.0)
    return 0.0


def _time_left(began, spent, total) -> str:
    """Returns a text on the minutes left; "" while too little is done to tell. `began` is when this attempt began, by
    `time.monotonic`; `total` is the FLOPs of this attempt, and `spent` those that are done."""
    if spent <= total / 100:  # until then most of the time is compilation and evaluation
        return ""
    left = (time.monotonic() - began) * (total - spent) / spent
    return f" (about {left / 60:.0f} min left)"
