"""Reads the weights of any run. For a tuned run, merges its adapter into the weights of its base run.

A tuned run's checkpoints hold only an adapter (`models/lora.py`). Its run.json names the checkpoint of the base run
that the adapter belongs to, with a hash of that checkpoint's checksums. So an adapter is merged only into the weights
that it was tuned on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Shaped

from rfjax.errors import ConfigError, RfjaxError
from rfjax.models import lora
from rfjax.training import checkpoint, run_folder, snapshots
from rfjax.training.mesh import path_name
from rfjax.training.processes import distributed
from rfjax.training.run_folder import AdapterFacts
from rfjax.weight_names import width_of

KEYS = {"ema": "ema", "raw": "params"}  # name of the weights -> key of their tree in a checkpoint


def adapter_of(workdir: Path) -> AdapterFacts | None:
    """Returns the facts about a tuned run's adapter and its base run; None for a run whose checkpoints hold whole
    weights."""
    return (run_folder.read_name(workdir) or {}).get("adapter")


def describe(base: Path, step: int, weights: str, workdir: Path, rank: int, alpha: float) -> AdapterFacts:
    """Makes the entry `adapter` of run.json for a new tuned run in `workdir`. The adapter belongs to the weights
    `weights`, `ema` or `raw`, in the checkpoint `step` of the base run in the folder `base`."""
    path = os.path.relpath(base.absolute(), workdir.absolute())
    sums = _sums(checkpoint.read_facts(base, step), weights)
    return {"base": path, "step": step, "weights": weights, "sums": sums, "rank": rank, "alpha": alpha}


def _sums(facts: dict, weights: str) -> str:
    """Returns a hash of the checksums of a checkpoint's weights."""
    key = KEYS[weights] + "/"
    sums = {name: value for name, value in facts["checksums"].items() if name.startswith(key)}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


def scale_of(facts: AdapterFacts) -> float:
    """Returns the factor alpha / rank of the product a b in the merged kernel W + alpha / rank * (a b)."""
    return facts["alpha"] / facts["rank"]


def base_of(workdir: Path, facts: AdapterFacts) -> Path:
    """Returns the folder of a tuned run's base run.

    Raises `RfjaxError` if the base run's checkpoint is missing, or if its weights have changed since the tuning.
    """
    folder = Path(os.path.normpath(workdir.absolute() / facts["base"]))
    what = f"{workdir} holds an adapter of step {facts['step']} of {folder}"
    if facts["step"] not in checkpoint.steps_saved(folder):
        remedy = f"put it back, or name its folder in adapter.base of {workdir / 'run.json'}"
        raise RfjaxError(f"{what}, and that checkpoint is missing; {remedy}")
    if _sums(checkpoint.read_facts(folder, facts["step"]), facts["weights"]) != facts["sums"]:
        raise RfjaxError(
            f"{what}, and that checkpoint has other weights now; restore the weights that the adapter was trained on"
        )
    return folder


def restore_base(workdir: Path, facts: AdapterFacts, sharding=None):
    """Reads the base run's weights, without the adapter.

    `sharding` is one sharding for all arrays, or a function from the tree of their shapes to a tree of shardings.
    """
    folder = distributed.from_first(lambda: base_of(workdir, facts))
    return checkpoint.restore_params(folder, facts["step"], facts["weights"], sharding)[0]


def merged(base, adapter, scale: float):
    """Merges an adapter into the parameters `base`. The result is sharded as `base` is."""
    program = jax.jit(lora.merge, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, base))
    return program(base, adapter, np.float32(scale))


def restore_params(workdir: Path, step: int | None, weights: str, sharding: Callable | None = None):
    """Reads the parameters of a checkpoint, by default the newest; for a tuned run, with the adapter merged.

    Arguments and result are those of `checkpoint.restore_params`: `weights` is `ema` or `raw`, and the result is
    (parameters, facts). `weights` may also name a power-function average, such as `power-0.12`
    (`rfjax.weight_names`).
    """
    facts = distributed.from_first(lambda: adapter_of(workdir))
    if (width := width_of(weights)) is not None:
        if facts is not None:
            raise ConfigError(f"{workdir} was tuned, and a tuned run keeps no power-function averages; use ema or raw")
        step = distributed.from_first(lambda: checkpoint.choose_step(workdir, step))
        return snapshots.restore(workdir, step, width, sharding), checkpoint.read_facts(workdir, step)
    tree, saved = checkpoint.restore_params(workdir, step, weights, sharding)
    if facts is None:
        return tree, saved
    return merged(restore_base(workdir, facts, sharding), tree, scale_of(facts)), saved


def read_weights(workdir: Path, step: int, weights: str) -> Iterator[tuple[str, Shaped[np.ndarray, " ..."]]]:
    """Yields (path, array) for each array of a checkpoint's weights, in host memory. One array is read at a time, but a
    power-function average is made as a whole. `weights` is named as in `restore_params`."""
    if width_of(weights) is None:
        for name, array in read_arrays(workdir, step, KEYS[weights]):
            yield name.removeprefix(KEYS[weights] + "/"), array
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(restore_params(workdir, step, weights)[0]):
        yield path_name(path), np.asarray(leaf)


def read_adapter(workdir: Path, step: int, key: str) -> dict[str, dict[str, Float[np.ndarray, " ..."]]]:
    """Reads a tuned run's adapter into host memory, as {path of a kernel: {"a", "b"}}; `key` is `ema` or `params`."""
    factors: dict = {}
    for name, array in checkpoint.read_arrays(workdir, step, key):
        kernel, part = name.removeprefix(key + "/").rsplit("/", 1)
        factors.setdefault(kernel, {})[part] = array
    return factors


def read_arrays(workdir: Path, step: int, key: str) -> Iterator[tuple[str, Shaped[np.ndarray, " ..."]]]:
    """Yields (path, array) for each array of `params` or `ema` (`key`), one at a time in host memory.

    For a tuned run these are the base run's arrays with the adapter merged; for any other run, the checkpoint's arrays.
    """
    facts = adapter_of(workdir)
    if facts is None:
        yield from checkpoint.read_arrays(workdir, step, key)
        return
    folder, factors, scale = base_of(workdir, facts), read_adapter(workdir, step, key), np.float32(scale_of(facts))
    theirs = KEYS[facts["weights"]]
    for name, array in checkpoint.read_arrays(folder, facts["step"], theirs):
        kernel = name.removeprefix(theirs + "/")
        if kernel in factors:
            array = np.asarray(array + scale * lora.product(factors[kernel], kernel, array.shape))
        yield f"{key}/{kernel}", array
