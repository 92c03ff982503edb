"""The train step of a config on a mesh, from shapes alone: what a run executes and a plan compiles."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rfjax.config import Config
from rfjax.data.batch import Batch
from rfjax.data.corpus import Corpus
from rfjax.training.loss import make_loss, run_keys
from rfjax.training.mesh import BATCH, shardings
from rfjax.training.optimizer import make_optimizer
from rfjax.training.state import TrainState, init_state
from rfjax.training.step import make_train_step


def state_shapes(config: Config, backbone) -> TrainState:
    """Shapes and dtypes of a run's state; nothing is allocated."""
    optimizer = make_optimizer(config.train)
    return jax.eval_shape(lambda key: init_state(backbone.init, optimizer, key), run_keys(config.seed)[0])


def abstract_state(config: Config, backbone, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a run's state; nothing is allocated.

    Raises `ConfigError` for a parameter that the mesh does not divide.
    """
    shapes = state_shapes(config, backbone)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings(mesh, shapes),
    )


def abstract_batch(config: Config, corpus: Corpus, mesh: Mesh, spec: PartitionSpec = BATCH) -> Batch:
    """Shapes, dtypes and shardings of a global batch, laid out over the mesh by `spec`."""
    example, place = corpus.examples(np.arange(1, dtype=np.uint64), "train"), NamedSharding(mesh, spec)
    size = config.train.batch_size
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype, sharding=place), example)


def lower_train_step(
    config: Config, corpus: Corpus, backbone, mesh: Mesh, *, stream_offset: int = 0
) -> jax.stages.Lowered:
    """The step `(state, batch) -> (state, metrics)`, lowered for the mesh's devices.

    Raises `ConfigError` for a batch or a parameter that the mesh does not divide.
    """
    state = abstract_state(config, backbone, mesh)
    loss = make_loss(config, backbone.apply, corpus.shapes.encoders)
    optimizer = make_optimizer(config.train)
    with jax.set_mesh(mesh), jax.default_matmul_precision(config.train.matmul_precision):
        step = make_train_step(loss, optimizer, config.train, mesh, state, stream_offset=stream_offset)
        return step.lower(state, abstract_batch(config, corpus, mesh))
