"""The table of optimisers, with clipping and decay, and the table of learning-rate schedules."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from rfjax.config import Config, TrainConfig
from rfjax.errors import ConfigError
from rfjax.models.backbone import Backbone, parameter_count
from rfjax.models.parametrization import Factors, factors, leaf_rule
from rfjax.training.mesh import path_name


def _constant(config, step):
    return jnp.ones(())


def _cosine(config, step):
    """Returns the fraction of the peak rate. It falls from 1 at the end of warm-up to the final fraction at `steps`."""
    span = max(1, config.steps - config.warmup)
    progress = jnp.clip((step - config.warmup) / span, 0.0, 1.0)
    end = config.final_learning_rate_fraction
    return end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


# A name in `config.train.decay_shape` -> function from x, the share of the decay's steps that are done, to the share of
# the rate's fall that is done. 1-sqrt is best in Haegele et al. 2024 (arXiv 2405.18392, section 4.1).
DECAYS: dict[str, Callable] = {
    "linear": lambda x: x,
    "1-sqrt": jnp.sqrt,
    "cosine": lambda x: 0.5 * (1.0 - jnp.cos(jnp.pi * x)),
}


def _warmup_stable_decay(config, step):
    """Returns the fraction of the peak rate. It is 1, and falls to the final fraction over the last `decay_fraction` of
    the steps."""
    progress = jnp.clip((step - config.departure) / config.decay_steps, 0.0, 1.0)
    return 1.0 - (1.0 - config.final_learning_rate_fraction) * DECAYS[config.decay_shape](progress)


# fraction of the peak rate after warm-up, by `config.train.schedule`
SCHEDULES: dict[str, Callable] = {"constant": _constant, "cosine": _cosine, "wsd": _warmup_stable_decay}


def learning_rate(config: TrainConfig) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """Returns `rate(step)`, the learning rate of the update after `step` completed steps.

    Warm-up multiplies the schedule's rate by (step + 1) / warmup, so the first update has a rate above zero. The rate
    depends on the step, not on the number of updates, so skipped steps count. `rate(step, peak)` uses another peak than
    the config's, for runs that are trained together.
    """
    shape = SCHEDULES[config.schedule]

    def rate(step, peak=config.learning_rate):
        warmup = jnp.minimum(1.0, (step + 1) / max(1, config.warmup))
        return peak * warmup * shape(config, step)

    return rate


def warmup_advice(config: TrainConfig) -> str | None:
    """Returns advice for a warm-up that takes more than half of the run; None for a shorter warm-up."""
    if 2 * config.warmup <= config.steps:
        return None
    highest = float(learning_rate(config)(jnp.arange(config.steps)).max())
    return (
        f"the warm-up of {config.warmup:,} steps takes more than half of the run's {config.steps:,}: its highest "
        f"learning rate is {highest:.3g}, and config.train.learning_rate is {config.learning_rate:.3g}; give "
        f"--config.train.warmup_steps={config.steps // 10}"
    )


def decayed(params):
    """A tree that is True for the leaves to which weight decay applies: kernels, but not biases and norm scales.

    Names decide, not ranks, because stacked layers have one more axis.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path).split("/")[-1] == "kernel", params)


# Muon sees a kernel as matrices: (end of the path, axes of the inputs, axes of the outputs), counted from the end. All
# other axes count matrices: stacked layers; queries, keys and values; shifts, scales and gates.
MATRICES: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (
    (r"/(qkv2?|cross_kv)/kernel$", (-4,), (-2, -1)),
    (r"/cross_q/kernel$", (-3,), (-2, -1)),
    (r"/(proj2?|cross_proj)/kernel$", (-3, -2), (-1,)),
    (r"/modulation/kernel$", (-3,), (-1,)),
    (r"/(mlp_in|mlp_out|(down|up)\d+_linear)/kernel$", (-2,), (-1,)),
    (r"(time|pooled|context)_embed/out/kernel$", (-2,), (-1,)),
    (r"/(conv_in|conv_out)/kernel$", (-4, -3, -2), (-1,)),
)
MUON_KINDS = ("hidden", "branch")  # kinds of models/parametrization.py; AdamW updates the others
MUON_MOMENTUM, MUON_STEPS = 0.95, 5
# The orthogonal update is multiplied by this number and by the square root of the matrix's longer side. Its root mean
# square is then about this number, as that of AdamW's update is (Liu et al. 2025, arXiv 2502.16982, section 2.2). So
# one learning rate serves both optimisers.
MUON_RMS = 0.2


def matrix_of(path: str) -> MuonDimensionNumbers | None:
    """Returns the axes of a parameter that are the inputs and outputs of Muon's matrix; None if AdamW updates it.

    Raises `ConfigError` for a hidden kernel without a row in `MATRICES`.
    """
    if leaf_rule(path, "config.train.optimizer=muon")[1] not in MUON_KINDS:
        return None
    for pattern, inputs, outputs in MATRICES:
        if re.search(pattern, "/" + path):
            return MuonDimensionNumbers(inputs, outputs)
    raise ConfigError(
        f"config.train.optimizer=muon has no dimensions for the parameter {path}; give it a row of MATRICES in "
        "rfjax/training/optimizer.py, or set config.train.optimizer=adamw"
    )


def _matrices(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: matrix_of(path_name(path)), params)


def matrix_shape(shape: tuple[int, ...], axes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[int, int, int]:
    """Returns (number of matrices, inputs, outputs) of a kernel that Muon updates; `axes` says which axes are its
    inputs and its outputs."""
    inputs, outputs = (math.prod(shape[axis] for axis in side) for side in axes)
    return math.prod(shape) // (inputs * outputs), inputs, outputs


def _adam(train: TrainConfig):
    return optax.scale_by_adam(b1=train.b1, b2=train.b2, eps=train.eps)


def _muon(train: TrainConfig):
    def scaled(updates, params=None):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                leaf * (MUON_RMS * math.sqrt(max(matrix_shape(leaf.shape, matrix_of(path_name(path)))[1:])))
            ),
            updates,
        )

    orthogonal = scale_by_muon(beta=MUON_MOMENTUM, ns_steps=MUON_STEPS, weight_dimension_numbers=_matrices)
    parts = {"muon": optax.chain(orthogonal, optax.stateless(scaled)), "adamw": _adam(train)}

    def labels(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "adamw" if matrix_of(path_name(path)) is None else "muon", params
        )

    return optax.partition(parts, labels)


# A name in `config.train.optimizer` -> the optax transformation of clipped gradients into the direction of an update.
OPTIMIZERS: dict[str, Callable[[TrainConfig], optax.GradientTransformation]] = {"adamw": _adam, "muon": _muon}


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Makes the optimiser that `config.train.optimizer` names, with clipping by the global norm and decoupled decay.

    It is AdamW (Loshchilov and Hutter 2019, algorithm 2), or Muon (Jordan et al. 2024) for hidden kernels. Updates are
    for a learning rate of one: the training step multiplies them by -rate(step). Under a parametrisation other than
    `standard`, each leaf has its own rate, decay and epsilon (`models/parametrization.py`).
    """
    train, model = config.train, config.model
    clip = (optax.clip_by_global_norm(train.clip_norm),) if train.clip_norm else ()
    direction = OPTIMIZERS[train.optimizer](train)
    if model.parametrization == "standard":
        return optax.chain(*clip, direction, optax.add_decayed_weights(train.weight_decay, mask=decayed))
    return optax.chain(*clip, *_by_leaf(config, direction))


def _by_leaf(config: Config, direction: optax.GradientTransformation):
    """Returns three transformations, to be chained: `direction` between two that apply each leaf's own epsilon, rate
    and weight decay."""
    model, train = config.model, config.train
    by_muon = (lambda path: matrix_of(path) is not None) if train.optimizer == "muon" else (lambda path: False)

    def scale(tree, factor: Callable[[str, Factors], float]):
        known = factors(model, tree)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf, own: leaf * factor(path_name(path), own), tree, known
        )

    # Adam with the epsilon e, given gradients divided by f, returns m / (sqrt(v) + f e) of the gradients themselves. So
    # the division multiplies epsilon by f. Muon's direction does not change when gradients are divided.
    def raised(updates, params=None):
        return scale(updates, lambda path, own: 1.0 / own.epsilon)

    def rated(updates, params):
        updates = scale(updates, lambda path, own: own.muon_rate if by_muon(path) else own.rate)
        if not train.weight_decay:
            return updates
        decay = scale(params, lambda path, own: own.decay * train.weight_decay)
        return jax.tree.map(lambda u, d, on: u + d if on else u, updates, decay, decayed(params))

    return optax.stateless(raised), direction, optax.stateless(rated)


def check_leaves(config: Config, backbone: Backbone) -> None:
    """Raises `ConfigError` naming a parameter that the config's parametrisation or optimiser has no rule for."""
    if config.model.parametrization == "standard" and config.train.optimizer == "adamw":
        return
    for path, _ in _leaf_shapes(backbone):
        leaf_rule(path, f"config.model.parametrization={config.model.parametrization}")
        if config.train.optimizer == "muon":
            matrix_of(path)


@functools.lru_cache
def _leaf_shapes(backbone: Backbone) -> tuple[tuple[str, tuple[int, ...]], ...]:
    shapes = jax.eval_shape(backbone.init, jax.random.key(0))
    return tuple((path_name(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(shapes))


def optimizer_bytes(config: Config, backbone: Backbone) -> int:
    """The bytes of the optimiser's state: per parameter two float32 moments under AdamW, one under Muon."""
    by_muon = sum(math.prod(shape) for shape in _muon_shapes(config, backbone))
    return 8 * parameter_count(backbone) - 4 * by_muon


def _muon_shapes(config: Config, backbone: Backbone) -> list[tuple[int, int, int]]:
    """(matrices, inputs, outputs) of each kernel that Muon updates; empty under AdamW."""
    if config.train.optimizer != "muon":
        return []
    leaves = ((shape, matrix_of(path)) for path, shape in _leaf_shapes(backbone))
    return [matrix_shape(shape, axes) for shape, axes in leaves if axes]


def optimizer_flops(config: Config, backbone: Backbone) -> int:
    """Operations of the optimiser's matrix products in a step, over all devices together: 0 for AdamW.

    A Newton-Schulz iteration of an m x n matrix X, m <= n, has three products: A = X X^T, A A, and (b A + c A A) X.
    They take 4 m^2 n + 2 m^3 operations.
    """
    total = 0
    for count, *sides in _muon_shapes(config, backbone):
        short, long = sorted(sides)
        total += count * MUON_STEPS * (4 * short * short * long + 2 * short**3)
    return total
