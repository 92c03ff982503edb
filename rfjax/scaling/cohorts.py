"""Points of a study that are trained in one program: which ones, and what is measured of each."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from rfjax.config import Config
from rfjax.data.corpus import load_corpus
from rfjax.errors import ConfigError, Preempted, RfjaxError
from rfjax.evaluation.evaluate import Evaluator
from rfjax.flow.formulation import parse_formulation
from rfjax.models import training_backbone
from rfjax.scaling.run import run_facts
from rfjax.training import distributed
from rfjax.training.cohort import Member, may_join, train_cohort
from rfjax.training.loop import evaluation_steps
from rfjax.training.mesh import make_mesh, shardings
from rfjax.training.run_folder import run_name


def cohorts(configs: Mapping[str, Config]) -> list[tuple[str, ...]]:
    """The ids of a study's points in parts to be trained one after another, ordered by each one's first.

    A part holds up to `train.together` points that differ in nothing but their formulation.
    """
    alike: dict[object, list[str]] = {}
    for id, config in configs.items():
        alike.setdefault(may_join(config) if config.train.together > 1 else id, []).append(id)
    parts = []
    for ids in alike.values():
        size = configs[ids[0]].train.together
        parts += [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
    order = list(configs)
    return sorted(parts, key=lambda part: order.index(part[0]))


def run_cohort(
    configs: Mapping[str, Config], root: Path, study: str, *, programs: dict, stop: Callable[[], bool]
) -> dict[str, str]:
    """Trains and evaluates points together, each in `root/<id>`; what went wrong, by id.

    `programs` are what evaluation compiled for cohorts like this one, and grows. A failed evaluation ends
    its own point. Raises as `train_cohort` does, where all of them are concerned.
    """
    if distributed.many():
        raise ConfigError(
            f"config.train.together is {len(configs)}, and runs that are trained together are one process's; give every "
            "process points of its own with --point, or set config.train.together=1"
        )
    shared = next(iter(configs.values()))
    corpus = load_corpus(shared.data, shared.seed)
    backbone, mesh = training_backbone(shared, corpus.shapes), make_mesh(shared.mesh)
    members, evaluators, failures = [], {}, {}
    for id, config in configs.items():
        workdir = root / id
        try:
            parse_formulation(config.formulation, config.timestep_shift)
            member = Member(config, workdir, run_facts(config, corpus.shapes, study, id))
            run = run_name(member.facts, workdir)
            evaluators[workdir] = Evaluator(config, workdir, run, corpus, backbone, mesh, programs)
            members.append(member)
        except RfjaxError as error:
            failures[id] = str(error)

    def measure(member: Member, steps: Sequence[int], params=None):
        """Measures what is missing; its failure is this member's alone."""
        evaluator = evaluators[member.workdir]
        try:
            missing = evaluator.missing(steps)
            placed = params and jax.tree.map(jax.device_put, params(member), shardings(mesh, params(member)))
            evaluator.measure(missing, placed, stop)
        except Preempted:
            raise
        except RfjaxError as error:
            failures[member.workdir.name] = str(error)
        except Exception as error:
            (member.workdir / "error.txt").write_text(traceback.format_exc())
            failures[member.workdir.name] = f"{type(error).__name__}: {error}"

    def on_checkpoint(step, live, weights):
        for member in live:
            if member.workdir.name not in failures:
                measure(member, [step], weights)

    ended = train_cohort(members, corpus=corpus, backbone=backbone, on_checkpoint=on_checkpoint, stop=stop)
    failures |= {workdir.name: str(error) for workdir, error in ended.items()}
    for member in members:
        if member.workdir.name not in failures:
            measure(member, sorted(evaluation_steps(member.config)))
    return failures
