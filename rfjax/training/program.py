"""Makes the training step of a run on its mesh, from shapes alone.

A run executes this step; a plan only compiles it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array

from rfjax.data.batch import Batch
from rfjax.training.loss import make_loss, run_keys
from rfjax.training.mesh import BATCH, shardings
from rfjax.training.optimizer import make_optimizer
from rfjax.training.power_averages import begin
from rfjax.training.run import Run
from rfjax.training.state import Params, State, init_state, start_state
from rfjax.training.step import make_train_step


def first_state(run: Run) -> Callable[[Array], State]:
    """Returns the function that makes a run's state at step 0 from a random key."""
    optimizer = make_optimizer(run.config)
    return lambda key: begin(init_state(run.backbone.init, optimizer, key), run.config.train)


def inherited_state(run: Run) -> Callable[[Params, Params], State]:
    """Returns the function that makes a run's state at step 0 from given parameters and their average."""
    optimizer = make_optimizer(run.config)
    return lambda params, ema: begin(start_state(params, ema, optimizer), run.config.train)


def state_shapes(run: Run) -> State:
    """Shapes and dtypes of a run's state; nothing is allocated."""
    return jax.eval_shape(first_state(run), run_keys(run.config.seed)[0])


def abstract_state(run: Run) -> State:
    """Shapes, dtypes and shardings of a run's state; nothing is allocated.

    Raises `ConfigError` for a parameter that the mesh does not divide.
    """
    shapes = state_shapes(run)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings(run.mesh, shapes),
    )


def abstract_batch(run: Run, sharding: NamedSharding) -> Batch:
    """Shapes, dtypes and shardings of a global batch. The run's corpus must have one latent shape."""
    example, size = run.corpus.examples(np.arange(1, dtype=np.uint64), "train"), run.config.train.batch_size
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype, sharding=sharding), example)


def lower_train_step(run: Run, *, stream_offset: int = 0) -> jax.stages.Lowered:
    """Lowers the step `(state, batch) -> (state, metrics)` for the devices of the run's mesh.

    The run's corpus must have one latent shape. Raises `ConfigError` if the mesh does not divide the batch or a
    parameter.
    """
    config, state = run.config, abstract_state(run)
    loss = make_loss(config, run.backbone.apply, run.corpus.shapes.encoders)
    with run.computing():
        step = make_train_step(loss, make_optimizer(config), config.train, run.mesh, state, stream_offset=stream_offset)
        return step.lower(state, abstract_batch(run, NamedSharding(run.mesh, BATCH)))
