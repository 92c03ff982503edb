"""Groups the points of a study so that one program can train a group, trains each group, and measures its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from rfjax.config import Config
from rfjax.errors import Preempted, RfjaxError
from rfjax.evaluation.evaluate import Evaluator
from rfjax.study.planned_runs import PlannedRun
from rfjax.trackers import follow
from rfjax.training import run_folder
from rfjax.training.cohort import may_join, train_cohort
from rfjax.training.kept_steps import evaluated_steps
from rfjax.training.mesh import shardings
from rfjax.training.run import Run, make_run


def kind(id: str, config: Config) -> object:
    """Returns a key by which points are grouped into cohorts: equal for points that may be trained together, and the
    point's own id for a point that is trained alone."""
    return may_join(config) if config.train.together > 1 else id


def cohorts(configs: Mapping[str, Config]) -> list[tuple[str, ...]]:
    """Returns the ids of a study's points, grouped into cohorts, in the order in which the cohorts are trained: that of
    their first points.

    A cohort holds up to `train.together` points that differ in nothing but formulation, timestep shift and learning
    rate (`training.cohort.OWN`).
    """
    alike: dict[object, list[str]] = {}
    for id, config in configs.items():
        alike.setdefault(kind(id, config), []).append(id)
    parts = []
    for ids in alike.values():
        size = configs[ids[0]].train.together
        parts += [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
    order = list(configs)
    return sorted(parts, key=lambda part: order.index(part[0]))


def failure_text(error: Exception, workdir: Path) -> str:
    """Returns a failure as text. If it is no `RfjaxError`, the text has its class, and its traceback is written to
    `workdir`."""
    if isinstance(error, RfjaxError):
        return str(error)
    run_folder.note_traceback(workdir, error)
    return f"{type(error).__name__}: {error}"


def run_cohort(
    planned: Sequence[PlannedRun], root: Path, study: str, *, programs: dict, stop: Callable[[], bool]
) -> dict[str, str]:
    """Trains and evaluates runs together, each in `root/<id>`. Returns {id: failure} for the runs that failed.

    `programs` holds the evaluation programs compiled for cohorts like this one; new programs are added. If an
    evaluation fails, that run is trained to its end, but not measured again. Raises `Preempted` if `stop` says so, and
    `ConfigError` for runs that cannot be trained together.
    """
    runs: list[Run] = []
    evaluators, failures = {}, {}
    for each in planned:
        place = {"role": each.role, "trunk": each.trunk(root, study), "like": runs[0] if runs else None}
        try:
            run = make_run(each.config, root / each.id, study=study, point=each.point, **place)
            evaluators[run] = Evaluator(run, programs)
            runs.append(run)
        except RfjaxError as error:
            failures[each.id] = str(error)
    if not runs:
        return failures

    def measure(run: Run, steps: Sequence[int], params=None):
        """Makes the missing evaluations of a run at `steps`. `params(run)` returns the run's weights on the host; if
        `params` is None, weights are read from checkpoints. A failure is noted for this run only."""
        evaluator = evaluators[run]
        try:
            if missing := evaluator.missing(steps):
                own = params and params(run)
                evaluator.measure(missing, own and jax.tree.map(jax.device_put, own, shardings(run.mesh, own)), stop)
        except Preempted:
            raise
        except Exception as error:
            failures[run.workdir.name] = failure_text(error, run.workdir)

    def on_checkpoint(step, live, weights):
        for run in live:
            if run.workdir.name not in failures:
                measure(run, [step], weights)

    with follow(runs):
        ended = train_cohort(runs, on_checkpoint=on_checkpoint, keep_steps=planned[0].keeps, stop=stop)
        failures |= {workdir.name: failure_text(error, workdir) for workdir, error in ended.items()}
        for run in runs:
            if run.workdir.name not in failures:
                measure(run, sorted(evaluated_steps(run)))
    return failures
