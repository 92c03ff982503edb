"""The attention whose backward pass recomputes, against plain automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.models.attention import attention


def plain(q, k, v):
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), v)


def arrays(scale=1.0):
    keys = jax.random.split(jax.random.key(0), 4)
    return [scale * jax.random.normal(key, (2, 7, 3, 16)) for key in keys]


def test_output_and_gradients_equal_plain_attention():
    *qkv, weight = arrays()
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(attention(*qkv), plain(*qkv), atol=1e-5)
        got = jax.grad(lambda *x: jnp.sum(weight * attention(*x)), (0, 1, 2))(*qkv)
        want = jax.grad(lambda *x: jnp.sum(weight * plain(*x)), (0, 1, 2))(*qkv)
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_huge_logits_stay_finite():
    """Logits of some thousands: exp would overflow without the maximum taken off."""
    *qkv, weight = arrays(scale=60.0)
    gradients = jax.grad(lambda *x: jnp.sum(weight * attention(*x)), (0, 1, 2))(*qkv)
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)
    assert bool(jnp.isfinite(attention(*qkv)).all())


def test_bfloat16_inputs_give_bfloat16_gradients_near_the_float32_ones():
    *qkv, weight = arrays()
    low = [x.astype(jnp.bfloat16) for x in qkv]
    got = jax.grad(lambda *x: jnp.sum(weight * attention(*x).astype(jnp.float32)), (0, 1, 2))(*low)
    want = jax.grad(lambda *x: jnp.sum(weight * plain(*x)), (0, 1, 2))(*qkv)
    for a, b in zip(got, want):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(a), b, atol=0.03 * float(jnp.abs(b).max()))
