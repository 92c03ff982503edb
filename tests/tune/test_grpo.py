"""Flow-GRPO: the stochastic sampler's marginals, the probabilities of its steps, and the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tuned_runs
from rfjax.config import SamplerConfig
from rfjax.data.batch import Conditions
from rfjax.errors import ConfigError
from rfjax.flow.formulation import parse_formulation
from rfjax.flow.stochastic import expected_move, move_variance, noise_sizes
from rfjax.tune import grpo, losses
from rfjax.tune.config import from_dict
from rfjax.tune.method import Draws, Groups, Networks, take


def gaussian_end(steps, amount, first=1.0, mean=0.3, deviation=0.4):
    """(mean, standard deviation) of the images that stochastic steps make from the right distribution at the level
    `first`, for data N(mean, deviation^2) with its exact velocity. Each step is linear in y, so both are followed
    without sampling."""
    levels = np.linspace(first, 0.0, steps + 1)
    m, variance = (1 - first) * mean, (1 - first) ** 2 * deviation**2 + first**2
    with jax.enable_x64(True):
        for s, after, size in zip(levels[:-1], levels[1:], np.asarray(noise_sizes(levels, amount)), strict=True):
            spread = (1 - s) ** 2 * deviation**2 + s**2
            row = [jnp.array([x]) for x in (s, after, size)]

            def move(y, s=s, spread=spread, row=row):
                x0 = mean + (1 - s) * deviation**2 / spread * (y - (1 - s) * mean)
                noise = s / spread * (y - (1 - s) * mean)
                return float(expected_move(jnp.array([noise - x0]), jnp.array([y]), *row)[0])

            offset, slope = move(0.0), move(1.0) - move(0.0)
            m, variance = offset + slope * m, slope**2 * variance + float(move_variance(*row)[0])
    return m, variance**0.5


@pytest.mark.parametrize("amount", [0.7, 0.0])
def test_stochastic_steps_keep_the_marginals_of_a_gaussian(amount):
    """Catches a wrong score, sign or noise of the step: the error of the deviation halves with the step, from a level
    below 1 on. Without noise the steps are those of the ODE."""
    found = np.array([gaussian_end(steps, amount, first=0.8) for steps in (40, 80, 160)])
    np.testing.assert_allclose(found[2], [0.3, 0.4], atol=0.004)
    error = np.abs(found[:, 1] - 0.4)
    assert 1.7 < error[0] / error[1] < 2.3 and 1.7 < error[1] / error[2] < 2.3, found


def test_the_whole_path_has_the_paper_s_noise():
    """From pure noise, with ten steps, the deviation is 0.381 for 0.4."""
    np.testing.assert_allclose(gaussian_end(10, 0.7), [0.3, 0.381], atol=5e-4)
    np.testing.assert_allclose(gaussian_end(100, 0.7), [0.3, 0.4], atol=1e-3)


def test_noise_sizes_are_finite_at_the_ends():
    sizes = np.asarray(noise_sizes(np.array([1.0, 0.8, 0.5, 0.0]), 0.7))
    np.testing.assert_allclose(sizes, [0.7 * np.sqrt(1 / 0.2), 0.7 * np.sqrt(0.8 / 0.2), 0.0], rtol=1e-6)


def test_loss_is_the_clipped_objective():
    """Catches a clip that also holds back a step in the wrong direction, and a lost sign."""
    ratio, advantage = np.array([1.05, 1.2, 0.8, 1.2, 0.8]), np.array([2.0, 2.0, 2.0, -2.0, -2.0])
    loss, got = losses.grpo(jnp.log(ratio), jnp.asarray(advantage), 0.1)
    np.testing.assert_allclose(got, ratio, rtol=1e-6)
    np.testing.assert_allclose(loss, [-2.1, -2.2, -1.6, 2.4, 1.8], rtol=1e-6)


def linear(theta):
    """A network of two parameters: p z + q t."""
    return lambda z, t, context, pooled: theta[0] * z + theta[1] * t[:, None, None, None, None]


def groups_of(rewards, levels=5, seed=0):
    rng = np.random.default_rng(seed)
    prompts, images = np.shape(rewards)
    states = rng.standard_normal((prompts, images, levels, 1, 2, 2, 3)).astype(np.float32)
    text = np.arange(prompts, dtype=np.float32)
    ids = np.indices((prompts, images)).transpose(1, 2, 0)
    conditions = Conditions(text.reshape(-1, 1, 1), text.reshape(-1, 1))
    return Groups(states[:, :, -1], ids, conditions, np.asarray(rewards, float), states)


def test_all_steps_but_the_last_are_learnt_from_where_rewards_differ():
    """Catches another image's advantage or text for a step, and a step that is doubled or left out."""
    tune = from_dict({"method": "grpo"})
    groups = groups_of([[1, 1, 1], [0, 1, 0.5]])
    paths = grpo.transitions(groups, tune)
    assert len(paths.latents) == 3 * 3
    steps = take(paths, np.arange(9))
    assert steps.place.tolist() == [0, 1, 2] * 3
    np.testing.assert_array_equal(steps.latents, paths.latents)
    np.testing.assert_array_equal(steps.latents, groups.states[1, :, :3].reshape(9, 1, 2, 2, 3))
    np.testing.assert_array_equal(steps.moved, groups.states[1, :, 1:4].reshape(9, 1, 2, 2, 3))
    assert steps.context.reshape(-1).tolist() == steps.pooled.reshape(-1).tolist() == [1.0] * 9
    deviations = np.array([-0.5, 0.5, 0.0]) / np.std([-0.5, 0.5, 0.0])
    np.testing.assert_allclose(steps.advantage, np.repeat(deviations, 3), rtol=1e-6)
    assert len(grpo.transitions(groups_of([[1, 1]]), tune).latents) == 0


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_probabilities_of_steps_are_those_of_a_gaussian(scale):
    """Catches a ratio or a divergence of other means, variances, guidance or weights. The ratio is exactly 1 where
    policy and sampler are one; the divergence is dt/2 (sigma (1 - t) / (2 t) + 1 / sigma)^2 |v - v_ref|^2 (the paper's
    eq. 13) as a mean over elements."""
    tune, formulation = from_dict({"method": "grpo", "grpo": {"kl": 0.5, "clip_ratio": 0.2}}), parse_formulation("rf")
    sampler = SamplerConfig(steps=4, guidance_scale=scale)
    steps = jax.tree.map(jnp.asarray, take(grpo.transitions(groups_of([[0, 1, 3]]), tune), np.arange(9)))
    thetas = {"policy": (0.7, 0.4), "old": (0.6, 0.5), "reference": (0.3, -0.2)}

    def network(theta):
        return lambda z, t, context, pooled: (
            linear(theta)(z, t, context, pooled) * (1.0 + context[:, :1, :, None, None])
        )

    networks = Networks(*(network(thetas[name]) for name in ("policy", "reference", "old")))
    draws = Draws(jnp.zeros(9), jnp.zeros_like(steps.latents), 0)
    given = formulation, draws, steps, tune, sampler
    loss, t, measures = grpo.loss(networks, *given)

    want_loss = []
    for i in range(9):
        s, after = 1 - steps.place[i] / 4, 1 - (steps.place[i] + 1) / 4
        sigma = 0.7 * np.sqrt(s / (1 - (after if s == 1 else s)))
        y, moved, dt = np.float64(steps.latents[i]), np.float64(steps.moved[i]), s - after
        text = float(steps.context[i, 0, 0])

        def velocity(name, y=y, s=s, text=text):
            alone = thetas[name][0] * y + thetas[name][1] * s
            return alone + scale * (alone * (1 + text) - alone)

        def mean(name, y=y, s=s, sigma=sigma, dt=dt, velocity=velocity):
            v = velocity(name)
            return y - (v + sigma**2 / (2 * s) * (y + (1 - s) * v)) * dt

        logs = {name: np.mean(-((moved - mean(name)) ** 2) / (2 * sigma**2 * dt)) for name in thetas}
        ratio = np.exp(logs["policy"] - logs["old"])
        gap = velocity("policy") - velocity("reference")
        kl = dt / 2 * (sigma * (1 - s) / (2 * s) + 1 / sigma) ** 2 * np.mean(gap**2)
        np.testing.assert_allclose(measures["ratio_change"][i], abs(ratio - 1), rtol=2e-4, atol=2e-6)
        np.testing.assert_allclose(measures["kl"][i], kl, rtol=1e-4)
        advantage = float(steps.advantage[i])
        want_loss.append(-min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage) + 0.5 * kl)
        assert t[i] == pytest.approx(s)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-4, atol=1e-5)
    _, _, same = grpo.loss(Networks(networks.policy, networks.reference, networks.policy), *given)
    assert not np.any(same["ratio_change"])


def test_one_step_is_refused(tmp_path):
    tune = tuned_runs.tuning(tmp_path, method="grpo")
    with pytest.raises(ConfigError, match="config.rollout.sampler_steps is 1; take 2 or more"):
        grpo.check(tune, SamplerConfig(steps=1))
