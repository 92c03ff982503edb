"""The paired validation loss of a run's checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from rfjax.config import Config
from rfjax.data.buckets import validation_shares
from rfjax.evaluation.paired_loss import grid_name
from rfjax.evaluation.records import validation_record, write_record
from rfjax.evaluation.schedule import Evaluation, Programs, is_due
from rfjax.evaluation.validation import ValidationStep, compile_validation, make_validation_step, validation_loss
from rfjax.flow.matched import own_loss_ratio
from rfjax.training.run import Run


def due(config: Config, step: int, last: bool) -> list[tuple[None, dict]]:
    """Returns [(None, {"grid": its name})] for the config's grid of levels, at each multiple of `evaluation.every` and
    at the last step; [] at other steps, and if the config asks for no examples."""
    settings = config.evaluation.validation
    if not settings.examples or not is_due(config.evaluation.every, step, last):
        return []
    # The number of examples is part of the grid's name, because losses over different examples cannot be compared.
    return [(None, {"grid": f"{grid_name(settings.grid, settings.levels)}-n{settings.examples}"})]


def check(run: Run, programs: Programs) -> None:
    """Raises `ConfigError` for batches that cannot be split over the devices, and for too small a corpus."""
    examples = run.config.evaluation.validation.examples
    if examples:
        _step(run, programs)
        for part, count in zip(run.corpus.parts, validation_shares(run.corpus, examples), strict=True):
            if count:
                part.captions(np.array([count - 1]), "validation")  # refuses a corpus with fewer examples


def measure(run: Run, programs: Programs, evaluation: Evaluation, params, spent: dict) -> Callable[[], object]:
    began = time.monotonic()
    result = validation_loss(_step(run, programs), params, run.corpus)
    # The factors that turn each level's loss into the formulation's own loss.
    ratio = None if run.formulation.is_rectified_flow else own_loss_ratio(run.formulation, np.array(result.levels))
    extra = {} if ratio is None else {"own_loss_ratio": ratio.tolist()}
    record = validation_record(evaluation.key, result, seconds=time.monotonic() - began, extra=extra, **spent)
    return lambda: write_record(run.workdir, record)


def _step(run, programs) -> ValidationStep:
    apply, settings, split = run.backbone.apply, run.config.evaluation.validation, run.batch_sharding
    if "validation" not in programs:
        programs["validation"] = compile_validation(apply, settings, batch_sharding=split)
    return make_validation_step(
        apply, settings, formulation=run.formulation, batch_sharding=split, program=programs["validation"]
    )
