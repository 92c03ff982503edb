"""Samplers on a flow whose velocity and solution are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.data.batch import Conditions
from rfjax.flow.path import RectifiedFlow, expand_time, interpolate, velocity_target
from rfjax.flow.prediction import Velocity, data_and_noise
from rfjax.flow.samplers import METHODS, guided_share, guided_velocity, integrate, integrate_with_length, sampling_times

MEAN, STD = 0.7, 0.3


def gaussian_velocity(z, t):
    """E[eps - x0 | z_t = z] for data N(MEAN, STD^2): the optimal rectified-flow velocity."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    centred = z - (1 - t) * MEAN
    return t / variance * centred - (MEAN + (1 - t) * STD**2 / variance * centred)


@pytest.mark.parametrize(("method", "order"), (("euler", 1), ("heun", 2)))
def test_order_of_convergence(method, order):
    """The exact flow maps noise z to MEAN + STD z: errors fall as steps^-order."""
    noise = jnp.linspace(-2.0, 2.0, 41)
    errors = []
    for steps in (16, 32, 64):
        got = integrate(gaussian_velocity, noise, sampling_times(steps), method)
        errors.append(float(jnp.abs(got - (MEAN + STD * noise)).max()))
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(slopes, order, atol=0.15)


def test_every_method_has_its_order_tested():
    assert set(METHODS) == {"euler", "heun"}


def test_times_run_from_noise_to_data():
    np.testing.assert_allclose(sampling_times(4), [1, 0.75, 0.5, 0.25, 0])
    shifted = sampling_times(4, 3.0)
    assert shifted[0] == 1 and shifted[-1] == 0
    np.testing.assert_allclose(shifted[1:-1], [0.9, 0.75, 0.5])


@pytest.mark.parametrize("method", METHODS)
def test_a_path_is_as_long_as_it_is(method):
    """A turn by two radians about the origin is an arc of twice the radius. Catches a norm over the batch, and a norm
    of the displacement from start to end."""

    def turning(z, t):
        return 2.0 * jnp.stack([-z[:, 1], z[:, 0]], axis=1)

    start = jnp.array([[3.0, 0.0], [0.0, 0.5]])
    end, length = integrate_with_length(turning, start, sampling_times(400), method)
    np.testing.assert_allclose(length, [6.0, 1.0], rtol=6e-3)
    np.testing.assert_allclose(end, integrate(turning, start, sampling_times(400), method), rtol=1e-6)


def test_guidance():
    """v_null + s (v_text - v_null), the null condition being zeros unless a negative is given."""

    def velocity(z, t, conditions):
        return z + t + conditions.context.sum((1, 2))[:, None] + 10 * conditions.pooled.sum(1)[:, None]

    z, t = jnp.ones((2, 3)), 0.5
    conditions = Conditions(jnp.ones((2, 1, 1)), jnp.array([[0.0], [1.0]]))
    text = np.array([1.0, 11.0])[:, None]
    np.testing.assert_allclose(guided_velocity(velocity, 4.0, conditions)(z, t), 1.5 + 4 * text * np.ones((2, 3)))
    np.testing.assert_allclose(guided_velocity(velocity, 1.0, conditions)(z, t), 1.5 + text * np.ones((2, 3)))
    negative = Conditions(2 * jnp.ones((2, 1, 1)), jnp.zeros((2, 1)))
    np.testing.assert_allclose(
        guided_velocity(velocity, 4.0, conditions, negative)(z, t), 1.5 + 2 + 4 * (text - 2) * np.ones((2, 3))
    )


def test_guidance_in_an_interval():
    """Catches guidance that stays on outside, ends that are left out, and a cost that is counted as if it did."""

    def velocity(z, t, conditions):
        return z + conditions.context.sum((1, 2))[:, None]

    z, conditions = jnp.zeros((2, 3)), Conditions(jnp.ones((2, 1, 1)), jnp.zeros((2, 1)))
    field = guided_velocity(velocity, 4.0, conditions, None, (0.25, 0.5))
    found = [float(field(z, jnp.asarray(t))[0, 0]) for t in (1.0, 0.75, 0.5, 0.25, 0.0)]
    assert found == [1.0, 1.0, 4.0, 4.0, 1.0]
    times = sampling_times(4)  # Euler's steps begin at 1, 0.75, 0.5, 0.25; Heun's end at 0.75, 0.5, 0.25, 0
    shares = [guided_share(times, method, 4.0, (0.25, 0.5)) for method in ("euler", "heun")]
    assert shares == [0.5, 0.5] and guided_share(times, "euler", 4.0, (0.6, 0.8)) == 0.25
    assert guided_share(times, "heun", 4.0, (0.0, 0.1)) == 0.125
    assert guided_share(times, "euler", 1.0, (0.0, 1.0)) == 0.0


def test_the_share_counts_the_times_at_which_the_sampler_guides():
    """Catches an end of the interval that is a time of the sampler in float32, and not in float64, as 0.3 of ten."""
    times = sampling_times(10)
    assert times[7] != 0.3
    conditions = Conditions(np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), np.float32))
    field = guided_velocity(lambda z, at, given: jnp.full_like(z, 2 * len(z) - 1), 4.0, conditions, interval=(0.1, 0.3))
    guided = [float(field(jnp.zeros((1, 1)), jnp.float32(t))[0, 0]) != 1.0 for t in times[:-1]]
    assert sum(guided) == 3 and guided_share(times, "euler", 4.0, (0.1, 0.3)) == 0.3


def test_path_target_is_the_slope_and_inverts():
    path = RectifiedFlow()
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        data, noise = jnp.asarray(rng.standard_normal((2, 5, 4)))
        t = jnp.linspace(0.1, 0.9, 5)
        h = 1e-6
        slope = (interpolate(path, data, noise, t + h) - interpolate(path, data, noise, t - h)) / (2 * h)
        velocity = velocity_target(path, data, noise, t)
        np.testing.assert_allclose(velocity, slope, atol=1e-8)
        z = interpolate(path, data, noise, t)
        x0, eps = data_and_noise(Velocity().mixing(path, expand_time(t, z)), z, velocity)
        np.testing.assert_allclose(x0, data, atol=1e-12)
        np.testing.assert_allclose(eps, noise, atol=1e-12)
        np.testing.assert_array_equal(interpolate(path, data, noise, jnp.zeros(5)), data)  # t=0 is data
        np.testing.assert_array_equal(interpolate(path, data, noise, jnp.ones(5)), noise)
