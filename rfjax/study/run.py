"""One run trained and measured in its folder: what `rfjax train` does, and a study with each point."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from rfjax.config import Config, ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.data.buckets import schedule_of
from rfjax.data.corpus import Corpus, load_corpus
from rfjax.evaluation.evaluate import Evaluator
from rfjax.flow.resolution import formulation_at
from rfjax.models.backbone import training_backbone
from rfjax.models.flops import forward_flops, training_flops
from rfjax.training import run_folder
from rfjax.training.loop import evaluation_steps, train
from rfjax.training.mesh import make_mesh
from rfjax.training.processes import distributed
from rfjax.training.processes.preemption import StopSignal
from rfjax.training.run_folder import RunFacts


def run_facts(config: Config, corpus: Corpus, study: str | None = None, point: str | None = None) -> RunFacts:
    """What run.json says of a run beside its config."""
    several = len(corpus.parts) > 1
    return RunFacts(
        study=study,
        point=point,
        flops_per_image=mean_flops(training_flops, config.model, corpus),
        flops_forward_per_image=mean_flops(forward_flops, config.model, corpus),
        flops_of_buckets=tuple(training_flops(config.model, part.shapes) for part in corpus.parts) if several else (),
    )


def mean_flops(count: Callable[[ModelConfig, BatchShapes], int], model: ModelConfig, corpus: Corpus) -> int:
    """`count`, operations of one example, as the mean over the latent shapes of a whole cycle of steps, rounded."""
    if len(corpus.parts) == 1:
        return count(model, corpus.shapes)
    quotas = schedule_of(corpus).quotas
    return round(
        Fraction(
            sum(quota * count(model, part.shapes) for quota, part in zip(quotas, corpus.parts, strict=True)),
            sum(quotas),
        )
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
            return run_config(
                config, workdir, study=study, point=point, init_from=init_from, evaluate=evaluate, stop=came
            )
    formulation_at(config)  # refused before the folder is claimed
    corpus = load_corpus(config.data, config.seed)
    backbone = training_backbone(config, corpus.shapes)
    facts = run_facts(config, corpus, study, point)
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
