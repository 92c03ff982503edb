"""Weights as a sampler stores them: rounded kernels and int8 kernels with a scale a channel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.config import ModelConfig
from rfjax.errors import ConfigError
from rfjax.models.layers import SCALE, Linear
from rfjax.models.quantised import LARGEST, check_weights, quantise, store


def kernel(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def test_int8_is_within_half_a_step_of_each_channel():
    """Catches one scale for a whole kernel, and a scale of inputs in place of outputs: channels differ a thousandfold
    here."""
    given = kernel(8, 3, 4) * jnp.asarray([1e-3, 1.0, 10.0, 1e3])
    whole, scale = quantise(given, 0, 1)
    assert whole.dtype == jnp.int8 and scale.shape == (3, 4) and int(jnp.abs(whole).max()) == LARGEST
    assert bool((jnp.abs(whole * scale - given) <= 0.5001 * scale).all())


def test_layers_of_a_stack_have_their_own_scales():
    """Catches a scale that is shared by the layers of a scan."""
    stack = kernel(3, 8, 4) * jnp.asarray([1.0, 10.0, 100.0])[:, None, None]
    whole, scale = quantise(stack, 1, 1)
    for layer in range(3):
        alone, of_one = quantise(stack[layer], 0, 1)
        np.testing.assert_array_equal(whole[layer], alone)
        np.testing.assert_allclose(scale[layer], of_one)


def test_a_channel_of_zeros_stays_zero():
    """Catches 0 / 0 in the kernels that a fresh network has: modulation and the last layer."""
    whole, scale = quantise(jnp.zeros((4, 2)), 0, 1)
    assert not whole.any() and bool(jnp.isfinite(scale).all())


def test_a_tree_keeps_what_is_no_kernel_and_each_layer_reads_its_scale():
    """Catches biases in int8, a scale under a name that the layer does not read, and one that is applied twice."""
    layer = Linear((8,), (3, 4), jnp.dtype("float32"))
    leaf = {"kernel": kernel(8, 3, 4), "bias": jnp.arange(12.0).reshape(3, 4)}
    # the path that the table of dimensions knows
    params = {"blocks": {"image": {"modulation": jax.tree.map(lambda a: a[None], leaf)}}, "stored": kernel(2)}
    made = store(params, "int8")
    found = made["blocks"]["image"]["modulation"]
    assert found["kernel"].dtype == jnp.int8 and found["bias"].dtype == jnp.float32 and found[SCALE].shape == (1, 3, 4)
    assert made["stored"] is params["stored"]
    x = kernel(5, 8)
    exact = layer.apply({"params": leaf}, x)
    rounded = layer.apply({"params": jax.tree.map(lambda a: a[0], found)}, x)
    assert 0 < float(jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact - leaf["bias"])) < 0.01
    assert store(params, "float32") is params
    assert store(params, "bfloat16")["blocks"]["image"]["modulation"]["kernel"].dtype == jnp.bfloat16


def test_unknown_weights_and_networks_that_convolve_are_refused():
    check_weights("bfloat16", ModelConfig(backbone="uvit"))
    with pytest.raises(ConfigError, match="--weights has 'int4'; it takes float32, bfloat16, int8"):
        check_weights("int4", ModelConfig())
    with pytest.raises(ConfigError, match="int8 is for transformers, and uvit convolves"):
        check_weights("int8", ModelConfig(backbone="uvit"))
