"""Times a training step and its parts, each part as a separate program.

Separately compiled programs do not fuse or overlap as the whole step does, so the parts do not add up to the step. The
difference is reported as the remainder.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rfjax.bench.peak import median_seconds
from rfjax.data.loader import batches
from rfjax.training.loss import make_loss, run_keys
from rfjax.training.mesh import BATCH
from rfjax.training.optimizer import make_optimizer
from rfjax.training.program import abstract_state, first_state, lower_train_step
from rfjax.training.run import Run
from rfjax.training.state import State
from rfjax.training.step import TIME_BINS, step_parts

WARMUP = 2  # untimed steps at the start


class Loop(NamedTuple):
    """The seconds of each timed training step, and the seconds of the step in which the host waits for data, copies a
    batch onto the devices, and waits for metrics."""

    step: list[float]
    waiting_for_data: list[float]
    placing: list[float]  # copying a batch onto the devices
    waiting_for_metrics: list[float]  # of the step before, while the devices compute this one


def _first_state(run: Run) -> State:
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run))
    return jax.jit(first_state(run), out_shardings=places)(run_keys(run.config.seed)[0])


def _batches(run: Run, steps: int):
    return batches(run.corpus, batch_size=run.config.train.batch_size, start_step=0, stop_step=steps)


def loader_seconds(run: Run, steps: int) -> float:
    """Measures the mean seconds that the loader takes for a batch while nothing else runs."""
    iterator = _batches(run, steps + 1)
    next(iterator)
    began = time.perf_counter()
    for _ in iterator:
        pass
    return (time.perf_counter() - began) / steps


def run_loop(run: Run, steps: int, trace: Path | None = None) -> Loop:
    """Times `steps` training steps, which run as in the trainer: batches are read ahead, and metrics are fetched one
    step late.

    If `trace` is given, JAX's profile of these steps is written to that folder.
    """
    step = lower_train_step(run).compile()
    state, place, pending = _first_state(run), NamedSharding(run.mesh, BATCH), None
    loop = Loop([], [], [], [])
    iterator = _batches(run, steps + WARMUP)
    for number in range(steps + WARMUP):
        if number == WARMUP:
            jax.block_until_ready(state)
            if trace:
                jax.profiler.start_trace(str(trace))
        marks = [time.perf_counter()]
        batch = next(iterator)
        marks.append(time.perf_counter())
        batch = jax.device_put(batch, place)
        marks.append(time.perf_counter())
        state, metrics = step(state, batch)
        dispatched = time.perf_counter()
        if pending is not None:
            jax.device_get(pending)
        pending, marks = metrics, [*marks, dispatched, time.perf_counter()]
        if number >= WARMUP:
            loop.step.append(marks[4] - marks[0])
            loop.waiting_for_data.append(marks[1] - marks[0])
            loop.placing.append(marks[2] - marks[1])
            loop.waiting_for_metrics.append(marks[4] - marks[3])
    jax.block_until_ready(state)
    if trace:
        jax.profiler.stop_trace()
    return loop


def part_seconds(run: Run, rounds: int) -> dict[str, float | str]:
    """Measures the parts `forward`, `forward_backward` and `optimiser` of a step, each compiled alone.

    Returns {part: median seconds of `rounds` calls}. For a part that does not fit in the devices' memory on its own,
    the value is the compiler's message.
    """
    config, corpus, mesh, abstract = run.config, run.corpus, run.mesh, abstract_state(run)
    loss_fn = make_loss(config, run.backbone.apply, corpus.shapes.encoders)
    parts = step_parts(loss_fn, make_optimizer(config), config.train, mesh, abstract)
    state, rows = _first_state(run), NamedSharding(mesh, BATCH)
    examples = corpus.examples(np.arange(config.train.batch_size, dtype=np.uint64), "train")
    batch, places = jax.device_put((examples, np.arange(config.train.batch_size, dtype=np.int32)), rows)
    split = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    whole = NamedSharding(mesh, P())

    def forward(params, batch, places, step):
        if config.train.accumulate == 1:
            return loss_fn(params, batch, step, places)[0]
        # One microbatch at a time, as in the step, so that it fits if the step fits.
        cut = lambda a: a.reshape(-1, config.train.accumulate, *a.shape[1:]).swapaxes(0, 1)  # noqa: E731
        return jax.lax.map(lambda part: loss_fn(params, part[0], step, part[1])[0], jax.tree.map(cut, (batch, places)))

    found: dict[str, float | str] = {}

    def measure(name, function, arguments, call=lambda program, *arguments: program(*arguments), **settings):
        try:
            program = jax.jit(function, **settings).lower(*arguments).compile()
            found[name] = median_seconds(lambda: call(program, *arguments), rounds)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            found[name] = f"does not fit alone: {str(error).splitlines()[0]}"

    measure("forward", forward, (state.params, batch, places, state.step), out_shardings=whole)
    outputs = (split.params, whole, whole)
    measure("forward_backward", parts.gradients, (state.params, batch, state.step), out_shardings=outputs)
    gradients = jax.tree.map(lambda p: 1e-3 * p, state.params)
    bins = (np.zeros(TIME_BINS, np.float32), np.zeros(TIME_BINS, np.float32))
    held = [state]  # each call donates the state and stores the new one, as in the step

    def optimise(program, _, *rest):
        held[0], metrics = program(held[0], *rest)
        return held[0], metrics

    arguments = (state, gradients, np.float32(1.0), bins)
    measure("optimiser", parts.update, arguments, call=optimise, out_shardings=(split, whole), donate_argnums=0)
    return found
