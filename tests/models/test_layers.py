"""GELU in low precision, and the slices of one product."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rfjax.models.layers import gelu, unstack


def exact_gelu(x):
    x = np.asarray(x, np.float64)
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_gelu_in_bfloat16_is_rounded_once_and_keeps_its_input_alone():
    """Computed in bfloat16 throughout, it errs by more than twenty of its last places, and keeps the tanh as well."""
    x = jnp.linspace(-2.5, 4, 4001, dtype=jnp.bfloat16)  # below, 1 + tanh cancels in float32, too
    want = exact_gelu(x)
    got, backward = jax.vjp(jax.jit(gelu), x)
    assert got.dtype == jnp.bfloat16
    last_place = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(want), 2.0**-24))) - 7)
    error = np.abs(np.asarray(got, np.float64) - want) / last_place
    assert error.max() < 0.52  # half a place, and float32's own error
    step, places = 1e-4, np.asarray(x, np.float64)
    slope = (exact_gelu(places + step) - exact_gelu(places - step)) / (2 * step)
    np.testing.assert_allclose(np.asarray(backward(jnp.ones_like(x))[0], np.float64), slope, rtol=2**-8, atol=1e-3)
    kept = [leaf for leaf in jax.tree.leaves(jax.vjp(gelu, x)[1]) if np.shape(leaf) == x.shape]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]
    exact = jnp.linspace(-4, 4, 101)
    np.testing.assert_array_equal(gelu(exact), nn.gelu(exact, approximate=True))  # float32 has the library's bits


def test_slices_of_a_product_have_a_gradient_without_a_transpose():
    """The gradient of `jnp.moveaxis` is a copy of the whole array in another order, once more for each product."""
    x = jnp.arange(2 * 5 * 3 * 4, dtype=jnp.float32).reshape(2, 5, 3, 4)
    for got, want in zip(unstack(x, 2), jnp.moveaxis(x, 2, 0), strict=True):
        np.testing.assert_array_equal(got, want)

    def total(x, split):
        first, second, third = split(x)
        return jnp.sum(first * second + third)

    ours, other = (
        jax.make_jaxpr(jax.grad(lambda x, s=split: total(x, s)))(x)
        for split in (lambda x: unstack(x, 2), lambda x: jnp.moveaxis(x, 2, 0))
    )
    assert "transpose" in str(other) and "transpose" not in str(ours)
