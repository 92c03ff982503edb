"""Starts a run from the weights and the average of another run's checkpoint, with a new optimiser state.

A run on clips may start from a run on images. The weights of an image's patch are then repeated for each frame of a
clip's patch, and the kernel that embeds the patch is divided by the number of frames. So equal frames are embedded and
predicted as the single image is. If the parent has no attention over time, this attention starts as in a new run, with
a gate of zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfjax import config as schema
from rfjax.config import Config
from rfjax.data.stream import Stream
from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs.paths import local_text
from rfjax.training import checkpoint, run_folder
from rfjax.training.loss import run_keys
from rfjax.training.mesh import path_name
from rfjax.training.run import Run, Trunk

# Parameters that may be new in a child: QK-norm scales, which start at one, and those of the attention over time.
_MAY_BE_NEW = re.compile(r"(query|key)_norm2?/scale$|/time/")

# Parameters with an axis for a patch's values: (that axis, whether they are divided by the number of frames).
_SPREAD = {"patch_embed/kernel": (0, True), "final/linear/kernel": (1, False), "final/linear/bias": (0, False)}

# Fields of config.model and config.data (or the beginnings of their names) that decide no parameter's shape, except
# perhaps the shape of stored positions.
_SHAPE_NOTHING = (
    "data.corpus",
    "data.prepared",
    "data.frames",
    "data.buckets",
    "data.image_size",
    "data.context_tokens",
    "model.position_",
    "model.rotary_",
    "model.first_text_tokens",
)
_REMEDY = (
    "Set config.model and config.data as they are there; only config.model.qk_norm may be turned on anew, and "
    "config.model.temporal_attention and temporal_patch_size on weights of single frames"
)


class Parent(NamedTuple):
    """The checkpoint that a run's weights come from. `images` and `flops` include those of the parent's ancestors."""

    path: str
    run: str
    step: int
    images: int
    flops: float

    @classmethod
    def of(cls, facts: run_folder.ParentFacts) -> Parent:
        """Makes the parent from the record in run.json."""
        return cls(**{name: facts[name] for name in cls._fields})

    def is_named_by(self, text: str) -> bool:
        """Whether `RUN@STEP`, or `RUN` alone, can mean this parent. The checkpoint may have been deleted since."""
        folder, at, step = _split(text)
        return Path(folder).resolve() == Path(self.path).resolve() and (not at or step == str(self.step))


def _split(text: str, option: str = "--init") -> tuple[str, str, str]:
    text = local_text(text, option)
    folder, at, step = text.rpartition("@")
    return (folder, at, step) if at else (text, "", "")


def parse_origin(text: str, option: str = "--init") -> tuple[Path, int]:
    """Parses `RUN@STEP`, or `RUN`, which means the run's newest checkpoint. Returns (folder, step).

    `option` is the option that gave the text, for messages. Raises `ConfigError` for a checkpoint that does not exist,
    naming those that do.
    """
    folder, at, step = _split(text, option)
    saved = checkpoint.steps_saved(Path(folder))
    if not saved:
        where = Path(folder) / checkpoint.FOLDER
        raise ConfigError(f"{option}={text}: no checkpoint in {where}; name a run's folder as RUN@STEP")
    if at and not step.isdigit():
        raise ConfigError(f"{option}={text}: {step!r} is no step; write RUN@STEP, such as {folder}@{saved[-1]}")
    chosen = int(step) if at else saved[-1]
    if chosen not in saved:
        raise ConfigError(f"{option}={text}: no checkpoint of step {chosen}; {folder} has {', '.join(map(str, saved))}")
    return Path(folder), chosen


def read_parent(text: str, option: str = "--init") -> Parent:
    """Returns the parent that `text` names, read as in `parse_origin`. Raises `ConfigError` if it is a tuned run."""
    folder, step = parse_origin(text, option)
    facts = checkpoint.read_facts(folder, step)
    record = run_folder.read_name(folder) or {"run": folder.name}
    if "adapter" in record:
        remedy = "export it, merged, and import that (rfjax export, rfjax import)"
        raise ConfigError(
            f"{option}={text}: {folder} is a tuned run, whose checkpoints hold an adapter alone; {remedy}"
        )
    return Parent(str(folder), record["run"], step, facts["images"], facts["flops"])


def check_fits(parent: Parent, run: Run) -> None:
    """Raises `ConfigError` if a run cannot `inherit` the parent's weights, or if the corpora of the run and of its
    parent were made by different frozen models.

    If the weights do not fit, the error names the config keys in which the two networks differ, with both values. If
    the configs do not differ, the error names a parameter that differs.
    """
    given = _spread_shapes(_stored_shapes(parent), _frames(parent, run.config))
    asked = _shapes(jax.eval_shape(run.backbone.init, jax.random.key(0)))
    problem = _mismatch(given, asked)
    if problem:
        raise ConfigError(
            f"--init={parent.path}@{parent.step}: its weights do not fit this run's model: "
            f"{'; '.join(_differences(parent, run.config)) or problem}. {_REMEDY}"
        )
    _check_made_with(parent, run.corpus)


def _check_made_with(parent, corpus):
    """Raises `ConfigError` if the parent's corpus was prepared with other frozen models than `corpus`; the parent's
    run.json names them.

    The same weights would misread latents of another autoencoder and features of another text encoder. If only one of
    the two runs uses an encoder, that is allowed: networks can handle an empty slot, because condition dropout empties
    slots in training.
    """
    theirs = (run_folder.read_name(Path(parent.path)) or {}).get("made_with") or {}
    ours = corpus.made_with
    other = [name for name in ours if name in theirs and theirs[name] != ours[name]]
    if other:
        said = "; ".join(
            f"{name}: {_short(theirs[name])} in the parent and {_short(ours[name])} in this run" for name in other
        )
        raise ConfigError(
            f"--init={parent.path}@{parent.step}: the parent's corpus and the corpus {corpus.name} were made by "
            f"different frozen models: {said}. Prepare the corpus with the models and the latent scaling of the "
            "parent's corpus"
        )


def _short(value) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def inherit(parent: Parent, params, ema, run: Run):
    """Reads from the parent's checkpoint the weights with which a run starts. Returns (params, ema).

    The arguments `params` and `ema` are trees of `ShapeDtypeStruct`s with shardings. Weights of an image's patch are
    spread over the frames of a clip's patch. If the parent lacks QK-norm scales or an attention over time, these start
    as in a new run. Raises `ConfigError`, naming a parameter, if only one of the two networks has it or if its shape
    differs.
    """
    wanted = {"params": params, "ema": ema}
    frames = _frames(parent, run.config)
    stored, asked = _stored_shapes(parent), _shapes(params)
    problem = _mismatch(_spread_shapes(stored, frames), asked)
    if problem:
        raise ConfigError(f"--init={parent.path}@{parent.step}: {problem}. {_REMEDY}")
    new = asked.keys() - stored.keys()

    def as_stored(path, leaf):
        return jax.ShapeDtypeStruct(stored[_inner(path)], leaf.dtype, sharding=getattr(leaf, "sharding", None))

    kept = jax.tree_util.tree_map_with_path(as_stored, _without(wanted, new))
    found, _ = checkpoint.restore_step(Path(parent.path), parent.step, kept)
    found = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found)}
    fresh = _first_values(run, params, new)

    def fill(path, leaf):
        array = found.get(path_name(path))
        return fresh[_inner(path)] if array is None else _spread(array, _inner(path), frames, leaf.sharding)

    filled = jax.tree_util.tree_map_with_path(fill, wanted)
    return filled["params"], filled["ema"]


def _inner(path) -> str:
    """A parameter's name without its first part, which is params or ema."""
    return path_name(path).split("/", 1)[1]


def _frames(parent: Parent, config: Config) -> int:
    """The number of frames over which the weights that embed and predict the parent's patches are spread.

    If the parent's patches have one frame, and the run's patches have the same height, width and channels, this is the
    number of frames in a patch of the run; else 1.
    """
    theirs = _config_of(parent)
    if theirs is None or theirs.model.temporal_patch_size != 1:
        return 1
    sizes = ("model.patch_size", "data.channels")
    alike = all(attrgetter(field)(theirs) == attrgetter(field)(config) for field in sizes)
    return config.model.temporal_patch_size if alike else 1


def _spread(array, name: str, frames: int, sharding):
    """Spreads a parameter of an image's patch over `frames` frames. Returns any other parameter unchanged."""
    if frames == 1 or name not in _SPREAD:
        return array
    axis, divided = _SPREAD[name]

    def repeated(x):
        return jnp.concatenate([x / frames if divided else x] * frames, axis)

    return jax.jit(repeated, out_shardings=sharding)(array)


def _spread_shapes(shapes: dict[str, tuple[int, ...]], frames: int) -> dict[str, tuple[int, ...]]:
    def spread(name, shape):
        axis = _SPREAD[name][0] if name in _SPREAD else None
        return tuple(size * frames if place == axis else size for place, size in enumerate(shape))

    return {name: spread(name, shape) for name, shape in shapes.items()}


def _first_values(run: Run, params, names: set[str]) -> dict[str, jax.Array]:
    """The values with which the parameters `names` start in a new run."""
    if not names:
        return {}
    places = {path_name(path): leaf.sharding for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def first(key):
        leaves = jax.tree_util.tree_leaves_with_path(run.backbone.init(key))
        return {path_name(path): leaf for path, leaf in leaves if path_name(path) in names}

    key, _ = run_keys(run.config.seed)
    return jax.jit(first, out_shardings={name: places[name] for name in names})(key)


def stream_offset(parent: Parent | None, stream: Stream) -> int:
    """Returns the step of the stream that a run uses at its own step 0: the first step that none of its ancestors has
    used; 0 for a run without a parent."""
    return stream.step_after(parent.images) if parent else 0


class Skip(NamedTuple):
    """Batches that a run skipped: from its step `step` on, it uses the data and noise that come `batches` steps
    later."""

    step: int
    batches: int


def skips_of(record: Mapping) -> tuple[Skip, ...]:
    """Returns the batches that a run and its trunk skipped, in the order of steps. `record` is the run's run.json."""
    return tuple(Skip(*skip) for skip in record.get("skips", ()))


def new_skips(trunk: Trunk | None, parent: Path | None) -> dict:
    """Returns {"skips": [[step, batches], ...]} for a new run's run.json; {} if no batch is skipped.

    A branch has the skips of its trunk and its own. A run that starts from a parent's weights begins after the batches
    that the parent skipped.
    """
    folder = Path(trunk.path) if trunk else parent
    skips = skips_of((run_folder.read_name(folder) or {}) if folder else {})
    if trunk and trunk.skip_batches:
        skips += (Skip(trunk.step, trunk.skip_batches),)
    elif not trunk and skips:
        skips = (Skip(0, sum(skip.batches for skip in skips)),)
    return {"skips": [list(skip) for skip in skips]} if skips else {}


def _shapes(params) -> dict[str, tuple[int, ...]]:
    return {path_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _stored_shapes(parent: Parent) -> dict[str, tuple[int, ...]]:
    return _shapes(checkpoint.stored_shapes(Path(parent.path), parent.step)["params"])


def _mismatch(given: dict[str, tuple[int, ...]], asked: dict[str, tuple[int, ...]]) -> str:
    """Says which parameter does not fit: one that is only in `given` or only in `asked`, or one of another shape.

    Returns "" if all fit.
    """
    missing = sorted(name for name in asked.keys() - given.keys() if not _MAY_BE_NEW.search(name))
    if missing:
        return f"the parent has no parameter {missing[0]}, which this run has"
    extra = sorted(given.keys() - asked.keys())
    if extra:
        return f"this run has no parameter {extra[0]}, which the parent has"
    other = next((name for name in asked if name in given and asked[name] != given[name]), None)
    return (
        f"parameter {other} is {list(given[other])} in the parent and {list(asked[other])} in this run" if other else ""
    )


def _differences(parent: Parent, config: Config) -> list[str]:
    """Describes how the two runs differ in the config keys that decide shapes of parameters.

    The list is empty if the parent's config is missing.
    """
    theirs = _config_of(parent)
    if theirs is None:
        return []
    anew = {
        "model.qk_norm": not theirs.model.qk_norm,
        "model.temporal_attention": theirs.model.temporal_attention == "joint",
        "model.temporal_patch_size": _frames(parent, config) > 1,
    }
    fits_anyway = (*_SHAPE_NOTHING, *(field for field, fits in anew.items() if fits))
    return [
        f"config.{key} is {attrgetter(key)(theirs)} in the parent and {attrgetter(key)(config)} in this run"
        for key in schema.differences(theirs, config)
        if key.startswith(("model.", "data.")) and not key.startswith(fits_anyway)
    ]


def _config_of(parent: Parent) -> Config | None:
    """The parent's config; None if it cannot be read."""
    try:
        return run_folder.read_config(Path(parent.path))
    except RfjaxError:
        return None


def _without(tree: dict, names: set[str], prefix: str = "") -> dict:
    """`tree` without the parameters `names`. A name is a parameter's path without the first key (params or ema)."""
    kept = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            inner = _without(value, names, f"{path}/")
            if inner:
                kept[key] = inner
        elif path.split("/", 1)[1] not in names:
            kept[key] = value
    return kept
