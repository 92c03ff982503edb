"""Points of a study that are trained in one program: which ones, and what is measured of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from rfjax.config import Config
from rfjax.data.corpus import load_corpus
from rfjax.errors import Preempted, RfjaxError
from rfjax.evaluation.evaluate import Evaluator
from rfjax.models.backbone import training_backbone
from rfjax.study.run import run_facts
from rfjax.training import run_folder
from rfjax.training.cohort import Member, may_join, train_cohort
from rfjax.training.loop import evaluation_steps
from rfjax.training.mesh import make_mesh, shardings


def kind(id: str, config: Config) -> object:
    """What points must share to be trained together; a point that is trained alone is of its own kind."""
    return may_join(config) if config.train.together > 1 else id


def cohorts(configs: Mapping[str, Config]) -> list[tuple[str, ...]]:
    """The ids of a study's points in parts to be trained one after another, ordered by each one's first.

    A part holds up to `train.together` points that differ in nothing but their formulation.
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


def told(error: Exception, workdir: Path) -> str:
    """A failure in a line; an unforeseen one leaves its traceback in the folder."""
    if isinstance(error, RfjaxError):
        return str(error)
    run_folder.note_traceback(workdir, error)
    return f"{type(error).__name__}: {error}"


def run_cohort(
    configs: Mapping[str, Config], root: Path, study: str, *, programs: dict, stop: Callable[[], bool]
) -> dict[str, str]:
    """Trains and evaluates points together, each in `root/<id>`; what went wrong, by id.

    `programs` are what evaluation compiled for cohorts like this one, and grows. A failed evaluation ends
    its own point. Raises as `train_cohort` does, where all of them are concerned.
    """
    shared = next(iter(configs.values()))
    corpus = load_corpus(shared.data, shared.seed)
    backbone, mesh = training_backbone(shared, corpus.shapes), make_mesh(shared.mesh)
    members, evaluators, failures = [], {}, {}
    for id, config in configs.items():
        workdir = root / id
        try:
            member = Member(config, workdir, run_facts(config, corpus, study, id))
            run = run_folder.run_name(member.facts, workdir)
            evaluators[workdir] = Evaluator(config, workdir, run, corpus, backbone, mesh, programs)
            members.append(member)
        except RfjaxError as error:
            failures[id] = str(error)

    def measure(member: Member, steps: Sequence[int], params=None):
        """Measures what is missing; its failure is this member's alone."""
        evaluator = evaluators[member.workdir]
        try:
            if missing := evaluator.missing(steps):
                own = params and params(member)
                evaluator.measure(missing, own and jax.tree.map(jax.device_put, own, shardings(mesh, own)), stop)
        except Preempted:
            raise
        except Exception as error:
            failures[member.workdir.name] = told(error, member.workdir)

    def on_checkpoint(step, live, weights):
        for member in live:
            if member.workdir.name not in failures:
                measure(member, [step], weights)

    ended = train_cohort(members, corpus=corpus, backbone=backbone, on_checkpoint=on_checkpoint, stop=stop)
    failures |= {workdir.name: told(error, workdir) for workdir, error in ended.items()}
    for member in members:
        if member.workdir.name not in failures:
            measure(member, sorted(evaluation_steps(member.config)))
    return failures
