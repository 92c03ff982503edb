"""The `Run` value: a config and everything made from it, checked once and then passed whole.

`make_run` makes a run that is to be trained, measured or timed; `open_run` opens the run in a folder; `plan_run`
makes a run for shapes and costs alone. None of them writes anything, so a config that they refuse leaves no folder.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from rfjax import config as configs
from rfjax import limits
from rfjax.config import Config, ModelConfig
from rfjax.data.batch import BatchShapes, written_shape
from rfjax.data.buckets import format_shape, trained_parts
from rfjax.data.corpus import Corpus, load_corpus
from rfjax.data.stream import Stream, batch_sizes, stream_of
from rfjax.errors import ConfigError, RfjaxError
from rfjax.flow.formulation import Formulation
from rfjax.flow.resolution import formulation_at
from rfjax.inputs.paths import local_path
from rfjax.mesh_axes import batch_ways
from rfjax.models.backbone import Backbone, make_backbone, parameter_count, training_backbone
from rfjax.models.flops import forward_flops, patches, sequence_tokens, training_flops
from rfjax.training import adapted, checkpoint, checkpoint_facts, run_folder
from rfjax.training.mesh import BATCH, make_mesh, shardings
from rfjax.training.optimizer import check_leaves
from rfjax.training.processes import distributed
from rfjax.training.state import Params

# Fields of the config that overrides may change when a run is opened again: it stays the same run.
MAY_DIFFER = (
    "evaluation.",
    "mesh.",
    "timestep_shift",
    "train.attention",
    "train.remat",
    "train.unroll",
    "data.prepared.path",
    "data.prepared.models",
)


class Trunk(NamedTuple):
    """The run that a branch leaves: its folder, its name, and the step at which the branch leaves.

    With `skip_batches`, the branch has the same config as the trunk, but skips this many batches at that step.
    """

    path: str
    run: str
    step: int
    skip_batches: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One run: its config, the corpus it learns from, its network, its devices, and its name in every table.

    `mesh` is None for a run that is only planned, and `workdir` is None for a run without a folder. Raises
    `ConfigError` for latents that the network cannot take, for a bucket with fewer images than the batch that
    `tokens_per_batch` gives it, for a parameter that the parametrisation or the optimiser has no rule for, and for a
    formulation that does not allow the config's timestep shift.
    """

    config: Config
    corpus: Corpus
    backbone: Backbone
    mesh: Mesh | None = None
    name: str = ""
    study: str | None = None
    point: str | None = None
    workdir: Path | None = None
    role: str = "run"  # a name of `limits.ROLES`
    trunk: Trunk | None = None  # None unless the run left another
    stream: Stream = field(init=False)  # which examples each step takes
    formulation: Formulation = field(init=False)  # at the corpus's first latent shape

    def __post_init__(self):
        for part in self.corpus.parts:
            limits.check_latents(self.config.model, part.shapes.latents)
        object.__setattr__(self, "stream", stream_of(self.corpus, _batch_sizes(self.config, self.corpus)))
        check_leaves(self.config, self.backbone)
        object.__setattr__(self, "formulation", formulation_at(self.config, self.corpus.shapes.latents))

    # What a run costs, by formula.

    @property
    def parameter_count(self) -> int:
        """The number of trainable parameters."""
        return parameter_count(self.backbone)

    @property
    def flops_per_image(self) -> int:
        """Training FLOPs of an image, forward and backward. With buckets, the mean over the images of a whole cycle."""
        return self._mean(training_flops)

    @property
    def flops_forward_per_image(self) -> int:
        return self._mean(forward_flops)

    @property
    def flops_of_parts(self) -> tuple[int, ...]:
        """Training FLOPs of an image in each of the corpus's latent shapes."""
        return tuple(training_flops(self.config.model, part.shapes) for part in self.corpus.parts)

    @property
    def training_images(self) -> int | None:
        """The number of the corpus's training images; None for a corpus that can draw any number of them."""
        each = [getattr(part, "training_images", None) for part in self.corpus.parts]
        return None if None in each else sum(each)

    def _mean(self, count: Callable[[ModelConfig, BatchShapes], int]) -> int:
        images = self.images_of_cycle
        each = [count(self.config.model, part.shapes) for part in self.corpus.parts]
        return round(Fraction(sum(many * one for many, one in zip(images, each, strict=True)), sum(images)))

    @property
    def images_of_cycle(self) -> tuple[int, ...]:
        """How many images of each latent shape one cycle of steps (`data/buckets.py`) takes."""
        return tuple(quota * size for quota, size in zip(self.stream.schedule.quotas, self.stream.sizes, strict=True))

    @property
    def largest_part(self) -> int:
        """The index of the largest bucket: of the parts that have training images, the one whose examples have the most
        tokens (`sequence_tokens`).

        Of parts with equally many tokens it is the one whose examples take the most FLOPs, and then the first.
        """

        def cost(part: int) -> tuple[int, int]:
            model, shapes = self.config.model, self.corpus.parts[part].shapes
            return sequence_tokens(model, shapes), training_flops(model, shapes)

        return max(trained_parts(self.corpus), key=cost)

    def on_part(self, part: int) -> Run:
        """Returns the run as if its corpus were only the given part, which has one latent shape, with the batch size of
        that part."""
        if self.corpus.parts[part] is self.corpus:
            return self
        train = replace(self.config.train, batch_size=self.stream.sizes[part], tokens_per_batch=0)
        return replace(self, corpus=self.corpus.parts[part], config=replace(self.config, train=train))

    # How it is computed on its mesh.

    @property
    def batch_sharding(self) -> NamedSharding | None:
        """The sharding of a batch over the run's devices; None for one device."""
        return NamedSharding(self.mesh, BATCH) if self.mesh.size > 1 else None

    @property
    def batch_ways(self) -> int:
        """The number of parts into which a batch is split, each with equally many examples."""
        return batch_ways(self.mesh.shape)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """A context in which JAX computes on the run's mesh, with the precision of its config."""
        with jax.set_mesh(self.mesh), jax.default_matmul_precision(self.config.train.matmul_precision):
            yield

    def choose_step(self, step: int | None) -> int:
        """Chooses a stored checkpoint, by default the newest, and returns its step; the same in every process."""
        return distributed.from_first(lambda: checkpoint.choose_step(self.workdir, step))

    def restore_params(self, step: int, weights: str) -> Params:
        """Reads a checkpoint's weights by name (`ema`, `raw` or a power-function average), laid out over the run's
        mesh. The adapter of a tuned run is merged into the weights."""
        return adapted.restore_params(self.workdir, step, weights, lambda shapes: shardings(self.mesh, shapes))[0]


def make_run(
    config: Config,
    workdir: str | Path | None = None,
    *,
    study: str | None = None,
    point: str | None = None,
    like: Run | None = None,
    role: str = "run",
    trunk: Trunk | None = None,
) -> Run:
    """Makes the run of a config on all of JAX's devices, to be trained, measured or timed.

    With `like`, the run shares the corpus, network and mesh of that run; `config` must describe the same three. Raises
    `ConfigError` for an unknown corpus, for a network or an attention that does not fit, and for a mesh that does not
    match the devices.
    """
    if like is None:
        corpus, mesh = load_corpus(config.data, config.seed), make_mesh(config.mesh)
        backbone = training_backbone(config, corpus.shapes)
    else:
        corpus, backbone, mesh = like.corpus, like.backbone, like.mesh
    role = config.train.role if role == "run" else role
    parts = {"corpus": corpus, "backbone": backbone, "mesh": mesh, "role": role, "trunk": trunk}
    return _named(config, workdir, study, point, **parts)


def plan_run(config: Config, workdir: Path | None = None) -> Run:
    """Makes the run of a config for everything that follows from shapes alone: parameters, FLOPs, layouts.

    The run has no mesh, and has the attention that this machine would use. Corpora and networks of earlier plans are
    reused.
    """
    corpus = _corpus(config.data, config.seed)
    return _named(config, workdir, None, None, corpus=corpus, backbone=_network(config.model, corpus.shapes))


_corpus = functools.lru_cache(maxsize=8)(load_corpus)
_network = functools.lru_cache(make_backbone)


def _named(config: Config, workdir: str | Path | None, study: str | None, point: str | None, **parts) -> Run:
    """Makes a run and names it.

    The name comes from the run.json in its folder, even if the folder was renamed. Without a run.json it is
    study/point, or study/folder for a trunk or a branch. Outside a study it is the folder's name, or the config's.
    """
    workdir = None if workdir is None else local_path(workdir, "workdir")
    record = distributed.from_first(lambda: run_folder.read_name(workdir)) if workdir else None
    # A point has one trunk and several branches.
    own = workdir.name if parts.get("role") in ("trunk", "branch") else point
    named = "/".join(part for part in (study, own) if study and part) or (
        workdir.absolute().name if workdir else config.name
    )
    name = (record or {}).get("run") or named
    return Run(config=config, name=name, study=study, point=point, workdir=workdir, **parts)


def read_config(workdir: Path) -> Config:
    """The config of the run in a folder. Raises `ConfigError` if config.json or run.json is missing."""
    for name in ("config.json", "run.json"):
        if not (workdir / name).is_file():
            raise ConfigError(f"{workdir} is not a run's folder: it has no {name}; give the folder that was --workdir")
    return run_folder.read_config(workdir)


def open_run(workdir: str | Path, overrides: Mapping[str, object] = MappingProxyType({})) -> Run:
    """Opens the run in a folder. Raises `ConfigError` if there is none, or if an override would make it another run."""
    workdir = local_path(workdir, "workdir")
    config = read_config(workdir)
    for key in overrides:
        if not key.startswith(MAY_DIFFER):
            raise ConfigError(
                f"config.{key} belongs to the training of {workdir} and cannot be changed now; "
                f"only {', '.join('config.' + name for name in MAY_DIFFER)} can"
            )
    run = make_run(configs.apply_overrides(config, overrides), workdir)
    check_record(run)
    record = run_folder.read_name(workdir)
    if "corpus_fingerprint" in record:  # the data may have moved, but not changed
        run_folder.check_corpus(workdir, record, run.corpus)
    return run


# run.json


def check_record(run: Run) -> None:
    """Raises `RfjaxError` if the run's config contradicts the run.json in its folder.

    In that case one of the two files belongs to another run, or a key of config.json was lost and has its default.
    """
    record = distributed.from_first(lambda: run_folder.read_name(run.workdir)) or {}
    now = describe(run, None)
    for name in checkpoint_facts.OWNER:
        if not name.startswith("corpus") and record.get(name, now[name]) != now[name]:
            differs = f"{name} is {now[name]} by the one and {record[name]} by the other"
            remedy = "restore them, or use another --workdir"
            raise RfjaxError(f"{run.workdir}: config.json and run.json belong to different runs: {differs}; {remedy}")


def describe(run: Run, parent: dict | None) -> dict:
    """The content of a new run's run.json. `parent` is None, or the `lineage.Parent` of the run's weights as a dict."""
    config, corpus = run.config, run.corpus
    return {
        "schema": 1,
        "run": run.name,
        "study": run.study,
        "point": run.point,
        "depth": config.model.depth,
        "hidden": config.model.width,
        "heads": config.model.heads,
        "seed": config.seed,
        "learning_rate": config.train.learning_rate,
        "params": run.parameter_count,
        "flops_per_image": run.flops_per_image,
        "flops_forward_per_image": run.flops_forward_per_image,
        "buckets": _buckets(run),
        "image_tokens": [patches(config.model, part.shapes)[0] for part in corpus.parts],
        "training_images": run.training_images,
        "batch_size": config.train.batch_size,
        "steps": config.train.steps,
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.fingerprint,
        "made_with": dict(corpus.made_with),
        "parent": parent,
        "starts": [],
    } | _place(run)


def _place(run: Run) -> dict:
    """Returns the fields of run.json for a run's role, if it is not `run`, and for the trunk that it left, if it left
    one; {} for a plain run."""
    facts = {} if run.role == "run" else {"role": run.role}
    trunk = (
        {name: value for name, value in run.trunk._asdict().items() if value or name != "skip_batches"}
        if run.trunk
        else None
    )
    return facts | ({"trunk": trunk} if trunk else {})


def _batch_sizes(config: Config, corpus: Corpus) -> tuple[int, ...]:
    """Computes the batch size of each part of a corpus: `config.train.batch_size`, or what `tokens_per_batch` gives it.

    Raises `ConfigError` if the budget of tokens does not give the largest bucket exactly `config.train.batch_size`
    examples. With a budget, also raises it for a bucket with fewer images than its batch: a step would repeat images.
    """
    size, budget = config.train.batch_size, config.train.tokens_per_batch
    if not budget:
        return (size,) * len(corpus.parts)
    tokens = [sequence_tokens(config.model, part.shapes) for part in corpus.parts]
    most = max(tokens[part] for part in trained_parts(corpus))
    budget = size * most if budget == -1 else budget
    if not size * most <= budget < 2 * size * most:
        given = f"config.train.tokens_per_batch is {budget}, and config.train.batch_size={size} examples of the largest"
        wanted = f"give at least {size * most} and below {2 * size * most}, or -1 for {size * most}"
        raise ConfigError(f"{given} bucket have {size * most} tokens; {wanted}, or change the batch size")
    sizes = batch_sizes(tokens, size, budget)
    for number in trained_parts(corpus) if len(corpus.parts) > 1 else ():
        part, images = corpus.parts[number], getattr(corpus.parts[number], "training_images", None)
        if images is not None and images < sizes[number]:
            given = f"the bucket {format_shape(part.shapes.latents)} of {corpus.name} has {images} training images"
            many = f"config.train.tokens_per_batch gives it batches of {sizes[number]}"
            raise ConfigError(f"{given}, and {many}; lower config.train.batch_size, or leave the bucket out")
    return sizes


def _buckets(run: Run) -> list[dict] | None:
    """The aspect buckets that the run trains on, each with its share of the steps; None for one latent shape."""
    parts = run.corpus.parts
    if len(parts) == 1:
        return None
    return [
        {
            "latent_size": list(written_shape(part.shapes.latents)[:-1]),
            "steps_of_cycle": quota,
            "flops_per_image": flops,
        }
        | ({"batch_size": size} if run.config.train.tokens_per_batch else {})
        for part, quota, flops, size in zip(
            parts, run.stream.schedule.quotas, run.flops_of_parts, run.stream.sizes, strict=True
        )
    ]


def begin(run: Run, record: dict, facts: dict, step: int, mesh: Mesh, together: int = 1) -> dict:
    """Records in run.json that an attempt begins at `step`, from a checkpoint with `facts`, with `together` runs in one
    program. Returns the new record. Also writes config.json if there is none, and the status "running".

    A branch also records what its trunk had cost when the branch left, so that this cost is not counted twice.
    """
    if not (run.workdir / "config.json").exists():
        run_folder.write_json(run.workdir / "config.json", configs.to_dict(run.config))
    if run.trunk and step == run.trunk.step and facts:
        record = record | {"trunk": record["trunk"] | checkpoint.spent(facts)}
    record = write_record(run, run_folder.started(record, step, mesh, together), facts, step)
    run_folder.write_status(run.workdir, "running", step)
    return record


def write_record(run: Run, record: dict, facts: dict, step: int) -> dict:
    """Writes run.json with the step and cost of a checkpoint with `facts`; returns what was written."""
    record = record | {"step": step} | (checkpoint.spent(facts) if facts else {})
    run_folder.write_json(run.workdir / "run.json", record)
    return record
