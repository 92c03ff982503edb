"""The interface of all networks: parameters in, prediction out.

A backbone keeps the following contract, besides `Backbone` below. A network's class is a Flax module with the arguments
that `make_backbone` gives, and has a static method `flops_by_part(model, shapes)`.
- Parameters are float32 whatever the compute type is, and every trained one gets a gradient.
- The first prediction, before any training, is zero.
- The prediction depends on t, on `pooled` and (`dit_class` excepted) on the context, but not on the order of the
  context's tokens.
- The scanned stack is called `blocks`, and the program does not grow with the depth. A stack of another name needs an
  entry in `_STACKS` of `watching.py`.
- Every block calls `watching.attend` for its attention and `watching.note_streams` for its outputs. The diagnostics of
  `train.diagnostics_every` show only blocks that do.
- A parameter called `kernel` has a rule in `sharding.py`, and no other parameter has one. The rule has a name or None
  for each axis except the layer axis of `blocks`; one of its names is "hidden".
- Every parameter has a kind in `parametrization.py`.
- The backbone's row of `limits.BACKBONES` says whether text tokens stand in the sequence (`text_in_sequence`, true by
  default); `results/tokens.py` counts tokens by this field.

`tests/models` tests all of these points but the last. docs/README.md lists the files to change for a new backbone.
"""

from __future__ import annotations

import functools
import math
import pkgutil
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfjax.config import Config, ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.limits import BACKBONES
from rfjax.models.attention import choose, platform_of
from rfjax.models.parametrization import scaled_init
from rfjax.models.positions import POSITIONS
from rfjax.models.sharding import path_name
from rfjax.models.watching import WATCHED, by_layer


class Backbone(NamedTuple):
    """A network as two pure functions.

    `init(key) -> params`, a nested dict of float32 arrays. `apply(params, z, t, context, pooled) -> prediction`: z
    [batch, frames, height, width, channels] at times t [batch] in [0, 1], context [batch, tokens, size] and pooled
    [batch, size]; an image has one frame. The prediction has z's shape and is float32. The formulation decides what is
    predicted, how z is scaled and what stands for t (EDM's ln(sigma) / 4 is not in [0, 1]).
    """

    init: Callable
    apply: Callable
    activations: Callable | None = None  # the arguments of `apply` -> {name: mean |x|}
    watched: Callable | None = None  # the arguments of `apply` -> (prediction, largest logits, mean squares)


def make_backbone(
    config: ModelConfig,
    shapes: BatchShapes,
    *,
    compute_dtype: str = "float32",
    remat: str = "none",
    unroll: int = 1,
    attention: str = "auto",
    platform: str | None = None,
) -> Backbone:
    """Returns the network that `config` names, for batches of these shapes. A scan iteration has `unroll` blocks.

    The other options are as in `config.train`; `platform` is where the network will run, by default the platform of
    JAX's first device. Raises `ConfigError` for an attention that does not run there.
    """
    platform = platform or platform_of(jax.devices()[0])
    attention = choose(attention, platform, dtype=compute_dtype, head_size=config.head_size)
    sizes = shapes.context[1], shapes.pooled
    network = pkgutil.resolve_name(BACKBONES[config.backbone].path)
    module = network(config, jnp.dtype(compute_dtype), *sizes, remat, unroll, attention)

    def init(key):
        z = jnp.zeros((1, *shapes.latents))
        context, pooled = jnp.zeros((1, *shapes.context)), jnp.zeros((1, shapes.pooled))
        return module.init(key, z, jnp.zeros((1,)), context, pooled)["params"]

    def apply(params, z, t, context, pooled):
        return module.apply({"params": params}, z, t, context, pooled)

    def activations(params, z, t, context, pooled):
        given = {"params": params}, z, t, context, pooled
        _, seen = module.apply(*given, capture_intermediates=True, mutable=["intermediates"])
        leaves = jax.tree_util.tree_leaves_with_path(seen["intermediates"])
        return {_activation(path_name(path)): jnp.mean(jnp.abs(leaf)) for path, leaf in leaves}

    def watched(params, z, t, context, pooled):
        prediction, seen = module.apply({"params": params}, z, t, context, pooled, mutable=[WATCHED])
        return prediction, *by_layer(seen[WATCHED])

    return Backbone(scaled_init(config, init), apply, activations, watched)


def _activation(path: str) -> str:
    """Returns the name of a captured output: its module's path, or "prediction" for the network itself. It is `path`
    without Flax's `__call__/0`, and without the index 0 of the streams in a block's result (streams, None)."""
    name = re.sub(r"/?__call__/0(/0)?", "", path)
    return name or "prediction"


def training_backbone(config: Config, shapes: BatchShapes, platform: str | None = None) -> Backbone:
    """Returns the network as a run of `config` computes it: with its precision, rematerialisation and attention."""
    train = config.train
    computed = {"compute_dtype": train.compute_dtype, "remat": train.remat, "attention": train.attention}
    computed["unroll"] = train.unroll or config.model.depth
    return make_backbone(config.model, shapes, **computed, platform=platform)


@functools.lru_cache
def parameter_count(backbone: Backbone) -> int:
    """Returns the number of trainable parameters, without stored positions. No array is allocated."""
    shapes = jax.eval_shape(backbone.init, jax.random.key(0))
    trained = {name: part for name, part in shapes.items() if name != POSITIONS}
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained))
