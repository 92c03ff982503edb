"""Makes the jitted training step: gradients, update, average of the parameters, and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from rfjax.config import TrainConfig
from rfjax.models.layers import rounded_kernels
from rfjax.training.loss import ExampleLosses, LossFn
from rfjax.training.mesh import BATCH, check_batch, shardings
from rfjax.training.optimizer import learning_rate
from rfjax.training.power_averages import with_averages
from rfjax.training.state import State

TIME_BINS = 10  # the training loss is reported in this many equal bins of t in [0, 1]


class StepMetrics(NamedTuple):
    """The metrics of a step, on device. The axis `groups` has the top-level keys of the parameters, sorted."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]  # before clipping
    learning_rate: Float[Array, ""]
    skipped: Int[Array, ""]  # steps skipped so far
    skipped_in_row: Int[Array, ""]  # steps skipped in a row up to this one; 0 if this one was not skipped
    group_norms: Float[Array, " groups"]  # gradient norm of each parameter group
    bin_losses: Float[Array, " bins"]  # sum of the example losses in each bin of t
    bin_counts: Float[Array, " bins"]
    measures: dict[str, Float[Array, ""]] = {}  # sums over the examples


def parameter_groups(params) -> list[str]:
    """The names of the parameter groups, in the order of `StepMetrics.group_norms`."""
    return sorted(params)


def time_bins(aux: ExampleLosses):
    """Returns (sums, counts, measures): the sum and the number of example losses in each bin of t, and the sum of each
    measure over all examples."""
    index = jnp.clip(jnp.floor(aux.t * TIME_BINS).astype(jnp.int32), 0, TIME_BINS - 1)
    member = jax.nn.one_hot(index, TIME_BINS)
    # `where`, not a product: one infinite loss must not spoil the other bins.
    sums = jnp.sum(jnp.where(member > 0, aux.losses[:, None], 0.0), axis=0)
    return sums, jnp.sum(member, axis=0), jax.tree.map(jnp.sum, aux.measures)


def microbatches(mesh: Mesh, array: Array, accumulate: int) -> Array:
    """Reshapes [batch, ...] to [accumulate, batch / accumulate, ...] without moving data between devices.

    Microbatch i takes every accumulate-th example from i on, so that each device splits its own part.
    """
    split = array.reshape(-1, accumulate, *array.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(split, NamedSharding(mesh, P(None, *BATCH)))


def _rounded(params, config, mesh):
    """Rounds the kernels of `params` to the compute type once, before the loop over microbatches.

    The gradients of each microbatch then stay in the compute type, which takes half the memory of float32. The same
    holds for the copy of the kernels that the TPU compiler makes in another layout for the loop. The barrier keeps the
    compiler from moving the rounding into the loop.
    """
    if config.compute_dtype == "float32":
        return params
    rounded = rounded_kernels(params, config.compute_dtype)
    return jax.lax.optimization_barrier(jax.lax.with_sharding_constraint(rounded, shardings(mesh, params)))


def _gradients(loss_fn, params, batch, step, config, mesh):
    """Returns (gradients, loss, bins) of the whole batch, computed in `config.accumulate` microbatches. `bins` is what
    `time_bins` returns."""
    places = jnp.arange(config.batch_size, dtype=jnp.int32)
    places = jax.lax.with_sharding_constraint(places, NamedSharding(mesh, BATCH))

    def part(params, batch, places):
        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, step, places)
        return grads, loss, time_bins(aux)

    if config.accumulate == 1:
        return part(params, batch, places)
    rounded = _rounded(params, config, mesh)
    parts = jax.tree.map(lambda array: microbatches(mesh, array, config.accumulate), (batch, places))
    shapes = jax.eval_shape(part, params, *jax.tree.map(lambda array: array[0], parts))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def add(total, microbatch):
        return jax.tree.map(jnp.add, total, part(rounded, *microbatch)), None

    (grads, loss, bins), _ = jax.lax.scan(add, zeros, parts)
    grads, loss = jax.tree.map(lambda total: total / config.accumulate, (grads, loss))
    return grads, loss, bins


class StepParts(NamedTuple):
    """A step's gradients and update. `make_train_step` compiles both together; a benchmark compiles each alone."""

    gradients: Callable  # (params, batch, step) -> (gradients, loss, bins)
    update: Callable  # (state, gradients, loss, bins) -> (state, metrics)


def step_parts(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: Mesh,
    abstract_state: State,
    *,
    stream_offset: int = 0,
) -> StepParts:
    """The gradients and the update of a step as two functions, not compiled. Arguments and errors are those of
    `make_train_step`."""
    check_batch(mesh, config.batch_size, config.accumulate)
    split = shardings(mesh, abstract_state.params)

    def gradients(params, batch, step):
        grads, loss, bins = _gradients(loss_fn, params, batch, step + stream_offset, config, mesh)
        return jax.lax.with_sharding_constraint(grads, split), loss, bins

    update = make_update(optimizer, config, parameter_groups(abstract_state.params))
    return StepParts(gradients, with_averages(update, config))


def average_weight(decay: float, number: Int[Array, ""]) -> Float[Array, ""]:
    """The weight of the newest parameters in update `number` = 1, 2, ... of the average: (1 - d) / (1 - d^number).

    d is `decay`. After k updates, the average weighs the parameters of update i by d^(k - i) (1 - d) / (1 - d^k). These
    weights sum to 1 and leave out the initialisation. Kingma and Ba 2015, section 3, correct Adam's moments in this
    way. The weight of the newest parameters depends on the step alone and falls to 1 - d.
    """
    if decay == 0:
        return jnp.ones(())
    kept = -jnp.expm1(number.astype(jnp.float32) * math.log(decay))  # 1 - d^number, exact where d^number is near 1
    return jnp.where(number <= 1, 1.0, (1.0 - decay) / jnp.where(number <= 1, 1.0, kept))


def make_update(optimizer: optax.GradientTransformation, config: TrainConfig, groups: list[str]) -> Callable:
    """Returns `update(state, gradients, loss, bins, peak) -> (state, metrics)`; `peak` is the peak learning rate, by
    default the config's. If the loss or a gradient is not finite, only the step and the counters change."""
    rate = learning_rate(config)

    def update(state, grads, loss, bins, peak=config.learning_rate):
        group_norms = jnp.stack([optax.tree.norm(grads[group]) for group in groups])
        grad_norm = jnp.sqrt(jnp.sum(jnp.square(group_norms)))
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        lr = rate(state.step, peak)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
        )

        every = config.average_every
        number = (state.step + 1) // every  # counts updates of the average; at 0 the average equals the parameters
        averaging = finite & (((state.step + 1) % every == 0) | (number == 0))
        weight = average_weight(config.ema_decay, number)
        ema = jax.lax.cond(  # a branch, not a select: most steps need not touch the average's memory
            averaging,
            # In this form the average of constant parameters is exactly these parameters.
            lambda ema, params: jax.tree.map(lambda e, p: jnp.where(weight == 1, p, e + weight * (p - e)), ema, params),
            lambda ema, params: ema,
            state.ema,
            params,
        )
        bad = (~finite).astype(jnp.int32)
        skipped_in_row = jnp.where(finite, 0, state.skipped_in_row + 1)
        skipped = state.skipped + bad
        metrics = StepMetrics(loss, grad_norm, lr, skipped, skipped_in_row, group_norms, *bins)
        counts = {"step": state.step + 1, "skipped": skipped, "skipped_in_row": skipped_in_row}
        return state._replace(params=params, ema=ema, opt_state=opt_state, **counts), metrics

    return update


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: Mesh,
    abstract_state: State,
    *,
    stream_offset: int = 0,
) -> Callable[..., tuple[State, StepMetrics]]:
    """Returns the jitted `step(state, batch) -> (state, metrics)`; `state` is donated.

    If the loss or a gradient is not finite, only the step and the counters change. The random numbers are those of step
    `state.step + stream_offset`. Raises `ConfigError` if the mesh does not divide the batch or a parameter.
    """
    parts = step_parts(loss_fn, optimizer, config, mesh, abstract_state, stream_offset=stream_offset)
    state_shardings = shardings(mesh, abstract_state)

    def step(state, batch):
        return parts.update(state, *parts.gradients(state.params, batch, state.step))

    return jax.jit(
        step,
        in_shardings=(state_shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(state_shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
