"""A trained run opened again from its folder, and measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from rfjax import config as configs
from rfjax.config import Config
from rfjax.data.corpus import Corpus, load_corpus
from rfjax.errors import ConfigError
from rfjax.evaluation.evaluate import Evaluator
from rfjax.evaluation.records import read_records
from rfjax.evaluation.schedule import due_at
from rfjax.flow.formulation import Formulation
from rfjax.flow.resolution import formulation_at
from rfjax.models.backbone import Backbone, make_backbone
from rfjax.training.checkpoint import choose_step
from rfjax.training.mesh import make_mesh
from rfjax.training.processes import distributed
from rfjax.training.processes.preemption import StopSignal
from rfjax.training.run_folder import check_corpus

# What may differ from the run's own config without making it another run.
MAY_DIFFER = ("evaluation.", "mesh.", "timestep_shift", "train.attention", "data.prepared.path", "data.prepared.models")


@dataclass(frozen=True)
class OpenRun:
    workdir: Path
    name: str
    config: Config
    corpus: Corpus
    backbone: Backbone
    mesh: jax.sharding.Mesh

    @property
    def formulation(self) -> Formulation:
        """At the corpus's own shape, the first of several."""
        return formulation_at(self.config, self.corpus.shapes.latents)


def read_run(workdir: Path) -> tuple[Config, str]:
    """(config, name) of the run in a folder. Raises `ConfigError` where there is none."""
    workdir = Path(workdir)
    for name in ("config.json", "run.json"):
        if not (workdir / name).is_file():
            raise ConfigError(f"{workdir} is not a run's folder: it has no {name}; give the folder that was --workdir")
    config = configs.from_dict(json.loads((workdir / "config.json").read_text()))
    return config, json.loads((workdir / "run.json").read_text())["run"]


def open_run(workdir: Path, overrides: Mapping[str, object]) -> OpenRun:
    """The run in a folder. Raises `ConfigError` where there is none, or an override would make
    it another run."""
    config, name = read_run(workdir)
    for key in overrides:
        if not key.startswith(MAY_DIFFER):
            raise ConfigError(
                f"config.{key} belongs to the training of {workdir} and cannot be changed now; "
                f"only {', '.join('config.' + name for name in MAY_DIFFER)} can"
            )
    config = configs.apply_overrides(config, overrides)
    formulation_at(config)  # a shift that it cannot have is refused
    corpus = load_corpus(config.data, config.seed)
    if any(key.startswith("data.") for key in overrides):  # another place is allowed, other data are not
        check_corpus(workdir, json.loads((Path(workdir) / "run.json").read_text()), corpus)
    backbone = make_backbone(
        config.model, corpus.shapes, compute_dtype=config.train.compute_dtype, attention=config.train.attention
    )
    return OpenRun(Path(workdir), name, config, corpus, backbone, make_mesh(config.mesh))


def evaluate_run(workdir: Path, overrides: Mapping[str, object], *, step: int | None, weights: str) -> list[dict]:
    """Measures one checkpoint with everything its config asks for, again where it has been, and
    returns the records."""
    run = open_run(workdir, overrides)
    step = distributed.from_first(lambda: choose_step(run.workdir, step))
    evaluator = Evaluator(run.config, run.workdir, run.name, run.corpus, run.backbone, run.mesh)
    due = [one for one in due_at(run.config, run.name, step, everything=True, only=weights)]
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


def record_lines(records: Sequence[Mapping]) -> list[str]:
    """The measured values for a console, one a line."""
    lines = []
    for record in records:
        key = record["key"]
        settings = " ".join(str(key[name]) for name in ("grid", "sampler") if key[name] != "-")
        lines.append(
            f"{key['run']} step {key['step']} {key['weights']}: {key['evaluation']} ({settings}, seed {key['seed']})"
        )
        for value in record["values"]:
            interval = "" if value["low"] is None else f"  [{value['low']:.4f}, {value['high']:.4f}]"
            measured = "not finite" if value["value"] is None else f"{value['value']:.4f}"
            lines.append(f"  {value['metric']:<25} {value['item']:<16}{measured}{interval}  n={value['n']}")
    return lines
