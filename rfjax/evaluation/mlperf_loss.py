"""MLPerf's validation loss: each example at one level of t, which a file assigns to it.

MLPerf Training, text-to-image: the levels are t = 0/8 ... 7/8. Each validation example has one of them. The loss is the
mean over the levels of each level's mean. It costs an eighth of the `mlperf` grid of `rfjax.evaluation.validation`,
which sees every example at every level. The two losses are different estimators, because here the levels have different
examples. So this loss has a name of its own, and is never paired with a grid's loss. The noise is the same function of
(seed, example id, level) as for the grids.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float32, Int, UInt32

from rfjax.config import ValidationConfig
from rfjax.errors import ConfigError
from rfjax.evaluation.paired_loss import GRIDS, standard_error
from rfjax.evaluation.records import Measured, check_may_record, check_still_run, make_record, record_key, write_record
from rfjax.evaluation.validation import check_divisible, validation_batches, validation_noise
from rfjax.flow.formulation import RECTIFIED_FLOW, Formulation
from rfjax.flow.matched import Matched, matched, velocity_of
from rfjax.flow.path import RectifiedFlow, interpolate, velocity_target
from rfjax.inputs.text import read_text
from rfjax.training.checkpoint import read_facts, spent
from rfjax.training.mesh import spread
from rfjax.training.processes import distributed
from rfjax.training.progress import bar
from rfjax.training.run import open_run

EVALUATION = "validation_mlperf"
METRIC = "mlperf_loss"
LEVELS = 8


@dataclass(frozen=True, eq=False)
class AssignedLoss:
    """The squared error of the velocity, as a mean over a latent's elements, for each example at its level."""

    levels: tuple[float, ...]  # t of each level
    assigned: Int[np.ndarray, " n"]  # the number of each example's level
    losses: Float32[np.ndarray, " n"]

    def _of(self, number):
        return self.losses[self.assigned == number].astype(np.float64)

    @property
    def level_losses(self) -> tuple[float, ...]:
        """The mean loss at each level, over the level's examples."""
        return tuple(float(self._of(number).mean()) for number in range(len(self.levels)))

    @property
    def level_stderrs(self) -> tuple[float, ...]:
        """The standard error of the mean loss at each level; nan for a level with one example."""
        return tuple(standard_error(self._of(number)) for number in range(len(self.levels)))

    @property
    def loss(self) -> float:
        """The headline: the mean over levels of the levels' means."""
        return float(np.mean(self.level_losses))

    @property
    def stderr(self) -> float:
        """The standard error of `loss`. Levels have different examples, so their errors are independent."""
        return math.sqrt(sum(error**2 for error in self.level_stderrs)) / len(self.levels)


def read_levels(path: str | os.PathLike, levels: int = LEVELS) -> Int[np.ndarray, " n"]:
    """Reads the number of each validation example's level from a text file, with one integer a line and one line for
    each example.

    Raises `ConfigError` for a line that is not a level, and if levels have different numbers of examples: the mean of
    the levels' means would then weigh examples unequally.
    """
    lines = read_text(path, "the file of levels").split()
    numbers = []
    for place, line in enumerate(lines, 1):
        if not line.isdecimal() or int(line) >= levels:
            raise ConfigError(f"{path}:{place} is {line[:20]!r}; it must be a level, an integer from 0 to {levels - 1}")
        numbers.append(int(line))
    counts = np.bincount(np.array(numbers, int), minlength=levels)
    if counts.min() != counts.max() or not numbers:
        listed = ", ".join(map(str, counts))
        raise ConfigError(f"{path} gives the levels 0 to {levels - 1} {listed} examples; give all levels equally many")
    return np.array(numbers)


def compile_assigned(
    apply: Callable, config: ValidationConfig, *, batch_sharding: NamedSharding | None = None
) -> Callable:
    """Returns `program(params, at, numbers, batch)`, which is compiled at its first call and returns each example's
    loss at its level, Float[batch].

    `numbers` has the number of each example's level. The fields of `at` are the formulation's coefficients at these
    levels.
    """
    path = RectifiedFlow()

    def losses(params, at: Matched, numbers, batch):
        latents = batch.latents

        def one(example_id, number):
            return validation_noise(config.seed, example_id[None], number, latents.shape[1:])[0]

        noise = jax.vmap(one)(batch.example_ids, numbers)
        z = interpolate(path, latents, noise, at.time)
        velocity = velocity_of(apply, params, z, at, batch.conditions)
        error = jnp.square(velocity - velocity_target(path, latents, noise, at.time))
        return error.reshape(error.shape[0], -1).mean(1)

    whole = None if batch_sharding is None else NamedSharding(batch_sharding.mesh, PartitionSpec())
    return distributed.compiled_at_first_call("assigned validation", jax.jit(losses, out_shardings=whole))


def assigned_loss(
    apply: Callable,
    config: ValidationConfig,
    params,
    corpus,
    assigned: Int[np.ndarray, " n"],
    *,
    formulation: Formulation = RECTIFIED_FLOW,
    batch_sharding: NamedSharding | None = None,
) -> AssignedLoss:
    """Measures the loss of `params` on the first n validation examples of the corpus, each at its assigned level.

    Only seed and batch size of `config` are used. The last batch is filled up by repeating its last example, and the
    repeats are dropped. Raises `RfjaxError` if the corpus gives a wrong number of examples.
    """
    if batch_sharding is not None:
        check_divisible(config, batch_sharding)
    grid, n = GRIDS["mlperf"], len(assigned)
    times = np.array(grid.times(LEVELS), np.float32).clip(*formulation.rectified_span)
    at = jax.tree.map(np.float32, matched(formulation, times))
    numbers: UInt32[np.ndarray, " levels"] = np.array(grid.numbers(LEVELS), np.uint32)
    program = compile_assigned(apply, config, batch_sharding=batch_sharding)
    found = []
    with bar(n, "MLPerf's validation", "example") as progress:
        for places, batch, real in validation_batches(corpus, n, config.batch_size):
            chosen = assigned[places]
            inputs = Matched(*(field[chosen] for field in at)), numbers[chosen], batch
            found.append(np.asarray(program(params, *spread(inputs, batch_sharding)))[:real])
            progress.update(real)
    return AssignedLoss(grid.times(LEVELS), assigned, np.concatenate(found))


def measure_assigned(
    workdir: Path, overrides: Mapping[str, object], levels_file: Path, *, step: int | None, weights: str
) -> list[dict]:
    """Measures one checkpoint by MLPerf's protocol, writes the record, and returns it in a list."""
    began = time.monotonic()
    assigned = read_levels(levels_file)
    run = open_run(workdir, overrides)
    distributed.from_first(lambda: check_may_record(run.workdir))
    if len(run.corpus.parts) > 1:
        raise ConfigError(
            f"MLPerf's validation loss is of one latent shape, and the corpus {run.corpus.name} has "
            f"{len(run.corpus.parts)} aspect buckets; use a corpus without buckets, or leave out --mlperf-levels"
        )
    config = run.config.evaluation.validation
    step = run.choose_step(step)
    cost = spent(read_facts(run.workdir, step))
    with run.computing():
        result = assigned_loss(
            run.backbone.apply,
            config,
            run.restore_params(step, weights),
            run.corpus,
            assigned,
            formulation=run.formulation,
            batch_sharding=run.batch_sharding,
        )
    sha1 = hashlib.sha1(assigned.astype("<u4").tobytes()).hexdigest()
    key = record_key(
        run=run.name,
        step=step,
        evaluation=EVALUATION,
        corpus=run.config.data.label,
        weights=weights,
        grid=f"mlperf-assigned-{LEVELS}-n{len(assigned)}-{sha1[:8]}",
        seed=config.seed,
    )
    extra = {"levels": list(result.levels), "assigned_sha1": sha1}
    record = make_record(key, _values(result), seconds=time.monotonic() - began, extra=extra, **cost)
    if distributed.is_first():
        check_still_run(run.workdir)
        write_record(run.workdir, record)
    return [record]


def _values(result):
    per_level = len(result.losses) // len(result.levels)
    levels = zip(result.levels, result.level_losses, result.level_stderrs, strict=True)
    return [
        Measured.within(metric=METRIC, value=result.loss, stderr=result.stderr, n=len(result.losses)),
        *(Measured.within(metric=METRIC, item=f"t={t:g}", value=v, stderr=s, n=per_level) for t, v, s in levels),
    ]
