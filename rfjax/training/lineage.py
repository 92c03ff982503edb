"""Starting a run from another's checkpoint: weights and average, with a fresh optimiser."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfjax.errors import ConfigError
from rfjax.training import checkpoint, run_folder
from rfjax.training.mesh import path_name

# Scales that start at one and so leave the network as it was: a child may have them anew.
_NEW_SCALE = re.compile(r"(query|key)_norm2?/scale$")


class Parent(NamedTuple):
    """Where a run's weights come from; `images` and `flops` count its own ancestors' too."""

    path: str
    run: str
    step: int
    images: int
    flops: float

    def is_named_by(self, text: str) -> bool:
        """Whether `RUN@STEP`, or `RUN` alone, may name it; its checkpoint need not be there still."""
        folder, at, step = _split(text)
        return Path(folder).resolve() == Path(self.path).resolve() and (not at or step == str(self.step))


def _split(text: str) -> tuple[str, str, str]:
    folder, at, step = text.rpartition("@")
    return (folder, at, step) if at else (text, "", "")


def parse_init(text: str) -> tuple[Path, int]:
    """`RUN@STEP`, or `RUN` for its newest checkpoint, as (folder, step).

    Raises `ConfigError` naming what there is.
    """
    folder, at, step = _split(text)
    saved = checkpoint.steps_saved(Path(folder))
    if not saved:
        where = Path(folder) / checkpoint.FOLDER
        raise ConfigError(f"--init={text}: no checkpoint in {where}; name a run's folder as RUN@STEP")
    if at and not step.isdigit():
        raise ConfigError(f"--init={text}: {step!r} is no step; write RUN@STEP, such as {folder}@{saved[-1]}")
    chosen = int(step) if at else saved[-1]
    if chosen not in saved:
        raise ConfigError(f"--init={text}: no checkpoint of step {chosen}; {folder} has {', '.join(map(str, saved))}")
    return Path(folder), chosen


def read_parent(text: str) -> Parent:
    """The parent that `RUN@STEP` names."""
    folder, step = parse_init(text)
    facts = checkpoint.read_facts(folder, step)
    run = (run_folder.read_json(folder / "run.json") or {}).get("run", folder.name)
    return Parent(str(folder), run, step, facts["images"], facts["flops"])


def inherit(parent: Parent, params, ema):
    """(params, ema) of the parent's checkpoint, for `ShapeDtypeStruct`s with shardings.

    QK-norm scales that the parent lacks start at one. Raises `ConfigError` naming any other
    parameter that only one of the two has, or whose shape differs.
    """
    stored = checkpoint.stored_shapes(Path(parent.path), parent.step)
    wanted = {"params": params, "ema": ema}
    given = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(stored["params"])}
    asked = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    where = f"--init={parent.path}@{parent.step}"
    missing = sorted(name for name in asked.keys() - given.keys() if not _NEW_SCALE.search(name))
    if missing:
        remedy = "but for qk_norm, config.model must be as it was there"
        raise ConfigError(f"{where}: that run has no parameter {missing[0]}; {remedy}")
    extra = sorted(given.keys() - asked.keys())
    if extra:
        remedy = "set config.model as it was there"
        raise ConfigError(f"{where}: this run has no parameter {extra[0]}, which the checkpoint has; {remedy}")
    for name, shape in asked.items():
        if name in given and tuple(given[name]) != tuple(shape):
            shapes = f"{list(given[name])} there and {list(shape)} here"
            raise ConfigError(f"{where}: parameter {name} is {shapes}; set config.model and config.data as they were")

    new = asked.keys() - given.keys()
    found, _ = checkpoint.restore_step(Path(parent.path), parent.step, _without(wanted, new))
    found = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found)}

    def fill(path, leaf):
        name = path_name(path)
        if name in found:
            return found[name]
        return jax.jit(lambda: jnp.ones(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()

    filled = jax.tree_util.tree_map_with_path(fill, wanted)
    return filled["params"], filled["ema"]


def stream_offset(parent: Parent | None, batch_size: int) -> int:
    """The step whose data and noise a child's step 0 uses: the first beyond what its line has seen."""
    return math.ceil(parent.images / batch_size) if parent else 0


def _without(tree: dict, names: set[str], prefix: str = "") -> dict:
    """`tree` less the parameters `names` under its top-level entries."""
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
