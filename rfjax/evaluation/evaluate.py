"""The evaluations of a run's checkpoints: which are due, and the record of each in the run's folder.

An evaluation that has a record is not done again, so a study that was stopped goes on with those that are missing.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from rfjax.config import Config
from rfjax.errors import ConfigError, Preempted, RfjaxError
from rfjax.evaluation.kinds import geneval, ranking, validation
from rfjax.evaluation.records import read_records, record_key, record_name
from rfjax.evaluation.schedule import Evaluation, Programs
from rfjax.training.checkpoint import read_facts, spent
from rfjax.training.processes import distributed, watch
from rfjax.training.processes.preemption import StopSignal
from rfjax.training.progress import note
from rfjax.training.run import Run, open_run

# An evaluation's name, in records and in config.evaluation -> its module, in the order they are done. A module has
#   due(config, step, last): the (sampler or None, own fields of a record's key) that the config asks for at a step;
#   check(run, programs): refuses before training what could not be measured after it;
#   measure(run, programs, evaluation, params, spent): computed by all processes; returns what one calls to write.
KINDS = {"validation": validation, "geneval": geneval, "ranking": ranking}


def due_at(
    config: Config, run: str, step: int, *, everything: bool = False, only: str | None = None
) -> list[Evaluation]:
    """The evaluations that the config asks for at a step. The last step has all of them, and so has any step with
    `everything`.

    `only` names the one set of weights to measure, whatever the config lists.
    """
    due, last = [], everything or step == config.train.steps
    for kind, module in KINDS.items():
        settings = getattr(config.evaluation, kind)
        listed = getattr(settings, "weights", config.evaluation.weights)
        common = {"run": run, "step": step, "corpus": config.data.label, "evaluation": kind, "seed": settings.seed}
        due += [
            Evaluation(kind, step, weights, record_key(**common, weights=weights, **own), sampler)
            for weights in ((only,) if only else listed)
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
        """The evaluations that are due at these steps and have no record yet."""
        there = set(
            distributed.from_first(lambda: [record_name(record["key"]) for record in read_records(self.run.workdir)])
        )
        due = [one for step in steps for one in due_at(self.run.config, self.run.name, step)]
        return [one for one in due if record_name(one.key) not in there]

    def measure(
        self,
        evaluations: Sequence[Evaluation],
        params: Mapping[str, object] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Measures and records evaluations.

        `params` are parameters by weights ("ema", "raw"); by default they are read from checkpoints. `stop` is polled
        before each evaluation. Told to stop, this raises `Preempted`, and the next attempt finds the rest missing.
        """
        with self.run.computing():
            for step, due in itertools.groupby(evaluations, key=lambda one: one.step):
                self._measure_checkpoint(step, list(due), params, stop)

    def _measure_checkpoint(self, step, due, params, stop):
        cost, held = spent(read_facts(self.run.workdir, step)), (None, None)
        for index, one in enumerate(due):
            if stop():
                raise Preempted(f"told to stop while measuring {self.run.workdir}; the same command goes on from there")
            if index == 0 and distributed.is_first():
                counts = Counter(f"{one.kind} of {one.weights}" for one in due)
                said = (name + (f" under {n} samplers" if n > 1 else "") for name, n in counts.items())
                note(f"{self.run.name}: evaluating step {step}: {', '.join(said)}")
            if held[0] != one.weights:  # those of one kind follow each other
                held = None  # two sets need not be there at once
                held = one.weights, params[one.weights] if params else self.run.restore_params(step, one.weights)
            with watch.doing(f"measuring step {step} ({one.kind})"):
                write = KINDS[one.kind].measure(self.run, self._programs, one, held[1], cost)
                failure = self._recorded(write)
            if failure:
                raise RfjaxError(failure)

    def _recorded(self, write) -> str | None:
        """Calls `write` in process 0 alone, because each file has one writer. Its failure is returned in all
        processes."""
        failure = None
        try:
            if distributed.is_first():
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
    weights: str = "ema",
) -> list[dict]:
    """The records of one checkpoint, the newest by default, measured (again) with everything its config asks for.

    `weights` are `ema` or `raw`. Raises `ConfigError` as `open_run` does, and for a config that asks for no evaluation.
    """
    run = open_run(workdir, overrides)
    step = run.choose_step(step)
    evaluator = Evaluator(run)
    due = due_at(run.config, run.name, step, everything=True, only=weights)
    if not due:
        raise ConfigError(
            f"the config of {workdir} asks for no evaluation: validation.examples and the prompts_per_task of "
            "geneval and ranking are 0; "
            "ask for one, as --config.evaluation.validation.examples=512"
        )
    with StopSignal() as stop:
        evaluator.measure(due, stop=stop)
    keys = [dict(one.key) for one in due]
    return distributed.from_first(lambda: [record for record in read_records(run.workdir) if record["key"] in keys])
