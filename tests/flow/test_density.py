"""Densities of t: exact samplers, exact densities, and the draws of the training code itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rfjax.errors import ConfigError
from rfjax.flow.density import MODE_SCALE_MAX, CosMap, LogitNormal, Mode, Shifted, Uniform, UniformAbove, shift_time
from rfjax.flow.formulation import parse_formulation
from rfjax.flow.objective import draw

DENSITIES = {
    "uniform": Uniform(),
    "uniform above": UniformAbove(0.25),
    "lognorm(0,1)": LogitNormal(0.0, 1.0),
    "lognorm(-0.5,0.6)": LogitNormal(-0.5, 0.6),
    "mode(1.29)": Mode(1.29),
    "mode(-1)": Mode(-1.0),
    "mode(0)": Mode(0.0),
    "cosmap": CosMap(),
    "lognorm shifted": Shifted(LogitNormal(0.5, 1.0), 3.0),
    "mode shifted": Shifted(Mode(0.83), 2.0),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_quantile_cdf_and_pdf_agree(name):
    density = DENSITIES[name]
    u = np.linspace(0.01, 0.99, 99).astype(np.float32)
    np.testing.assert_allclose(density.cdf(density.quantile(u)), u, atol=2e-5)
    with jax.enable_x64(True):
        midpoints = (jnp.arange(100_000, dtype=jnp.float64) + 0.5) / 100_000
        total = float(density.pdf(midpoints).mean())
        slope = jax.vmap(jax.grad(lambda t: density.quantile(t)))(jnp.asarray(u, jnp.float64))
        at = density.quantile(jnp.asarray(u, jnp.float64))
        inside = np.asarray(slope) > 1e-3  # where the quantile is flat (mode, s = -1) the density is a pole
        # dt/du = 1/pdf(t): the sampler's own slope against the closed form
        np.testing.assert_allclose((density.pdf(at) * slope)[inside], 1.0, rtol=1e-5)
    if name != "mode(-1)":  # integrable poles at both ends, which the midpoint rule cannot close on
        assert total == pytest.approx(1.0, abs=1e-5)


def test_published_values_of_the_mode_density():
    assert float(Mode(1.29).pdf(jnp.array(0.5))) == pytest.approx(3.79, abs=0.01)
    np.testing.assert_allclose(Mode(0.83).pdf(jnp.array([1e-6, 1 - 1e-6])), 1 / 1.83, rtol=1e-3)
    assert float(Mode(1.75).pdf(jnp.array(0.5))) > 500  # the narrow spike near the largest scale


@pytest.mark.parametrize("name", DENSITIES)
def test_training_draws_follow_the_density(name):
    """Kolmogorov-Smirnov on what training really draws, over steps and places."""
    density = DENSITIES[name]
    one = jax.jit(lambda step: density.quantile(draw(jax.random.key(3), step, jnp.arange(500), (1, 1, 1), 1, 0.0).u))
    t = np.concatenate([one(step) for step in range(40)])
    assert t.min() >= 0 and t.max() <= 1
    cdf = jax.jit(DENSITIES[name].cdf)
    p = stats.kstest(t, lambda x: np.asarray(cdf(jnp.asarray(x, jnp.float32)), np.float64)).pvalue
    assert p > 1e-3


def test_the_histogram_test_can_fail():
    """The sample above is large enough to tell lognorm(0, 1) from lognorm(0.05, 1)."""
    t = np.asarray(LogitNormal(0.05, 1.0).quantile(jax.random.uniform(jax.random.key(0), (20_000,))))
    cdf = LogitNormal(0.0, 1.0).cdf
    assert stats.kstest(t, lambda x: np.asarray(cdf(jnp.asarray(x)))).pvalue < 1e-3


def test_shift_is_the_papers():
    with jax.enable_x64(True):
        t = jnp.linspace(0.0, 1.0, 11)
        np.testing.assert_allclose(shift_time(t, 3.0), 3 * t / (1 + 2 * t))
        np.testing.assert_allclose(shift_time(shift_time(t, 3.0), 1 / 3.0), t, atol=1e-12)
    # a shifted logit-normal(m, s) is logit-normal(m + ln alpha, s)
    u = np.linspace(0.01, 0.99, 99).astype(np.float32)
    np.testing.assert_allclose(
        Shifted(LogitNormal(0.3, 0.8), 3.0).quantile(u), LogitNormal(0.3 + np.log(3.0), 0.8).quantile(u), atol=1e-6
    )


def test_bad_parameters_are_refused():
    with pytest.raises(ConfigError, match="mode scale is 1.8"):
        Mode(1.8)
    Mode(MODE_SCALE_MAX)
    with pytest.raises(ConfigError, match="lognorm scale is 0"):
        LogitNormal(0.0, 0.0)


def test_names_parse_and_near_misses_are_answered():
    assert parse_formulation("rf/lognorm(0.50,0.60)").density == LogitNormal(0.5, 0.6)
    assert parse_formulation("rf").density == Uniform()
    assert parse_formulation("rf/mode(1.29)", 3.0).density == Shifted(Mode(1.29), 3.0)
    with pytest.raises(ConfigError, match=r"did you mean rf/lognorm\(0.00,1.00\)"):
        parse_formulation("rf/lognrm(0.00,1.00)")
    with pytest.raises(ConfigError, match="takes 2"):
        parse_formulation("rf/lognorm(0.00)")
    with pytest.raises(ConfigError, match="no number"):
        parse_formulation("rf/mode(big)")
