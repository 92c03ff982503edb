"""The objective: its value, its random numbers, its condition dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.data.batch import Conditions, EncoderSlot
from rfjax.flow.formulation import parse_formulation
from rfjax.flow.matched import matched, velocity_of
from rfjax.flow.objective import draw, drop_conditions, example_losses, examples_at

SLOTS = (
    EncoderSlot(name="clip", tokens=(0, 3), channels=(0, 4), pooled=(0, 2)),
    EncoderSlot(name="t5", tokens=(3, 5), channels=(0, 6), pooled=(2, 2)),
)


def draws(places, step=5, dropout=0.4):
    return draw(jax.random.key(1), jnp.int32(step), places, (1, 4, 4, 2), len(SLOTS), dropout)


def test_a_place_draws_the_same_whoever_shares_its_batch():
    whole, part = draws(jnp.arange(16)), draws(jnp.array([9, 3]))
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(np.asarray(a)[[9, 3]], b)


def test_places_and_steps_draw_differently():
    t = np.concatenate([draws(jnp.arange(50), step).u for step in range(4)])
    assert len(np.unique(t)) == 200
    a, b = draws(jnp.arange(2), 0).noise, draws(jnp.arange(2), 1).noise
    assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 0.3
    assert not np.allclose(a[0], a[1])


def test_dropout_has_its_rate_and_is_independent_of_t_and_between_encoders():
    many = draws(jnp.arange(20_000), dropout=0.4)
    keep = np.asarray(many.keep)
    np.testing.assert_allclose(keep.mean(0), 0.6, atol=0.015)
    correlations = np.corrcoef(np.column_stack([keep, many.u]).T)
    assert np.abs(correlations[np.triu_indices(3, 1)]).max() < 0.03


def test_dropping_zeroes_an_encoders_part_and_nothing_else():
    conditions = Conditions(jnp.ones((2, 5, 6)), jnp.ones((2, 3)))
    dropped = drop_conditions(conditions, jnp.array([[0.0, 1.0], [1.0, 0.0]]), SLOTS)
    want = np.ones((2, 5, 6))
    want[0, :3, :4] = 0
    want[1, 3:] = 0
    np.testing.assert_array_equal(dropped.context, want)
    np.testing.assert_array_equal(dropped.pooled, [[0, 0, 1], [1, 1, 1]])


@pytest.mark.parametrize("name", ("rf", "rf/lognorm(0.00,1.00)", "rf/mode(1.29)", "rf/cosmap"))
def test_rectified_flow_goes_through_the_generic_objective_bit_for_bit(name):
    """The losses and gradients of SD3 eq. 13 written out: a study begun before stays comparable. A scaling,
    a weight or a conversion that is not exactly one for rf would show in the last bit."""
    formulation = parse_formulation(name)
    rng = np.random.default_rng(0)
    data = jnp.float32(rng.standard_normal((64, 1, 4, 4, 2)))
    drawn = draw(jax.random.key(3), jnp.int32(7), jnp.arange(64), (1, 4, 4, 2), 1, 0.0)
    times = formulation.density.quantile(drawn.u)
    conditions = Conditions(jnp.zeros((64, 1, 1)), jnp.zeros((64, 1)))
    weight = jnp.float32(rng.standard_normal((2, 2)))

    def network(weight):
        return lambda z, t, context, pooled: jnp.tanh(z @ weight + t[:, None, None, None, None])

    def generic(weight):
        losses = example_losses(network(weight), examples_at(formulation, times), drawn.noise, data, conditions)
        return losses.mean(), losses

    def plain(weight):
        t = times.reshape(-1, 1, 1, 1, 1)
        z = (1.0 - t) * data + t * drawn.noise
        target = (0.0 * t - 1.0) * data + (0.0 * t + 1.0) * drawn.noise
        losses = jnp.mean(jnp.square(network(weight)(z, times, *conditions) - target), axis=(1, 2, 3, 4))
        return losses.mean(), losses

    got, want = (jax.jit(jax.value_and_grad(one, has_aux=True))(weight) for one in (generic, plain))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    # nor is anything changed when it is sampled
    at = matched(formulation, times)
    assert all((field == plain).all() for field, plain in zip(at, (times, 1.0, times, 1.0, 0.0), strict=True))

    def apply(weight, *inputs):
        return network(weight)(*inputs)

    np.testing.assert_array_equal(
        velocity_of(apply, weight, data, at, conditions), network(weight)(data, times, *conditions)
    )


@pytest.mark.parametrize("t", (0.2, 0.9))
def test_loss_is_the_mean_square_of_the_velocity_error(t):
    rng = np.random.default_rng(0)
    data, noise = jnp.float32(rng.standard_normal((2, 3, 1, 4, 4, 2)))
    formulation = parse_formulation("rf")
    fixed = examples_at(formulation, jnp.full(3, t))
    conditions = Conditions(jnp.zeros((3, 1, 1)), jnp.zeros((3, 1)))
    offset = np.float32(rng.standard_normal((3, 1, 4, 4, 2)))

    def nearly_right(z, time, context, pooled):
        np.testing.assert_allclose(z, (1 - t) * data + t * noise, atol=1e-6)
        return noise - data + offset

    got = example_losses(nearly_right, fixed, noise, data, conditions)
    np.testing.assert_allclose(got, (offset**2).mean((1, 2, 3, 4)), rtol=1e-5)
