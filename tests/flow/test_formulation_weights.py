"""Where each of the 61 formulations puts its effort: the effective weight w(log-SNR) of SD3 eq. 12.

The closed forms below are the paper's, written without the code under test; the constants by which
ours exceed them are recorded, one a family.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from helpers.published_families import alpha_bar, own_prediction
from rfjax.config import from_dict
from rfjax.data.batch import Batch
from rfjax.errors import ConfigError
from rfjax.flow.density import CosMap, Discrete, Uniform
from rfjax.flow.formulation import FAMILIES, PAPER, Formulation, parse_formulation
from rfjax.flow.objective import effective_weight, log_snr
from rfjax.flow.path import LatentDiffusionLinear, RectifiedFlow
from rfjax.flow.weight import DensityWeight
from rfjax.training.loss import make_loss

# Section 5.1, typed out.
NAMES = """
eps/linear v/linear eps/cos v/cos rf
rf/mode(-1.00) rf/mode(-0.54) rf/mode(-0.08) rf/mode(0.38) rf/mode(0.83) rf/mode(1.00) rf/mode(1.29) rf/mode(1.75)
rf/lognorm(-1.00,0.20) rf/lognorm(-1.00,0.60) rf/lognorm(-1.00,1.00)
rf/lognorm(-1.00,1.40) rf/lognorm(-1.00,1.80) rf/lognorm(-1.00,2.20)
rf/lognorm(-0.50,0.20) rf/lognorm(-0.50,0.60) rf/lognorm(-0.50,1.00)
rf/lognorm(-0.50,1.40) rf/lognorm(-0.50,1.80) rf/lognorm(-0.50,2.20)
rf/lognorm(0.00,0.20) rf/lognorm(0.00,0.60) rf/lognorm(0.00,1.00)
rf/lognorm(0.00,1.40) rf/lognorm(0.00,1.80) rf/lognorm(0.00,2.20)
rf/lognorm(0.50,0.20) rf/lognorm(0.50,0.60) rf/lognorm(0.50,1.00)
rf/lognorm(0.50,1.40) rf/lognorm(0.50,1.80) rf/lognorm(0.50,2.20)
rf/lognorm(1.00,0.20) rf/lognorm(1.00,0.60) rf/lognorm(1.00,1.00)
rf/lognorm(1.00,1.40) rf/lognorm(1.00,1.80) rf/lognorm(1.00,2.20)
rf/cosmap
edm(-1.20,0.60) edm(-1.20,1.20) edm(-1.20,1.80) edm(-0.60,0.60) edm(-0.60,1.20) edm(-0.60,1.80)
edm(0.00,0.60) edm(0.00,1.20) edm(0.00,1.80) edm(0.60,0.60) edm(0.60,1.20) edm(0.60,1.80)
edm(1.20,0.60) edm(1.20,1.20) edm(1.20,1.80) edm/rf edm/cos
""".split()

# Ours over the paper's w, which leaves constants out.
CONSTANTS = {"rf": 1.0, "eps/cos": 1 / np.pi, "v/cos": 2 / np.pi, "edm": 8.0, "edm/rf": 8.0, "edm/cos": 8.0}
LAMBDA = np.linspace(-9.0, 9.0, 181)


def family(name):
    return "rf" if name.split("/")[0] == "rf" else name.split("(")[0]


def numbers(name):
    return [float(number) for number in name[name.index("(") + 1 : -1].split(",")]


def mode_curve(s, u):
    """(t, density of t) of mode(s) by its parameter u: no inversion."""
    return 1 - u - s * (np.cos(np.pi * u / 2) ** 2 - 1 + u), 1 / (1 + s - s * np.pi / 2 * np.sin(np.pi * u))


def closed_form(name, lam):
    """The paper's w at log-SNRs, of all but mode and the discrete schedules."""
    t = 1 / (1 + np.exp(lam / 2))  # of rectified flow
    snr_rf, snr_cos = 1 / (8 * np.cosh(lam / 4) ** 2), 1 / (np.cosh(lam / 2) * 2 * np.pi)
    if name == "eps/cos":
        return 1 / np.cosh(lam / 2)
    if name == "v/cos":
        return np.exp(-lam / 2)
    if name.startswith("edm"):
        density = {"edm/rf": snr_rf, "edm/cos": snr_cos}.get(name)
        if density is None:
            mean, scale = numbers(name)
            density = stats.norm.pdf(lam, -2 * mean, 2 * scale)
        return density * (np.exp(-lam) + 0.5**2)
    density = 1.0
    if name.startswith("rf/lognorm"):
        m, s = numbers(name)
        density = np.exp(-((np.log(t / (1 - t)) - m) ** 2) / (2 * s * s)) / (s * np.sqrt(2 * np.pi) * t * (1 - t))
    elif name == "rf/cosmap":
        density = 2 / (np.pi - 2 * np.pi * t + 2 * np.pi * t * t)
    return t / (1 - t) * density


def test_there_are_exactly_the_papers_61():
    assert len(set(NAMES)) == 61 and set(PAPER) == set(NAMES) and len(PAPER) == 61
    for name in (*PAPER, *(family.example for family in FAMILIES.values())):
        assert parse_formulation(name).name == name


def test_the_grid_of_mode_is_the_papers_even_one():
    even = [f"rf/mode({s:.2f})" for s in np.linspace(-1, 1.75, 7)]
    assert set(even) | {"rf/mode(1.00)"} == {name for name in PAPER if name.startswith("rf/mode")}


@pytest.mark.parametrize(
    "name, answer",
    [
        ("edm(1.2)", r"takes 2, as in edm\(-1.20,1.20\)"),
        ("emd(-1.20,1.20)", r"did you mean edm\(-1.20,1.20\)\?"),
        ("EDM/rf", "did you mean edm/rf"),
        ("v/cosine", "did you mean v/cos"),
        ("eps/lin", "did you mean eps/linear"),
        ("rf/lognorm(0.00,1.00", r"did you mean rf/lognorm\(0.00,1.00\)"),
        ("rf/logitnormal(0.50,0.60)", r"did you mean rf/lognorm\(0.50,0.60\)"),
        ("rf/cosmp", "did you mean rf/cosmap"),
        ("", "did you mean"),
        ("edm(0,0)", r"formulation 'edm\(0,0\)': .*scale is 0"),
        ("fm/ot(2)", "sigma_min is 2"),
    ],
)
def test_a_near_miss_is_answered_with_the_nearest(name, answer):
    """A typing error must not become another formulation, nor a bare KeyError."""
    with pytest.raises(ConfigError, match=answer):
        parse_formulation(name)


@pytest.mark.parametrize("name", ("v/cos", "edm/rf", "fm/ot(0.00001)"))
def test_a_timestep_shift_is_of_rectified_flow_alone(name):
    """A shift that is silently ignored, or applied to another t, would make runs that are not what they say."""
    with pytest.raises(ConfigError, match=r"timestep_shift is 3, .* set it to 1"):
        parse_formulation(name, 3.0)


@pytest.mark.parametrize("name", [name for name in PAPER if "mode" not in name and "linear" not in name])
def test_effective_weight_is_the_papers(name):
    """A wrong path, prediction, preconditioning or density of any name; to 1e-4 up to the constant."""
    formulation = parse_formulation(name)
    with jax.enable_x64(True):
        t = formulation.path.time_at(jnp.asarray(1 / (1 + np.exp(LAMBDA / 2))))
        np.testing.assert_allclose(log_snr(formulation.path, t), LAMBDA, atol=1e-9)
        ratio = np.asarray(effective_weight(formulation, t)) / closed_form(name, LAMBDA)
    np.testing.assert_allclose(ratio, CONSTANTS[family(name)], rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in PAPER if "mode" in name])
def test_effective_weight_of_mode_by_its_parameter(name):
    u = np.linspace(0.02, 0.98, 97)
    t, density = mode_curve(*numbers(name), u)
    with jax.enable_x64(True):
        ours = effective_weight(parse_formulation(name), jnp.asarray(t))
    np.testing.assert_allclose(ours, t / (1 - t) * density, rtol=1e-4)


@pytest.mark.parametrize("name", ("eps/linear", "v/linear"))
def test_effective_weight_of_the_discrete_schedules_is_the_exact_sum(name):
    """For any error of the noise, the mean loss is the sum over the 1000 levels that DDPM's product gives."""
    formulation, cumulative = parse_formulation(name), alpha_bar()
    assert formulation.density == Discrete(1000) and formulation.path == LatentDiffusionLinear()
    draws = np.asarray(formulation.density.quantile((jnp.arange(1000) + 0.5) / 1000))
    lam = np.log(cumulative / (1 - cumulative))
    error = 1 / (1 + np.exp(lam))  # some error of the noise as a function of lambda
    factor = np.ones(1000) if name == "eps/linear" else 1 / cumulative  # 1 + exp(-lambda)
    with jax.enable_x64(True):
        t = jnp.asarray(draws, jnp.float64).round(3)
        mixing = formulation.prediction.mixing(formulation.path, t)
        ours = (mixing.determinant / mixing.a) ** 2 / (1 + jnp.exp(log_snr(formulation.path, t)))
        assert float(ours.mean()) == pytest.approx((factor * error).mean(), rel=1e-9)
        np.testing.assert_allclose(log_snr(formulation.path, t), lam, rtol=1e-9, atol=1e-9)
    # in float32, as training computes them
    low = jnp.asarray(draws)
    np.testing.assert_allclose(np.asarray(formulation.path.a(low)) ** 2, cumulative, rtol=2e-6)
    np.testing.assert_allclose(np.asarray(formulation.path.condition(low)) * 1000, np.arange(1000), atol=1e-3)


def test_rf_and_the_cosine_path_share_their_total_weight_but_not_their_density():
    """The reason why edm/rf and edm/cos are read as they are: equal total weights would make them the same."""
    lam = np.linspace(-4, 4, 9)
    assert np.ptp(closed_form("rf", lam) / closed_form("v/cos", lam)) < 1e-12
    assert np.ptp(closed_form("edm/rf", lam) / closed_form("edm/cos", lam)) > 0.1


def test_a_density_as_a_weight_has_the_mean_of_drawing_from_it():
    """SD3 eq. 18: uniform t with cosmap's density as factor weighs as rf/cosmap does."""
    weighted = Formulation(name="rf, weighted", path=RectifiedFlow(), density=Uniform(), weight=DensityWeight(CosMap()))
    t = jnp.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(
        effective_weight(weighted, t), effective_weight(parse_formulation("rf/cosmap"), t), rtol=1e-6
    )


# The real training code's mean loss, for a network whose error of the noise is known.

VALUES, BATCH = (1, 2, 2, 1), 4096


def window(lam):
    """An uneven error of the noise, zero outside log-SNRs of -4 to 4, so that moments stay finite."""
    xp = jnp if isinstance(lam, jax.Array) else np
    return xp.where(abs(lam) < 4, xp.exp(lam / 4) * (1 + 0.5 * xp.sin(lam)) * (1 - (lam / 4) ** 2), 0.0)


def expected_loss(name):
    """1/2 integral of w error^2 d lambda, without the code under test."""
    if "linear" in name:
        cumulative = alpha_bar()
        factor = np.ones(1000) if name == "eps/linear" else 1 / cumulative
        return float((factor * window(np.log(cumulative / (1 - cumulative))) ** 2).mean())
    if "mode" in name:
        u = (np.arange(400_000) + 0.5) / 400_000
        t = mode_curve(*numbers(name), u)[0]
        lam = 2 * np.log((1 - t) / t)
        return float((window(lam) ** 2 / (1 - t) ** 2).mean())
    lam = np.linspace(-4, 4, 200_001)
    return float(0.5 * np.trapezoid(CONSTANTS[family(name)] * closed_form(name, lam) * window(lam) ** 2, lam))


def monte_carlo(name, batches):
    """Mean and standard error of the training loss of data 0, where the network knows the noise."""

    def network(params, z, condition, context, pooled):
        a, b, z, prediction = own_prediction(name, z, condition[:, None, None, None, None])
        noise = z / b * (1 + window(2 * jnp.log(a / b)))
        return prediction((z - b * noise) / a, noise)

    config = from_dict({"formulation": name, "train": {"condition_dropout": 0.0}})
    loss_fn = make_loss(config, network, ())
    batch = Batch(
        jnp.zeros((BATCH, *VALUES)), jnp.zeros((BATCH, 1, 1)), jnp.zeros((BATCH, 1)), jnp.zeros(BATCH, jnp.uint32)
    )
    one = jax.jit(lambda step: loss_fn(None, batch, step, jnp.arange(BATCH))[1][:2])
    t, losses = (
        np.concatenate(part) for part in zip(*(jax.device_get(one(step)) for step in range(batches)), strict=True)
    )
    # mode(-1) rounds to an end now and then, where z says nothing of the noise or of the data; one of linear's
    # 1000 levels is an end. All are out of the window.
    ends = (t <= 0) | (t >= 1)
    assert ends.mean() < 2e-3
    losses = np.where(ends, 0.0, losses.astype(np.float64))
    return losses.mean(), losses.std(ddof=1) / np.sqrt(len(losses))


ONE_OF_EACH = (
    "eps/linear",
    "v/linear",
    "eps/cos",
    "v/cos",
    "rf",
    "rf/mode(1.29)",
    "rf/lognorm(0.50,0.60)",
    "rf/cosmap",
    "edm(-1.20,1.20)",
    "edm/rf",
    "edm/cos",
)


def marked_full(names):
    return [name if name in ONE_OF_EACH else pytest.param(name, marks=pytest.mark.full) for name in names]


@pytest.mark.parametrize("name", marked_full(PAPER))
def test_training_spends_its_effort_as_the_weight_says(name):
    """The whole of training's objective: draws, path, scaling, target, mean. 4 standard errors of the real
    code's losses, which are below 3 % of the expected."""
    mean, stderr = monte_carlo(name, batches=12)
    expected = expected_loss(name)
    assert stderr < 0.03 * expected, (stderr, expected)
    assert abs(mean - expected) < 4 * stderr, (mean, expected, stderr)
