"""The paired validation loss: the same examples, levels and noise for every model.

Noise is a function of (validation seed, example id, level). So it does not depend on the batch size, the order of the
examples, the devices or the model, and uses no random stream of training. Levels are plain t: the timestep shift does
not apply to them.

Every formulation is measured as a rectified flow's velocity on the straight path, at the log-SNR of rectified flow's t
(`rfjax.flow.matched`). So all formulations have the same points and the same target, with one exception: a level
outside the noise levels that a formulation was trained on is moved to the nearest noise level of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int, UInt32

from rfjax.config import ValidationConfig
from rfjax.data.batch import Batch
from rfjax.data.buckets import format_shape, validation_shares
from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation.paired_loss import GRIDS, ValidationLoss, grid_name
from rfjax.flow.formulation import RECTIFIED_FLOW, Formulation
from rfjax.flow.matched import Matched, matched, velocity_of
from rfjax.flow.path import RectifiedFlow, interpolate, velocity_target
from rfjax.training.mesh import spread
from rfjax.training.processes import distributed, watch


@dataclass(frozen=True, eq=False)
class ValidationStep:
    """The compiled loss of a batch, for one model and any number of its checkpoints.

    `program(params, at, batch)` returns the losses, Float[batch levels]; `at` holds the formulation's coefficients at
    the levels. The batch has `config.batch_size` examples.
    """

    config: ValidationConfig
    batch_sharding: NamedSharding | None
    at: Matched
    program: Callable


def validation_noise(
    seed: int, example_ids: UInt32[Array, " batch"], level: UInt32[Array, ""] | int, shape: tuple[int, ...]
) -> Float32[Array, "batch ..."]:
    """Returns standard normal noise for each example at one level. `level` is the level's number in the grid.

    The code names the random generator, so that the noise does not depend on JAX's configured default.
    """
    root = jax.random.key(seed, impl="threefry2x32")

    def one(example_id):
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(root, example_id), level), shape, jnp.float32)

    return jax.vmap(one)(example_ids)


def make_validation_step(
    apply: Callable,
    config: ValidationConfig,
    *,
    formulation: Formulation = RECTIFIED_FLOW,
    batch_sharding: NamedSharding | None = None,
    program: Callable | None = None,
) -> ValidationStep:
    """Makes the step that `validation_loss` calls. One step serves all checkpoints of a model.

    `apply(params, z, t, context, pooled)` returns the formulation's prediction, with z Float[batch f h w c] and t
    Float[batch]. `batch_sharding` splits the leading axis of every input over a mesh; every process gets all losses.
    Levels are computed one after another, so memory holds one batch at one level. `program` is the result of
    `compile_validation` for the same arguments; formulations may share it. Raises `ConfigError` if the batch cannot be
    split evenly.
    """
    if batch_sharding is not None:
        check_divisible(config, batch_sharding)
    times = np.array(GRIDS[config.grid].times(config.levels), np.float32).clip(*formulation.rectified_span)
    at = jax.tree.map(np.float32, matched(formulation, times))
    return ValidationStep(
        config, batch_sharding, at, program or compile_validation(apply, config, batch_sharding=batch_sharding)
    )


def compile_validation(
    apply: Callable, config: ValidationConfig, *, batch_sharding: NamedSharding | None = None
) -> Callable:
    """Returns the program of a `ValidationStep` for a backbone's `apply`; one program serves every formulation."""
    numbers, path = np.array(GRIDS[config.grid].numbers(config.levels), np.uint32), RectifiedFlow()

    def losses(params, at, batch):
        latents = batch.latents

        def at_level(level):
            number, at = level
            noise = validation_noise(config.seed, batch.example_ids, number, latents.shape[1:])
            t = jnp.full(latents.shape[0], at.time)
            z = interpolate(path, latents, noise, t)
            velocity = velocity_of(apply, params, z, at, batch.conditions)
            error = jnp.square(velocity - velocity_target(path, latents, noise, t))
            return error.reshape(error.shape[0], -1).mean(1)

        return jax.lax.map(at_level, (numbers, at)).T

    whole = None if batch_sharding is None else NamedSharding(batch_sharding.mesh, PartitionSpec())
    return distributed.compiled_at_first_call("validation", jax.jit(losses, out_shardings=whole))


def validation_loss(step: ValidationStep, params, corpus) -> ValidationLoss:
    """Measures the loss of `params` on the first `config.examples` validation examples of the corpus.

    If the corpus has several latent shapes, each part gives a share of the examples in proportion to its validation
    images, in batches of its own shape. Conditions have no dropout. The last batch is filled up by repeating its last
    example, and the repeats are dropped. `params` stay where they are, sharded or not. Raises `RfjaxError` if the
    corpus gives a wrong number of examples, or if two of its parts give the same id.
    """
    config = step.config
    shares = validation_shares(corpus, config.examples)
    asked = [(part, count) for part, count in zip(corpus.parts, shares, strict=True) if count]
    found = [_losses(step, params, part, count) for part, count in asked]
    example_ids, per_example = (np.concatenate(pieces) for pieces in zip(*found, strict=True))
    assert len(example_ids) == len(per_example) == config.examples, "an example was lost or counted twice"
    order = np.argsort(example_ids, kind="stable")
    ids = example_ids[order]
    if (
        len(corpus.parts) > 1 and (ids[1:] == ids[:-1]).any()
    ):  # an id decides the noise, and pairs the examples of two runs
        twice = ids[1:][ids[1:] == ids[:-1]][0]
        raise RfjaxError(
            f"two validation examples of the corpus {corpus.name} have the id {twice}; give its parts different ids"
        )
    grid = GRIDS[config.grid]
    return ValidationLoss(
        grid=grid_name(config.grid, config.levels),
        seed=config.seed,
        levels=grid.times(config.levels),
        averaged=grid.counts(config.levels),
        example_ids=ids,
        per_example=per_example[order],
        shapes=_shapes(asked, order) if len(corpus.parts) > 1 else (),
    )


def _shapes(asked, order):
    """The latent shape of each example as text, such as 40x24, in the order of the example ids. `asked` has (part,
    number of examples)."""
    shapes = np.concatenate([[format_shape(part.shapes.latents)] * count for part, count in asked])
    return tuple(shapes[order].tolist())


def _losses(step, params, corpus, examples):
    """Returns (ids [n], losses [n, levels]) of the first n = `examples` examples of a corpus of one shape."""
    ids, rows, pending = [], [], None
    for _, batch, real in validation_batches(corpus, examples, step.config.batch_size):
        ids.append(batch.example_ids[:real])
        losses = step.program(params, step.at, spread(batch, step.batch_sharding))
        if pending is not None:  # fetched one batch late, so that devices need not wait for the host
            rows.append(np.asarray(pending[0])[: pending[1]])
        pending = losses, real
    rows.append(np.asarray(pending[0])[: pending[1]])
    return np.concatenate(ids), np.concatenate(rows)


def validation_batches(corpus, examples: int, size: int) -> Iterator[tuple[Int[np.ndarray, " size"], Batch, int]]:
    """Yields the first `examples` validation examples of a corpus of one shape in batches of `size`, as (places, batch,
    number of examples that count). The last batch is filled up with its last example.

    Raises `RfjaxError` if the corpus gives a wrong number of examples.
    """
    for start in range(0, examples, size):
        places = np.arange(start, start + size).clip(max=examples - 1)
        batch = corpus.examples(places.astype(np.uint64), "validation")
        if len(batch.example_ids) != size:
            given = f"{len(batch.example_ids)} validation examples"
            raise RfjaxError(f"corpus {corpus.name} gave {given} where {size} were asked for; check its examples()")
        watch.beat()
        *arrays, ids = batch
        batch = Batch(*(np.asarray(array, np.float32) for array in arrays), np.asarray(ids, np.uint32))
        yield places, batch, min(size, examples - start)


def check_divisible(config: ValidationConfig, sharding: NamedSharding) -> None:
    """Raises `ConfigError` for a batch size that cannot be split evenly over the mesh."""
    axes = sharding.spec[0] if len(sharding.spec) else ()
    axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
    parts = math.prod(sharding.mesh.shape[axis] for axis in axes)
    if config.batch_size % parts:
        raise ConfigError(
            f"config.evaluation.validation.batch_size={config.batch_size} is not divisible by the {parts} parts "
            f"of the mesh axes {', '.join(axes)}; choose a multiple of {parts}"
        )
