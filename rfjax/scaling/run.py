"""One run trained and measured in its folder: what `rfjax train` does, and a study with each point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rfjax.config import Config
from rfjax.data.batch import BatchShapes
from rfjax.data.corpus import load_corpus
from rfjax.evaluation.evaluate import Evaluator
from rfjax.flow.formulation import parse_formulation
from rfjax.models import training_backbone
from rfjax.scaling.flops import forward_flops, training_flops
from rfjax.training import distributed, run_folder
from rfjax.training.loop import evaluation_steps, train
from rfjax.training.mesh import make_mesh
from rfjax.training.preemption import StopSignal
from rfjax.training.run_folder import RunFacts


def run_facts(config: Config, shapes: BatchShapes, study: str | None = None, point: str | None = None) -> RunFacts:
    """What run.json says of a run beside its config."""
    return RunFacts(
        study=study,
        point=point,
        flops_per_image=training_flops(config.model, shapes),
        flops_forward_per_image=forward_flops(config.model, shapes),
    )


def run_config(
    config: Config,
    workdir: Path,
    *,
    study: str | None = None,
    point: str | None = None,
    init_from: str | None = None,
    evaluate: bool = True,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Trains a config in a folder and, with `evaluate`, measures what it asks for.

    `stop` is polled between steps and evaluations; by default SIGTERM and SIGINT set it.
    """
    if stop is None:
        with StopSignal() as came:
            return run_config(config, workdir, study=study, point=point, init_from=init_from, evaluate=evaluate, stop=came)
    parse_formulation(config.formulation, config.timestep_shift)  # refused before the folder is claimed
    corpus = load_corpus(config.data, config.seed)
    backbone = training_backbone(config, corpus.shapes)
    facts = run_facts(config, corpus.shapes, study, point)
    run = distributed.from_first(lambda: run_folder.run_name(facts, workdir))
    evaluator = Evaluator(config, workdir, run, corpus, backbone, make_mesh(config.mesh)) if evaluate else None

    def on_checkpoint(step, state):
        evaluator.measure(evaluator.missing([step]), {"ema": state.ema, "raw": state.params}, stop)

    train(
        config,
        workdir,
        corpus=corpus,
        backbone=backbone,
        facts=facts,
        init_from=init_from,
        on_checkpoint=on_checkpoint if evaluate else None,
        stop=stop,
    )
    if evaluate:
        evaluator.measure(evaluator.missing(sorted(evaluation_steps(config))), stop=stop)
