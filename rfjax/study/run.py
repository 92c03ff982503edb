"""Trains and measures one run in its folder, for `rfjax train` and for each run of a study that is trained alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path

from rfjax.config import Config
from rfjax.evaluation.evaluate import Evaluator
from rfjax.trackers import follow
from rfjax.training.kept_steps import evaluated_steps
from rfjax.training.loop import train
from rfjax.training.processes.preemption import StopSignal
from rfjax.training.run import Trunk, make_run


def run_config(
    config: Config,
    workdir: Path,
    *,
    study: str | None = None,
    point: str | None = None,
    init_from: str | None = None,
    role: str = "run",
    trunk: Trunk | None = None,
    keep_steps: Collection[int] = (),
    evaluate: bool = True,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Trains a config in a folder and, with `evaluate`, makes the evaluations that the config asks for.

    `trunk` is the trunk that a branch leaves. Checkpoints of `keep_steps` are saved and kept, for example for branches.
    `stop` is called between steps and evaluations; True means stop. The default returns True after SIGTERM or SIGINT.
    """
    with contextlib.ExitStack() as stack:
        stop = stop or stack.enter_context(StopSignal())
        run = make_run(config, workdir, study=study, point=point, role=role, trunk=trunk)
        stack.enter_context(follow([run]))
        evaluator = Evaluator(run) if evaluate else None

        def on_checkpoint(step, state):
            evaluator.measure(evaluator.missing([step]), {"ema": state.ema, "raw": state.params}, stop)

        measured = on_checkpoint if evaluate else None
        train(run, init_from=init_from, on_checkpoint=measured, keep_steps=keep_steps, stop=stop)
        if evaluate:
            evaluator.measure(evaluator.missing(sorted(evaluated_steps(run))), stop=stop)
