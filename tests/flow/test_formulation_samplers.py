"""One sampler for every formulation: on Gaussian data, where the optimal network and the flow are exact.

The optimal networks are written by each family's own definition (`families.own_prediction`): they see
what a trained network would see, and answer with what it would predict.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.published_families import own_prediction
from rfjax.config import SamplerConfig
from rfjax.data.batch import Conditions
from rfjax.errors import ConfigError
from rfjax.evaluation.generate import make_generator, noise_for, prompt_ids
from rfjax.flow.formulation import FAMILIES, PAPER, parse_formulation
from rfjax.flow.matched import matched, own_loss_ratio, velocity_of
from rfjax.flow.path import expand_time, rectified_time
from rfjax.flow.prediction import data_and_noise
from rfjax.flow.samplers import OWN_STEPS, integrate, sampling_levels, sampling_times

MEAN, STD = 0.7, 0.3
# Formulations of one path, prediction and span are sampled alike.
SAMPLED = (
    "rf",
    "eps/linear",
    "v/linear",
    "x/linear",
    "eps/cos",
    "v/cos",
    "x/cos",
    "edm/rf",
    "fm/ot(0.00001)",
    "fm/vp",
    "fm/ve",
)
ALL = tuple(dict.fromkeys((*PAPER, *SAMPLED)))


def optimal(name):
    """The network with the least loss for data N(MEAN, STD^2)."""

    def apply(params, z, condition, context, pooled):
        a, b, z, prediction = own_prediction(name, z, expand_time(condition, z))
        innovation = (z - a * MEAN) / (a * a * STD**2 + b * b)
        return prediction(MEAN + a * STD**2 * innovation, b * innovation)

    return apply


def field(name):
    formulation, apply = parse_formulation(name), optimal(name)
    return lambda y, s: velocity_of(
        apply, None, y, matched(formulation, jnp.full(y.shape[:1], s)), Conditions(None, None)
    )


def marginal(s, quantiles):
    """The straight path's marginal at s, at normal quantiles, which the exact flow maps to each other."""
    return (1 - s) * MEAN + np.sqrt((1 - s) ** 2 * STD**2 + s * s) * quantiles


def inner_levels(formulation, steps):
    """steps + 1 levels over the whole span, spaced as the formulation's own."""
    first, last = formulation.span or formulation.path.span
    spacing = OWN_STEPS.get(type(formulation.path))
    times = spacing(steps + 1, first, last)[:-1] if spacing else np.linspace(last, first, steps + 1)
    return rectified_time(formulation.path, times)


def test_every_sampler_is_tested():
    def kind(name):
        f = parse_formulation(name)
        return f.path, f.prediction, f.rectified_span

    every = (*PAPER, *(family.example for family in FAMILIES.values()))
    assert {kind(name) for name in every} == {kind(name) for name in SAMPLED}


@pytest.mark.parametrize("name", ALL)
def test_the_optimal_denoiser_is_one_function_of_z_over_a_and_sigma(name):
    """For every prediction, input scale and definition of time, the data estimate is E[x0 | z/a, sigma]. A wrong sign
    or factor, or an exchanged end of time, in one conversion shows here, without any sampler."""
    formulation = parse_formulation(name)
    low, high = formulation.rectified_span
    with jax.enable_x64(True):
        for s in np.linspace(max(low, 0.02), min(high, 0.98), 9):
            y = jnp.linspace(-2, 2, 7)
            velocity = field(name)(y, s)
            data = y - s * velocity
            sigma = s / (1 - s)
            expected = MEAN + STD**2 / (STD**2 + sigma**2) * (y / (1 - s) - MEAN)
            np.testing.assert_allclose(data, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_predictions_and_their_data_and_noise_are_inverses(name):
    formulation = parse_formulation(name)
    path = formulation.path
    first, last = formulation.span or path.span
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        t = jnp.linspace(first, last, 9)[1:-1]
        data, noise = jnp.asarray(rng.standard_normal((2, 7, 3)))
        a, b, m, n = mixing = formulation.prediction.mixing(path, expand_time(t, data))
        got = data_and_noise(mixing, a * data + b * noise, m * data + n * noise)
        np.testing.assert_allclose(got, (data, noise), atol=1e-8)
        np.testing.assert_allclose(path.time_at(rectified_time(path, t)), t, rtol=1e-9)
        if "linear" not in name:  # whose slope jumps at its steps
            h = 1e-6
            for value, slope in ((path.a, path.da), (path.b, path.db)):
                np.testing.assert_allclose((value(t + h) - value(t - h)) / (2 * h), slope(t), rtol=1e-6, atol=1e-7)
        own = own_prediction(
            name,
            np.asarray(a * data + b * noise) * formulation.prediction.input_scale(a, b),
            expand_time(path.condition(t), data),
        )
        np.testing.assert_allclose(own[3](data, noise), m * data + n * noise, rtol=1e-7, atol=1e-7)


def orders(name, method, levels):
    quantiles = np.linspace(-2.0, 2.0, 9)
    errors = []
    with jax.enable_x64(True):
        for s in levels:
            end = integrate(field(name), jnp.asarray(marginal(s[0], quantiles)), s, method)
            errors.append(float(jnp.abs(end - marginal(s[-1], quantiles)).max()))
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:])), errors


@pytest.mark.parametrize(("method", "order"), (("euler", 1), ("heun", 2)))
@pytest.mark.parametrize("name", SAMPLED)
def test_order_of_convergence_in_even_steps_of_s(name, method, order):
    """From the exact marginal at the noisiest level to that at the cleanest, in s = sigma / (1 + sigma)."""
    low, high = parse_formulation(name).rectified_span
    slopes, errors = orders(name, method, [np.linspace(high, low, steps + 1) for steps in (64, 128, 256)])
    np.testing.assert_allclose(slopes, order, atol=0.15, err_msg=str(errors))
    assert errors[-1] < 0.01


# fm/vp's even steps of t are of size sqrt(t) in s near the data, so no order is to be seen there.
@pytest.mark.parametrize(("method", "order"), (("euler", 1), ("heun", 2)))
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full) if name in ("v/linear", "x/linear", "x/cos", "fm/ve") else name
        for name in SAMPLED
        if name != "fm/vp"
    ],
)
def test_order_of_convergence_in_each_paths_own_steps(name, method, order):
    """The levels as sampling takes them; linear's steps must be finer than its 1,000 (beta is interpolated)."""
    formulation = parse_formulation(name)
    counts = (2000, 4000, 8000) if "linear" in name else (64, 128, 256)
    slopes, errors = orders(name, method, [inner_levels(formulation, steps) for steps in counts])
    np.testing.assert_allclose(slopes, order, atol=0.2, err_msg=str(errors))


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("sigmas", ("uniform", "matched"))
def test_levels_run_from_the_noisiest_to_none(name, sigmas):
    formulation = parse_formulation(name)
    levels = sampling_levels(formulation, 10, sigmas)
    assert len(levels) == 11 and levels[-1] == 0 and (np.diff(levels) < 0).all()
    assert levels[0] == pytest.approx(formulation.rectified_span[1], rel=1e-12)
    if not formulation.is_rectified_flow:
        with pytest.raises(ConfigError, match="sigmas is diffusers, .* use uniform or matched"):
            sampling_levels(formulation, 10, "diffusers")


def test_published_levels():
    """EDM's first sigmas for 18 steps; DDIM's even steps of the linear schedule; rf's own."""
    edm = sampling_levels(parse_formulation("edm(-1.20,1.20)"), 18)
    sigma = edm / (1 - edm)
    np.testing.assert_allclose(sigma[:3], [80.0, 57.586, 40.786], rtol=1e-4)
    assert sigma[17] == pytest.approx(0.002) and sigma[18] == 0
    linear = sampling_levels(parse_formulation("eps/linear"), 50)
    assert linear[0] / (1 - linear[0]) == pytest.approx(14.6146, rel=1e-5)  # Stable Diffusion's largest sigma
    np.testing.assert_array_equal(sampling_levels(parse_formulation("rf/cosmap", 3.0), 7), sampling_times(7, 3.0))


@pytest.mark.parametrize("method", ("euler", "heun"))
@pytest.mark.parametrize("name", ("rf", "eps/linear", "x/cos", "v/cos", "edm(-1.20,1.20)"))
def test_what_evaluation_samples_has_the_datas_distribution(name, method):
    """The generator as evaluation calls it: first level, its noise, guidance, the last step. The optimal
    network's images are a function of the noise that is known but for the first level's bias."""
    formulation = parse_formulation(name)

    def apply(params, z, t, context, pooled):
        return optimal(name)(params, z, t, context, pooled)

    generate = make_generator(
        apply, SamplerConfig(method=method, steps=400, guidance_scale=3.0), formulation, (1, 4, 4, 2), batch_size=8
    )
    ids = prompt_ids(8, 1)
    got = generate(None, 7, ids, Conditions(np.zeros((8, 1, 1), np.float32), np.zeros((8, 1), np.float32)))
    noise, s = np.asarray(noise_for(7, jnp.asarray(ids), (1, 4, 4, 2))), formulation.rectified_span[1]
    spread = np.sqrt((1 - s) ** 2 * STD**2 + s * s)
    quantile = (s * noise - (1 - s) * MEAN) / spread  # of N(0, b^2) in the exact marginal
    np.testing.assert_allclose(got, MEAN + STD * quantile, atol=0.02)


@pytest.mark.parametrize("name", SAMPLED)
def test_loss_in_own_terms_is_a_ratio_at_each_level(name):
    """Any network's own squared error at the same point, against the ratio times the rectified one."""
    formulation = parse_formulation(name)
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        low, high = formulation.rectified_span
        s = jnp.linspace(max(low, 0.05), min(high, 0.9), 6)
        data, noise, error = jnp.asarray(rng.standard_normal((3, 6, 5)))
        t = formulation.path.time_at(s)
        mixing = formulation.prediction.mixing(formulation.path, expand_time(t, data))

        def wrong(params, z, *rest):
            return mixing.m * data + mixing.n * noise + error

        y = expand_time(1 - s, data) * data + expand_time(s, data) * noise
        velocity = velocity_of(wrong, None, y, matched(formulation, s), Conditions(None, None))
        rectified = jnp.square(velocity - (noise - data)).mean(1)
        np.testing.assert_allclose(own_loss_ratio(formulation, s) * rectified, jnp.square(error).mean(1), rtol=1e-7)


def documented():
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("formulation_ends", root / "analysis/formulation_ends.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, (root / "docs/formulations.md").read_text()


def test_the_documented_costs_of_ends_and_steps_are_the_measured():
    """The page would keep old numbers after a change of levels, spans or samplers."""
    ends, page = documented()
    with jax.enable_x64(True):
        for line in ends.table():
            assert line in page, line


@pytest.mark.parametrize("name", ("eps/linear", "edm(-1.20,1.20)"))
def test_the_bias_of_starting_from_noise_alone(name):
    """Its closed form against fine integration of the optimal network from N(0, b^2) instead of the marginal."""
    ends, _ = documented()
    low, high = parse_formulation(name).rectified_span
    with jax.enable_x64(True):
        end = integrate(field(name), high * jnp.array([0.0, 1.0]), np.linspace(high, low, 2001), "heun")
    at_end = [(value - (1 - low) * MEAN) / float(marginal(low, 1.0) - marginal(low, 0.0)) for value in np.asarray(end)]
    mean, spread = ends.start_bias(high)
    np.testing.assert_allclose([at_end[0], at_end[1] - at_end[0] - 1], [mean, spread], atol=1e-5)
    assert abs(mean) > 5e-3  # there is something to see
