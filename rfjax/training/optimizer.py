"""AdamW with clipping, and the learning rate as a function of the step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from rfjax.config import TrainConfig
from rfjax.training.mesh import path_name


def _constant(config, step):
    return jnp.ones(())


def _cosine(config, step):
    """From 1 at the end of warm-up to the final fraction at `steps`."""
    span = max(1, config.steps - config.warmup)
    progress = jnp.clip((step - config.warmup) / span, 0.0, 1.0)
    end = config.final_learning_rate_fraction
    return end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


# By `config.train.decay_shape`: the share of the fall that is done after a share x of the decay's steps.
# 1-sqrt is best in Haegele et al. 2024 (arXiv 2405.18392, section 4.1).
DECAYS: dict[str, Callable] = {
    "linear": lambda x: x,
    "1-sqrt": jnp.sqrt,
    "cosine": lambda x: 0.5 * (1.0 - jnp.cos(jnp.pi * x)),
}


def _warmup_stable_decay(config, step):
    """1, then over the last `decay_fraction` of the steps down to the final fraction."""
    progress = jnp.clip((step - config.departure) / config.decay_steps, 0.0, 1.0)
    return 1.0 - (1.0 - config.final_learning_rate_fraction) * DECAYS[config.decay_shape](progress)


# fraction of the peak rate after warm-up, by `config.train.schedule`
SCHEDULES: dict[str, Callable] = {"constant": _constant, "cosine": _cosine, "wsd": _warmup_stable_decay}


def learning_rate(config: TrainConfig) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """The rate of the update that takes `step` completed steps to `step + 1`.

    Linear warm-up: (step + 1) / warmup of the peak, so that the first update is not lost.
    A function of the step, not of the updates made: skipped steps still advance it.
    """
    shape = SCHEDULES[config.schedule]

    def rate(step):
        warmup = jnp.minimum(1.0, (step + 1) / max(1, config.warmup))
        return config.learning_rate * warmup * shape(config, step)

    return rate


def decayed(params):
    """A tree that is True for the leaves to which weight decay applies: kernels, not biases and norm scales. They are
    told apart by name, because stacked layers add an axis to the rank."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path).split("/")[-1] == "kernel", params)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) after clipping by the global norm.

    Its updates are per unit of learning rate: the train step multiplies them by -rate(step).
    """
    clip = (optax.clip_by_global_norm(config.clip_norm),) if config.clip_norm else ()
    return optax.chain(
        *clip,
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )
