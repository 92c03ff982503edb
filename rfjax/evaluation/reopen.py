"""A trained run opened again from its folder: to measure it, or to sample from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

from rfjax import config as configs, limits
from rfjax.config import Config
from rfjax.data.buckets import described, trained_parts
from rfjax.data.corpus import Corpus, load_corpus
from rfjax.errors import ConfigError
from rfjax.evaluation.due import due_at, sampler_name
from rfjax.evaluation.evaluate import Evaluator
from rfjax.evaluation.generate import make_generator, prompt_ids
from rfjax.evaluation.pictures import png_bytes, strip
from rfjax.evaluation.records import read_records
from rfjax.files import write_whole
from rfjax.flow.formulation import Formulation
from rfjax.flow.resolution import formulation_at
from rfjax.models import Backbone, make_backbone
from rfjax.training import distributed
from rfjax.training.checkpoint import choose_step, restore_params
from rfjax.training.mesh import BATCH, make_mesh, shardings
from rfjax.training.preemption import StopSignal
from rfjax.training.progress import note
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

    def sampled_latents(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """The latents' shape for a `size` (height, width) that was asked for, by default the corpus's own, the first of
        several. Raises `ConfigError`, with the shapes that were trained on, for one that the network cannot take."""
        if size is None:
            return self.corpus.shapes.latents
        latents = (*size, self.corpus.shapes.latents[2])
        try:
            if min(size) < 1:
                raise ConfigError(f"latents of {described(size)} have no pixels")
            limits.check_latents(self.config.model, latents)
        except ConfigError as error:
            trained = ", ".join(described(self.corpus.parts[part].shapes.latents) for part in trained_parts(self.corpus))
            raise ConfigError(f"--latent-size={described(size)}: {error}. {self.name} was trained on {trained}") from None
        return latents


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
        lines.append(f"{key['run']} step {key['step']} {key['weights']}: {key['evaluation']} ({settings}, seed {key['seed']})")
        for value in record["values"]:
            interval = "" if value["low"] is None else f"  [{value['low']:.4f}, {value['high']:.4f}]"
            measured = "not finite" if value["value"] is None else f"{value['value']:.4f}"
            lines.append(f"  {value['metric']:<25} {value['item']:<16}{measured}{interval}  n={value['n']}")
    return lines


def sample_run(
    workdir: Path,
    overrides: Mapping[str, object],
    *,
    prompts: Sequence[str],
    out: Path,
    step: int | None,
    weights: str,
    samples: int,
    negative: str | None,
    seed: int,
    latent_size: tuple[int, int] | None = None,
) -> Path:
    """Images of captions as one PNG, a row per caption, and what made them as JSON beside it.

    `latent_size` is (height, width) in latent pixels; by default the corpus's, the first of several.
    """
    if samples < 1:
        raise ConfigError(f"--samples is {samples}; it must be at least 1")
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out is {out}; pictures are written as PNG, so its name must end in .png")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed is {seed}; it must lie in [0, 2^32)")
    run = open_run(workdir, overrides)
    step = distributed.from_first(lambda: choose_step(run.workdir, step))
    sampler, latents_shape = run.config.evaluation.sampler, run.sampled_latents(latent_size)
    ids = prompt_ids(len(prompts), samples)
    unknown = run.corpus.unknown_words([*prompts, negative or ""])
    if unknown and distributed.is_first():
        words = ", ".join(map(repr, unknown))
        note(f"warning: the corpus {run.corpus.name} has no caption with {words}; the network has not learnt what that means")
    context, pooled = run.corpus.encode(list(prompts))
    against = None if negative is None else run.corpus.encode([negative])
    size, spread, batch_sharding = min(len(ids), 64), None, None  # one process needs one device only
    if distributed.many():
        parts = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
        size, batch_sharding = -(-size // parts) * parts, NamedSharding(run.mesh, BATCH)
        spread = lambda shapes: shardings(run.mesh, shapes)
    params, _ = restore_params(run.workdir, step, weights, spread)
    generate = make_generator(
        run.backbone.apply, sampler, formulation_at(run.config, latents_shape), latents_shape, batch_size=size,
        batch_sharding=batch_sharding,
    )  # fmt: skip
    with jax.default_matmul_precision(run.config.train.matmul_precision):
        latents = generate(params, seed, ids, context[ids[:, 0]], pooled[ids[:, 0]], against)
    if not distributed.is_first():
        return out
    images = run.corpus.to_images(latents)
    rows = [strip(images[i * samples : (i + 1) * samples], gap=2, side=128)[0] for i in range(len(prompts))]
    picture = np.concatenate([np.pad(row, ((0, 2), (0, 0), (0, 0)), constant_values=1.0) for row in rows])
    facts = {
        "run": run.name,
        "step": step,
        "weights": weights,
        "sampler": sampler_name(sampler, run.config.timestep_shift, run.config.timestep_shift_by_area),
        "latent_size": list(latents_shape[:2]),
        "negative": "null condition (zeros)" if negative is None else negative,
        "seed": seed,
        "samples": samples,
        "prompts": list(prompts),
    }
    write_whole({out: png_bytes(picture), out.with_suffix(".json"): json.dumps(facts, indent=1) + "\n"})
    return out
