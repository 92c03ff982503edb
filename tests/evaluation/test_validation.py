"""The paired validation loss: exact on oracles, and a function of the weights and nothing else."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import child_process
from rfjax.config import ValidationConfig
from rfjax.data.batch import Batch
from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation.paired_loss import GRIDS, ValidationLoss, paired_difference
from rfjax.evaluation.validation import make_validation_step, validation_loss, validation_noise
from rfjax.flow.formulation import parse_formulation

SHAPE = (1, 4, 4, 2)


class FakeCorpus:
    """Examples whose context holds the latents and whose pooled holds the id, for oracles to read."""

    name = "fake"
    parts = property(lambda self: (self,))

    def __init__(self, order=None):
        self.order = order
        self.asked = []

    def examples(self, indices, split):
        assert split == "validation" and indices.dtype == np.uint64
        self.asked.append(indices)
        if self.order is not None:
            indices = self.order[indices]
        latents = np.stack([np.random.default_rng((7, int(i))).normal(0.5, 2.0, SHAPE) for i in indices])
        latents = latents.astype(np.float32)
        pooled = np.stack([indices, np.ones(len(indices))], 1).astype(np.float32)
        context = latents.reshape(len(indices), 4, 8)
        return Batch(latents, context, pooled, indices.astype(np.uint32))


def config(**changes):
    return ValidationConfig(**{"examples": 22, "batch_size": 8, "grid": "paper", "levels": 8, "seed": 5, **changes})


def network(params, z, t, context, pooled):
    """Some function of everything it is given, each example on its own."""
    hidden = jnp.tanh(z.reshape(z.shape[0], -1) @ params["in"] + t[:, None])
    return (hidden @ params["out"] + context.mean((1, 2))[:, None]).reshape(z.shape) * jnp.cos(
        pooled[:, :1, None, None, None]
    )


def weights(seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(0, 0.2, (32, 32)), jnp.float32) for name in ("in", "out")}


def zero(params, z, t, context, pooled):
    return jnp.zeros_like(z)


@functools.cache
def step_of(velocity_fn, settings):
    """Compiled once for all tests of the same loss."""
    return make_validation_step(velocity_fn, settings)


def measure(velocity_fn, params=None, corpus=None, **changes):
    return validation_loss(step_of(velocity_fn, config(**changes)), params, corpus or FakeCorpus())


def noise_by_hand(seed, example_id, number):
    """The noise of one example and level from jax.random alone, unbatched."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), example_id), number)
    return np.asarray(jax.random.normal(key, SHAPE))


@pytest.mark.parametrize(
    "grid, levels, averaged",
    [
        ("paper", [0.25, 0.5, 0.75, 1.0], [True, True, True, False]),
        ("mlperf", [0.0, 0.25, 0.5, 0.75], [True] * 4),
        ("midpoints", [0.125, 0.375, 0.625, 0.875], [True] * 4),
    ],
)
def test_grids(grid, levels, averaged):
    result = measure(zero, grid=grid, levels=4)
    assert list(result.levels) == levels and list(result.averaged) == averaged and result.grid == f"{grid}-4"
    assert result.loss == pytest.approx(np.mean(np.array(result.level_losses)[averaged]), rel=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_an_oracle_has_no_loss(grid):
    """It knows the data from the context, and draws the noise again from the example's id."""

    def oracle(params, z, t, context, pooled):
        number = jnp.round(t[0] * 8 - GRIDS[grid].offset).astype(jnp.uint32)
        noise = validation_noise(5, pooled[:, 0].astype(jnp.uint32), number, SHAPE)
        return noise - context.reshape(z.shape)

    result = measure(oracle, grid=grid)
    assert result.per_example.max() < 1e-12  # not quite 0: compilers may round a product and a sum once


def test_the_exact_velocity_has_no_loss():
    """z = x0 + t v on the straight path: holds only if z, t and the target belong together."""

    def exact(params, z, t, context, pooled):
        return (z - context.reshape(z.shape)) / t[:, None, None, None, None]

    assert max(measure(exact).level_losses) < 1e-10


# (name, prediction of (a, b, x0, eps) and the path at a condition), by hand
OTHER_FORMULATIONS = {
    "v/cos": (lambda t: (jnp.cos(jnp.pi / 2 * t), jnp.sin(jnp.pi / 2 * t)), lambda a, b, x0, eps: a * eps - b * x0),
    "x/cos": (lambda t: (jnp.cos(jnp.pi / 2 * t), jnp.sin(jnp.pi / 2 * t)), lambda a, b, x0, eps: x0),
    "edm(-1.20,1.20)": (
        lambda c: (jnp.ones_like(c), jnp.exp(4 * c)),
        lambda a, b, x0, eps: (b * x0 / 0.5 - 0.5 * eps) / jnp.sqrt(b * b + 0.25),
    ),
}


@pytest.mark.parametrize("name", OTHER_FORMULATIONS)
def test_every_formulation_is_measured_at_the_same_points(name):
    """A network whose data is wrong by d has the rectified velocity wrong by d / t, whatever it predicts:
    at the log-SNR of t, against the same noise. EDM knows no t = 1; its last level stands at sigma = 80."""
    path, predict = OTHER_FORMULATIONS[name]
    wrong = np.float32(np.random.default_rng(2).normal(0, 0.3, SHAPE))

    def network(params, z, condition, context, pooled):
        a, b = path(condition[:, None, None, None, None])
        z = z * jnp.sqrt(b * b + 0.25) if name.startswith("edm") else z
        data = context.reshape(z.shape) + wrong
        return predict(a, b, data, (z - a * data) / b)

    step = make_validation_step(network, config(), formulation=parse_formulation(name))
    result = validation_loss(step, None, FakeCorpus())
    t = np.array(result.levels)
    t[-1] = parse_formulation(name).rectified_span[1]
    expected = np.broadcast_to(np.square(wrong).mean() / t**2, result.per_example.shape)
    np.testing.assert_allclose(result.per_example, expected, rtol=2e-3)


def test_a_zero_network_loses_the_mean_square_of_the_target():
    result = measure(zero)
    batch = FakeCorpus().examples(np.arange(22, dtype=np.uint64), "validation")
    target = np.array(
        [[noise_by_hand(5, i, number) - batch.latents[i] for number in range(1, 9)] for i in range(22)], np.float64
    )
    by_hand = np.square(target).mean((2, 3, 4, 5))
    np.testing.assert_allclose(result.per_example, by_hand, rtol=2e-6)
    assert result.loss == pytest.approx(by_hand[:, :7].mean(), rel=1e-6)
    assert result.stderr == pytest.approx(by_hand[:, :7].mean(1).std(ddof=1) / np.sqrt(22), rel=1e-5)
    np.testing.assert_allclose(result.level_stderrs, by_hand.std(0, ddof=1) / np.sqrt(22), rtol=1e-5)
    # in expectation: a unit of noise and the second moment of the data
    expected = 1 + np.square(batch.latents.astype(np.float64)).mean()
    products = 2 * np.sqrt(np.square(batch.latents).mean() / (22 * 7 * 32)) + np.sqrt(2 / (22 * 7 * 32))
    assert abs(result.loss - expected) < 4 * products


def test_noise_differs_between_examples_levels_and_seeds():
    draws = [noise_by_hand(*place) for place in ((5, 1, 1), (5, 2, 1), (5, 1, 2), (6, 1, 1))]
    assert all(np.abs(a - b).mean() > 0.5 for i, a in enumerate(draws) for b in draws[:i])
    for seed, example, number in ((5, 1, 1), (5, 2, 3)):
        batched = validation_noise(seed, jnp.array([9, example, 4], jnp.uint32), number, SHAPE)[1]
        np.testing.assert_array_equal(batched, noise_by_hand(seed, example, number))


def test_equal_levels_of_two_grids_have_equal_noise():
    paper, mlperf = measure(zero, grid="paper"), measure(zero, grid="mlperf")
    np.testing.assert_array_equal(paper.per_example[:, :7], mlperf.per_example[:, 1:])


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batching_changes_nothing(batch_size):
    params = weights(0)
    first, other = measure(network, params), measure(network, params, batch_size=batch_size)
    np.testing.assert_allclose(other.per_example, first.per_example, rtol=1e-6)
    assert other.loss == pytest.approx(first.loss, rel=1e-6)
    assert other.stderr == pytest.approx(first.stderr, rel=1e-6)


def test_shuffling_changes_nothing():
    params = weights(0)
    shuffled = measure(network, params, FakeCorpus(np.random.default_rng(1).permutation(22).astype(np.uint64)))
    first = measure(network, params)
    np.testing.assert_array_equal(shuffled.example_ids, np.arange(22))
    np.testing.assert_allclose(shuffled.per_example, first.per_example, rtol=1e-6)
    assert shuffled.loss == pytest.approx(first.loss, rel=1e-6)


def test_each_example_counts_once_and_the_filling_not_at_all():
    corpus = FakeCorpus()
    result = measure(zero, corpus=corpus)
    assert [len(indices) for indices in corpus.asked] == [8, 8, 8]  # one shape, one compilation
    assert result.n == 22 and result.per_example.shape == (22, 8)
    np.testing.assert_array_equal(result.example_ids, np.arange(22))


def test_a_second_call_is_bit_identical_and_touches_no_random_stream():
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    steps = [make_validation_step(network, config()) for _ in range(2)]
    results = [validation_loss(step, weights(0), FakeCorpus()) for step in steps]
    assert np.random.get_state()[1].tolist() == before
    np.testing.assert_array_equal(results[0].per_example, results[1].per_example)
    assert results[0].loss == results[1].loss


def test_noise_does_not_follow_the_configured_generator():
    before = measure(zero).per_example
    with jax.default_prng_impl("rbg"):
        again = validation_loss(make_validation_step(zero, config()), None, FakeCorpus())
    np.testing.assert_array_equal(again.per_example, before)


def test_one_compilation_serves_all_checkpoints():
    traces = []

    def traced(*arguments):
        traces.append(None)
        return network(*arguments)

    step = make_validation_step(traced, config())
    losses = [validation_loss(step, weights(seed), FakeCorpus()).loss for seed in range(3)]
    assert len(traces) == 1 and len(set(losses)) == 3


def test_low_precision_predictions_are_compared_in_float32():
    result = measure(lambda params, z, *rest: jnp.full(z.shape, 0.5, jnp.bfloat16))
    latents = FakeCorpus().examples(np.array([3], np.uint64), "validation").latents[0]
    expected = np.square(0.5 - (noise_by_hand(5, 3, 2).astype(float) - latents)).mean()
    assert result.per_example[3, 1] == pytest.approx(expected, rel=1e-6)


def test_a_corpus_that_gives_too_few_examples_is_refused():
    class Short(FakeCorpus):
        def examples(self, indices, split):
            return super().examples(indices[:-1], split)

    with pytest.raises(RfjaxError, match="corpus fake gave 7 validation examples where 8"):
        measure(zero, corpus=Short())


def test_paired_differences_have_smaller_errors_than_unpaired_ones():
    near = {name: value * 1.02 for name, value in weights(0).items()}
    a, b = measure(network, weights(0)), measure(network, near)
    difference, stderr = paired_difference(a, b)
    assert difference == pytest.approx(a.loss - b.loss, rel=1e-9)
    pairs = a.per_example[:, :7].astype(float).mean(1) - b.per_example[:, :7].astype(float).mean(1)
    assert stderr == pytest.approx(pairs.std(ddof=1) / np.sqrt(22), rel=1e-9)
    assert stderr < 0.2 * np.hypot(a.stderr, b.stderr)


@pytest.mark.parametrize("changes", [{"seed": 6}, {"grid": "midpoints-8"}])
def test_losses_that_are_not_paired_are_refused(changes):
    result = measure(zero)
    with pytest.raises(ConfigError, match="not paired"):
        paired_difference(result, dataclasses.replace(result, **changes))
    with pytest.raises(ConfigError, match="examples 22 and 21 are not paired"):
        paired_difference(result, measure(zero, examples=21))
    with pytest.raises(ConfigError, match="different example ids"):
        paired_difference(result, measure(zero, corpus=FakeCorpus(np.arange(100, 122, dtype=np.uint64))))


def test_averages_are_taken_in_float64():
    """In float32 a long sum of losses near 1000 would lose the 1e-4 that each has beyond."""
    losses = np.full((100_000, 2), np.float32(1000.0001), np.float32)
    result = ValidationLoss(
        grid="midpoints-2",
        seed=0,
        levels=(0.25, 0.75),
        averaged=(True, True),
        example_ids=np.arange(len(losses), dtype=np.uint32),
        per_example=losses,
    )
    assert result.loss == pytest.approx(float(np.float32(1000.0001)), rel=1e-9)
    assert result.level_losses == pytest.approx([float(np.float32(1000.0001))] * 2, rel=1e-9)


MESH_SCRIPT = """
import json, sys
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import tests.evaluation.test_validation as t
from rfjax.errors import ConfigError
from rfjax.evaluation.validation import make_validation_step, validation_loss

assert len(jax.devices()) == 8
mesh = jax.make_mesh((2, 4, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
sharding = NamedSharding(mesh, P(("data", "fsdp")))
params = jax.device_put(t.weights(0), NamedSharding(mesh, P("fsdp")))
step = make_validation_step(t.network, t.config(), batch_sharding=sharding)
result = validation_loss(step, params, t.FakeCorpus())
try:
    make_validation_step(t.network, t.config(batch_size=12), batch_sharding=sharding)
    refused = ""
except ConfigError as error:
    refused = str(error)
print(json.dumps({"losses": result.per_example.tolist(), "loss": result.loss, "refused": refused}))
"""


def test_eight_devices_give_the_losses_of_one():
    environment = child_process.quick_environment(8)
    root = Path(__file__).parents[2]
    script = subprocess.run(
        [sys.executable, "-c", MESH_SCRIPT], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert script.returncode == 0, script.stderr
    mesh = json.loads(script.stdout.splitlines()[-1])
    one = measure(network, weights(0))
    np.testing.assert_allclose(mesh["losses"], one.per_example, rtol=1e-6)
    assert mesh["loss"] == pytest.approx(one.loss, rel=1e-6)
    assert "batch_size=12" in mesh["refused"] and "8" in mesh["refused"]
