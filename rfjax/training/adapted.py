"""Reads the weights of any run. The checkpoints of a tuned run hold only an adapter (`models/lora.py`).

run.json of a tuned run names the checkpoint that the adapter belongs to, and a hash of its checksums. So an adapter is
never merged with weights other than those it was tuned on.
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

from rfjax.errors import RfjaxError
from rfjax.models import lora
from rfjax.training import checkpoint, run_folder
from rfjax.training.processes import distributed
from rfjax.training.run_folder import AdapterFacts

KEYS = {"ema": "ema", "raw": "params"}  # weights -> their part of a checkpoint


def adapter_of(workdir: Path) -> AdapterFacts | None:
    """The checkpoint that a tuned run's adapter belongs to; None for a run whose checkpoints hold whole weights."""
    return (run_folder.read_name(workdir) or {}).get("adapter")


def describe(base: Path, step: int, weights: str, workdir: Path, rank: int, alpha: float) -> AdapterFacts:
    """The `adapter` of a new tuned run's run.json."""
    path = os.path.relpath(base.absolute(), workdir.absolute())
    sums = _sums(checkpoint.read_facts(base, step), weights)
    return {"base": path, "step": step, "weights": weights, "sums": sums, "rank": rank, "alpha": alpha}


def _sums(facts: dict, weights: str) -> str:
    """A hash of the checksums of a checkpoint's weights."""
    key = KEYS[weights] + "/"
    sums = {name: value for name, value in facts["checksums"].items() if name.startswith(key)}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


def scale_of(facts: AdapterFacts) -> float:
    """The number by which the product a b of an adapter's factors is multiplied."""
    return facts["alpha"] / facts["rank"]


def base_of(workdir: Path, facts: AdapterFacts) -> Path:
    """The folder of the run whose weights an adapter changes. Raises `RfjaxError` if its checkpoint is missing, or no
    longer has the weights that were tuned."""
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
    """The weights that an adapter changes. `sharding` is as in `checkpoint.restore_params`."""
    folder = distributed.from_first(lambda: base_of(workdir, facts))
    return checkpoint.restore_params(folder, facts["step"], facts["weights"], sharding)[0]


def merged(base, adapter, scale: float):
    """The parameters of an adapted network, laid out as `base` is."""
    program = jax.jit(lora.merge, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, base))
    return program(base, adapter, np.float32(scale))


def restore_params(workdir: Path, step: int | None, weights: str, sharding: Callable | None = None):
    """As `checkpoint.restore_params`, with whole parameters also for a tuned run."""
    tree, saved = checkpoint.restore_params(workdir, step, weights, sharding)
    facts = distributed.from_first(lambda: adapter_of(workdir))
    if facts is None:
        return tree, saved
    return merged(restore_base(workdir, facts, sharding), tree, scale_of(facts)), saved


def read_adapter(workdir: Path, step: int, key: str) -> dict[str, dict[str, Float[np.ndarray, " ..."]]]:
    """{path of a kernel: {"a", "b"}} of a tuned run's checkpoint, in host memory; `key` is `ema` or `params`."""
    factors: dict = {}
    for name, array in checkpoint.read_arrays(workdir, step, key):
        kernel, part = name.removeprefix(key + "/").rsplit("/", 1)
        factors.setdefault(kernel, {})[part] = array
    return factors


def read_arrays(workdir: Path, step: int, key: str) -> Iterator[tuple[str, Shaped[np.ndarray, " ..."]]]:
    """As `checkpoint.read_arrays`, with whole parameters also for a tuned run: one kernel at a time is merged."""
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
