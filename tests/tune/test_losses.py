"""The losses against closed forms: DPO's gradient on two parameters, and NFT's optimum on a planted reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.data.batch import Conditions
from rfjax.flow.formulation import parse_formulation
from rfjax.flow.objective import example_losses, examples_at
from rfjax.tune import losses, methods
from rfjax.tune.config import from_dict
from rfjax.tune.methods import Draws, Groups, Networks, Pairs


def pairs_of(count, seed=0):
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((count, 2, 1, 2, 2, 3)).astype(np.float32)
    text = rng.standard_normal((count, 3, 5)).astype(np.float32), rng.standard_normal((count, 4)).astype(np.float32)
    ids = np.arange(4 * count, dtype=np.int32).reshape(count, 2, 2)
    return jax.tree.map(jnp.asarray, Pairs(latents, *text, ids))


def linear(theta):
    """A network of two parameters: p z + q t."""
    return lambda z, t, context, pooled: theta[0] * z + theta[1] * t[:, None, None, None, None]


def draws_of(count, seed=1):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, 1, 2, 2, 3)).astype(np.float32)
    return Draws(jnp.asarray(rng.uniform(0.1, 0.9, count), jnp.float32), jnp.asarray(noise), 3)


@pytest.mark.parametrize("error", ["velocity", "noise"])
def test_dpo_gradient_is_that_of_the_closed_form(error):
    """Catches a lost factor or sign, a mean that is a sum, a gradient through the reference, unlike noise or t for
    winner and loser, and winner and loser exchanged."""
    tune = from_dict({"dpo": {"beta": 3.0, "error": error}})
    pairs, draws, reference = pairs_of(5), draws_of(5), jnp.array([0.3, -0.2])
    theta = np.array([0.7, 0.4])

    def loss(theta):
        networks = Networks(linear(theta), linear(reference), linear(reference))
        each, _, _ = methods.dpo_loss(networks, parse_formulation("rf"), draws, pairs, tune)
        return jnp.mean(each)

    got = jax.grad(loss)(jnp.asarray(theta, jnp.float32))

    t, noise, x = np.float64(draws.t), np.float64(draws.noise), np.float64(pairs.latents)
    want = np.zeros(2)
    for i in range(5):
        errors, slopes = [], []  # of winner and loser
        for image in x[i]:
            z, v = (1 - t[i]) * image + t[i] * noise[i], noise[i] - image
            residual = theta[0] * z + theta[1] * t[i] - v
            of_reference = float(reference[0]) * z + float(reference[1]) * t[i] - v
            errors.append(np.mean(residual**2) - np.mean(of_reference**2))
            slopes.append(np.array([np.mean(2 * residual * z), np.mean(2 * residual * t[i])]))
        half = 0.5 * 3.0 * ((1 - t[i]) ** 2 if error == "noise" else 1.0)
        inside = -half * (errors[0] - errors[1])
        want += 1 / (1 + np.exp(inside)) * half * (slopes[0] - slopes[1]) / 5
    np.testing.assert_allclose(got, want, rtol=2e-5)


def test_dpo_with_own_noise_puts_each_image_on_its_own_path():
    """Catches noise of other images, or of another seed, than those that made them."""
    from rfjax.evaluation.generate import noise_for

    tune, pairs, draws = from_dict({"dpo": {"noise": "own"}}), pairs_of(2), draws_of(2)
    seen = []

    def network(z, t, context, pooled):
        seen.append(np.asarray(z))
        return z

    methods.dpo_loss(Networks(network, network, network), parse_formulation("rf"), draws, pairs, tune)
    noise = noise_for(draws.seed, pairs.ids.reshape(-1, 2), (1, 2, 2, 3))
    t = np.repeat(draws.t, 2)[:, None, None, None, None]
    np.testing.assert_allclose(seen[0], (1 - t) * pairs.latents.reshape(4, 1, 2, 2, 3) + t * noise, rtol=1e-5)


def test_dpo_measures_are_of_each_network_alone():
    """Catches errors that are exchanged between images or networks, and a tie that counts as right or wrong."""
    tune, pairs, draws = from_dict({"dpo": {"beta": 1.0}}), pairs_of(3), draws_of(3)
    policy, reference = linear(jnp.array([0.7, 0.4])), linear(jnp.array([0.3, -0.2]))
    formulation = parse_formulation("rf")
    loss, _, measures = methods.dpo_loss(Networks(policy, reference, reference), formulation, draws, pairs, tune)
    for place, name in enumerate(("winner", "loser")):
        for network, end in ((policy, ""), (reference, "_reference")):
            examples = examples_at(formulation, draws.t)
            conditions = Conditions(pairs.context, pairs.pooled)
            want = example_losses(network, examples, draws.noise, pairs.latents[:, place], conditions)
            np.testing.assert_allclose(measures[f"{name}_error{end}"], want, rtol=1e-5)
    rises = [measures[f"{name}_error"] - measures[f"{name}_error_reference"] for name in ("winner", "loser")]
    np.testing.assert_allclose(measures["winner_rise"], rises[0], rtol=1e-4)
    np.testing.assert_allclose(measures["margin"], -0.5 * (rises[0] - rises[1]), rtol=1e-4)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-measures["margin"])), rtol=1e-5)
    np.testing.assert_array_equal(measures["accuracy"], measures["margin"] > 0)
    _, _, tied = methods.dpo_loss(Networks(policy, policy, policy), formulation, draws, pairs, tune)
    assert tied["accuracy"].tolist() == [0.5] * 3


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_nft_optimum_is_the_guided_field(beta):
    """On p_old = N(0, 1) with the reward exp(-(x - 1)^2): at each x_t the minimiser of the mean loss is v_old +
    (2/beta) E[r | x_t] (v' - v_old), v' being the velocity of p proportional to r p_old. Its mean and variance are
    those of a product of Gaussians, and the loss is averaged over the posterior of x0 given x_t."""
    for t, x_t in ((0.3, 0.5), (0.6, -0.8), (0.8, 1.2)):
        x0 = np.linspace(-12, 12, 24001)
        reward = np.exp(-((x0 - 1.0) ** 2))
        posterior = np.exp(-0.5 * x0**2 - 0.5 * ((x_t - (1 - t) * x0) / t) ** 2)
        posterior /= posterior.sum()
        target = (x_t - (1 - t) * x0) / t - x0  # noise - x0

        def velocity(mean, variance, t=t, x_t=x_t):
            """E[noise - x0 | x_t] for x0 of a Gaussian."""
            spread = (1 - t) ** 2 * variance + t**2
            x0 = mean + (1 - t) * variance / spread * (x_t - (1 - t) * mean)
            return (x_t - (1 - t) * x0) / t - x0

        old, tilted = velocity(0.0, 1.0), velocity(2 / 3, 1 / 3)
        shape = (len(x0), 1, 1, 1, 1)

        def loss(v, old=old, target=target, reward=reward, posterior=posterior, shape=shape):
            each = losses.nft(
                jnp.full(shape, v), jnp.full(shape, old), jnp.asarray(target).reshape(shape), jnp.asarray(reward), beta
            )
            return jnp.sum(posterior * each)

        with jax.enable_x64(True):
            slope, curvature = jax.grad(loss)(old), jax.grad(jax.grad(loss))(old)
        optimum = old - float(slope) / float(curvature)  # the loss is quadratic in v
        want = old + 2 / beta * float(posterior @ reward) * (tilted - old)
        assert abs(optimum - want) < 1e-3 * max(1.0, abs(want)), (t, x_t)
        assert abs(want - tilted) > 0.02 or beta == 1.0  # a guided field, not the tilted distribution


def test_nft_errors_of_data_are_weighed_by_their_size():
    """Catches a gradient through the weight, and errors of the velocity in place of those of x0: for rf the factor is
    t."""
    prediction, target = jnp.full((1, 1, 1, 1, 2), 3.0), jnp.zeros((1, 1, 1, 1, 2))
    to_data = jnp.array([0.5])

    def loss(p):
        return losses.nft(p, jnp.full_like(p, 1.0), target, jnp.ones(1), 1.0, to_data)[0]

    assert float(loss(prediction)) == pytest.approx(1.5)  # (0.5 * 3)^2 / (0.5 * 3)
    np.testing.assert_allclose(jax.grad(loss)(prediction), 2 * 0.25 * 3.0 / 1.5 / 2)


def groups_of(rewards):
    rewards = np.asarray(rewards, float)
    prompts, images = rewards.shape
    latents = np.arange(prompts * images, dtype=np.float32).reshape(prompts, images, 1, 1, 1, 1)
    ids = np.indices((prompts, images)).transpose(1, 2, 0)
    text = np.arange(prompts, dtype=np.float32)
    return Groups(latents, ids, Conditions(text.reshape(-1, 1, 1), text.reshape(-1, 1)), rewards)


def test_pairs_are_best_and_worst_and_equal_groups_give_none():
    """Catches winner and loser exchanged, another prompt's text, a pair of equal rewards, and an image that is in two
    pairs."""
    groups = groups_of([[0.2, 0.9, 0.2, 0.5], [1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0]])
    one = methods.choose_pairs(groups, from_dict({}))
    assert one.latents.reshape(-1, 2).tolist() == [[1, 2], [9, 10], [12, 15]]
    assert one.context.reshape(-1).tolist() == one.pooled.reshape(-1).tolist() == [0, 2, 3]
    assert one.ids.tolist() == [[[0, 1], [0, 2]], [[2, 1], [2, 2]], [[3, 0], [3, 3]]]
    two = methods.choose_pairs(groups, from_dict({"dpo": {"pairs_per_prompt": 5}}))
    assert two.latents.reshape(-1, 2).tolist() == [[1, 2], [3, 0], [9, 10], [11, 8], [12, 15]]
    assert len(methods.choose_pairs(groups_of([[1, 1]]), from_dict({})).latents) == 0


def test_rewards_become_shares_around_one_half():
    rated = methods.rate(groups_of([[0, 1, 0, 1], [1, 1, 1, 1], [0, 4, 0, 0]]), from_dict({"nft": {"clip": 1.0}}))
    assert rated.latents.reshape(-1).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert rated.context.reshape(-1).tolist() == [0, 0, 0, 0, 2, 2, 2, 2]
    spread = np.std([-0.5, 0.5, -0.5, 0.5, -1, 3, -1, -1])
    want = 0.5 + 0.5 * np.clip(np.array([-0.5, 0.5, -0.5, 0.5, -1, 3, -1, -1]) / spread, -1, 1)
    np.testing.assert_allclose(rated.reward, want, rtol=1e-6)
    assert rated.reward.max() == 1.0
