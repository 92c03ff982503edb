"""The evaluations of a run's checkpoints: which are due, and the record of each in the run's folder.

An evaluation that has a record is not done again, so a study that was stopped goes on with the missing evaluations.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from rfjax.config import Config
from rfjax.errors import ConfigError, Preempted, RfjaxError
from rfjax.evaluation.kinds import geneval, ranking, temporal, validation
from rfjax.evaluation.records import check_may_record, check_still_run, lag_note, read_records, record_key, record_name
from rfjax.evaluation.schedule import Evaluation, Programs
from rfjax.training import snapshots
from rfjax.training.checkpoint import read_facts, spent
from rfjax.training.processes import distributed, watch
from rfjax.training.processes.preemption import StopSignal
from rfjax.training.progress import note
from rfjax.training.run import Run, open_run
from rfjax.weight_names import width_of

# The evaluations in the order in which they run: name, in records and in config.evaluation -> module. A module has
#   due(config, step, last): (sampler or None, fields of the record's key) of each evaluation due at a step;
#   check(run, programs): refuses before training what could not be measured afterwards;
#   measure(run, programs, evaluation, params, spent): is called by all processes; returns a function that writes the
#     record, which process 0 alone calls.
KINDS = {"validation": validation, "geneval": geneval, "ranking": ranking, "temporal": temporal}


def due_at(
    config: Config, run: str, step: int, *, everything: bool = False, only: Sequence[str] = ()
) -> list[Evaluation]:
    """Returns the evaluations that the config asks for at a step. At the last step, or with `everything`, all are due.

    `only` names the weights to measure; if `only` is empty, the weights that the config lists are measured.
    """
    due, last = [], everything or step == config.train.steps
    for kind, module in KINDS.items():
        settings = getattr(config.evaluation, kind)
        listed = getattr(settings, "weights", config.evaluation.weights)
        common = {"run": run, "step": step, "corpus": config.data.label, "evaluation": kind, "seed": settings.seed}
        due += [
            Evaluation(kind, step, weights, record_key(**common, weights=weights, **own), sampler)
            for weights in (only or listed)
            for sampler, own in module.due(config, step, last)
        ]
    return due


class Evaluator:
    """Measures checkpoints of one run. Compiled programs serve all checkpoints."""

    def __init__(self, run: Run, programs: Programs | None = None):
        self.run, self._programs = run, {} if programs is None else programs
        for module in KINDS.values():
            module.check(run, self._programs)

    def missing(self, steps: Sequence[int]) -> list[Evaluation]:
        """Lists the evaluations that are due at these steps of the run and have no record yet."""
        records = distributed.from_first(lambda: [record_name(each["key"]) for each in read_records(self.run.workdir)])
        due = [evaluation for step in steps for evaluation in due_at(self.run.config, self.run.name, step)]
        return [evaluation for evaluation in due if record_name(evaluation.key) not in records]

    def measure(
        self,
        evaluations: Sequence[Evaluation],
        params: Mapping[str, object] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Measures and records evaluations.

        `params` is {name of the weights: the network's parameters}; by default parameters are read from checkpoints.
        `stop` is called before each evaluation. If `stop` returns true, `Preempted` is raised; the next attempt makes
        the evaluations that are left.
        """
        with self.run.computing():
            for step, due in itertools.groupby(evaluations, key=lambda evaluation: evaluation.step):
                self._measure_checkpoint(step, list(due), params, stop)

    def _measure_checkpoint(self, step, due, params, stop):
        cost, held = spent(read_facts(self.run.workdir, step)), (None, None)
        for index, evaluation in enumerate(due):
            if stop():
                raise Preempted(f"told to stop while measuring {self.run.workdir}; the same command goes on from there")
            if index == 0 and distributed.is_first():
                counts = Counter(f"{each.kind} of {each.weights}" for each in due)
                said = (name + (f" under {n} samplers" if n > 1 else "") for name, n in counts.items())
                note(f"{self.run.name}: evaluating step {step}: {', '.join(said)}")
            weights = evaluation.weights
            if held[0] != weights:
                held = None  # frees the old parameters before the new ones are read
                held = weights, params[weights] if params else self.run.restore_params(step, weights)
            with watch.doing(f"measuring step {step} ({evaluation.kind})"):
                write = KINDS[evaluation.kind].measure(self.run, self._programs, evaluation, held[1], cost)
                failure = self._write_in_first(write)
            if failure:
                raise RfjaxError(failure)
        if distributed.is_first() and any(each.kind == "validation" for each in due):
            if said := lag_note(read_records(self.run.workdir), step):
                note(f"{self.run.name}: {said}")

    def _write_in_first(self, write) -> str | None:
        """Calls `write` in process 0 alone, because each file has one writer. All processes return the text of the
        failure of `write`, or None. If there is one process alone, the failure is raised instead."""
        failure = None
        try:
            if distributed.is_first():
                check_still_run(self.run.workdir)
                write()
        except Exception as error:
            if not distributed.many():
                raise
            failure = error
        return distributed.first_failure(failure)


def evaluate_run(
    workdir: str | Path,
    overrides: Mapping[str, object] = MappingProxyType({}),
    *,
    step: int | None = None,
    weights: str | Sequence[str] = "ema",
) -> list[dict]:
    """Makes all the config's evaluations of one checkpoint, by default the newest, and returns their records.

    Earlier records are replaced. `weights` are one or several of `ema`, `raw` and names of power-function averages,
    such as `power-0.12` (`training/snapshots.py`). Raises `ConfigError` as `open_run` does, and for a config that asks
    for no evaluation.
    """
    run = open_run(workdir, overrides)
    distributed.from_first(lambda: check_may_record(run.workdir))
    step, only = run.choose_step(step), (weights,) if isinstance(weights, str) else tuple(weights)
    snapshots.check_widths(run.workdir, step, [width for width in map(width_of, only) if width])  # before any work
    evaluator = Evaluator(run)
    due = due_at(run.config, run.name, step, everything=True, only=only)
    due.sort(key=lambda evaluation: only.index(evaluation.weights))  # each weights are read or made once
    if not due:
        raise ConfigError(
            f"the config of {workdir} asks for no evaluation: validation.examples and the prompts_per_task of geneval, "
            "ranking and temporal are 0; ask for one, for example with --config.evaluation.validation.examples=512"
        )
    with StopSignal() as stop:
        evaluator.measure(due, stop=stop)
    keys = [dict(evaluation.key) for evaluation in due]
    return distributed.from_first(lambda: [record for record in read_records(run.workdir) if record["key"] in keys])
