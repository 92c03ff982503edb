"""The three forms in which a sampler stores weights: all in float32, with the kernels rounded to bfloat16, or with the
kernels in int8 and a scale for each output channel.

Biases, norms and positions are float32 in each form: together they are less than a thousandth of the parameters.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from rfjax.config import ModelConfig
from rfjax.errors import ConfigError
from rfjax.limits import BACKBONES
from rfjax.models.layers import SCALE, rounded_kernels
from rfjax.models.sharding import dimensions

LARGEST = 127  # symmetric: -128 is not used


def quantise(kernel: Float[Array, ...], first: int, inputs: int) -> tuple[Int8[Array, ...], Float[Array, ...]]:
    """Returns (int8 kernel, float32 scales). int8 * scale equals the kernel to within half a scale. Each output channel
    has its own scale.

    The kernel has `first` axes of stacked layers, then `inputs` axes of inputs, then the axes of the outputs.
    """
    axes = tuple(range(first, first + inputs))
    scale = jnp.max(jnp.abs(kernel), axis=axes) / LARGEST
    scale = jnp.where(scale > 0, scale, 1.0)  # a channel of zeros, as in a fresh network's modulation
    return jnp.round(kernel / jnp.expand_dims(scale, axes)).astype(jnp.int8), scale


def _int8(params):
    def stored(tree, path=()):
        if not isinstance(tree, dict):
            return tree
        if "kernel" not in tree or "bias" not in tree:
            return {name: stored(part, (*path, name)) for name, part in tree.items()}
        kernel, bias = tree["kernel"], tree["bias"]
        names = dimensions("/".join((*path, "kernel")))
        if not names:  # no rule says which of the kernel's axes are inputs
            return tree
        whole, scale = quantise(kernel, kernel.ndim - len(names), kernel.ndim - bias.ndim)
        return tree | {"kernel": whole, SCALE: scale}

    return stored(params)


STORED = {
    "float32": lambda params: params,
    "bfloat16": lambda params: rounded_kernels(params, "bfloat16"),
    "int8": _int8,
}


def check_weights(weights: str, model: ModelConfig) -> None:
    """Raises `ConfigError` for a name that is not a row of `STORED`, and for int8 with a network that convolves."""
    if weights not in STORED:
        raise ConfigError(f"--weights has {weights!r}; it takes {', '.join(STORED)}")
    if weights == "int8" and BACKBONES[model.backbone].convolves:
        raise ConfigError(f"--weights=int8 is for transformers, and {model.backbone} convolves; use bfloat16")


def store(params, weights: str):
    """Converts a network's parameters to the form that `weights` names. The backbone's `apply` takes them as it takes
    float32 parameters."""
    return STORED[weights](params)


@functools.lru_cache(maxsize=32)
def stored_shapes(init, weights: str):
    """Returns the shapes and dtypes that the parameters made by a backbone's `init` have when they are stored in the
    form `weights`. No array is allocated."""
    return jax.eval_shape(lambda key: store(init(key), weights), jax.random.key(0))
