import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers.training_tiny import tiny_backbone, tiny_config
from rfjax.config import TrainConfig
from rfjax.data.corpus import load_corpus
from rfjax.data.loader import batch_of_step
from rfjax.errors import ConfigError
from rfjax.models.backbone import training_backbone
from rfjax.training.loss import ExampleLosses, make_loss, run_keys
from rfjax.training.mesh import make_mesh, shardings
from rfjax.training.optimizer import learning_rate, make_optimizer
from rfjax.training.state import init_state
from rfjax.training.step import average_weight, make_train_step, parameter_groups, step_parts


class Trainer:
    """The parts of a run, without its files."""

    def __init__(self, overrides=None, make=tiny_backbone, **options):
        self.config = tiny_config(overrides)
        self.train = self.config.train
        self.corpus = load_corpus(self.config.data, self.config.seed)
        self.backbone = make(self.config)
        self.optimizer = make_optimizer(self.config)
        self.loss = make_loss(self.config, self.backbone.apply, self.corpus.shapes.encoders)
        self.mesh = make_mesh(self.config.mesh, jax.devices()[:1])

        def start():
            return init_state(self.backbone.init, self.optimizer, run_keys(self.config.seed)[0])

        self.abstract = jax.eval_shape(start)
        self.start = jax.jit(start, out_shardings=shardings(self.mesh, self.abstract))
        arguments = self.loss, self.optimizer, self.train, self.mesh, self.abstract
        self.parts = step_parts(*arguments, **options)
        self.step = make_train_step(*arguments, **options)

    def batch(self, step):
        return batch_of_step(self.corpus, step, batch_size=self.train.batch_size)


def poisoned(batch):
    latents = batch.latents.copy()
    latents[3] = np.nan
    return batch._replace(latents=latents)


def equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(a), jax.device_get(b)))


@pytest.fixture(scope="module")
def trainer():
    return Trainer({"train.weight_decay": 0.0, "train.ema_every": 3, "train.ema_decay": 0.75})


def test_accumulation_is_the_full_batch(trainer):
    parts = Trainer({"train.weight_decay": 0.0, "train.accumulate": 4})
    state_a, state_b = trainer.start(), parts.start()
    for step in range(3):
        state_a, a = trainer.step(state_a, trainer.batch(step))
        state_b, b = parts.step(state_b, trainer.batch(step))
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-6)
        np.testing.assert_allclose(a.group_norms, b.group_norms, rtol=1e-5)
        # the very same t for every example, whatever microbatch it fell into
        np.testing.assert_array_equal(a.bin_counts, b.bin_counts)
        np.testing.assert_allclose(a.bin_losses, b.bin_losses, rtol=1e-5)


def test_the_update_is_the_gradient_of_the_mean_loss(trainer):
    start, batch = trainer.start(), jax.tree.map(jnp.asarray, trainer.batch(0))
    value_and_grad = jax.jit(jax.value_and_grad(trainer.loss, has_aux=True))
    (loss, aux), grads = value_and_grad(start.params, batch, jnp.int32(0), jnp.arange(trainer.train.batch_size))
    state, metrics = trainer.step(trainer.start(), batch)
    rate = float(learning_rate(trainer.train)(0))
    assert rate == pytest.approx(float(metrics.learning_rate))
    for new, old, grad in zip(*map(jax.tree.leaves, (state.params, start.params, grads)), strict=True):
        sure = np.abs(grad) > 1e-3  # Adam's first update is the gradient's sign, but for eps
        np.testing.assert_allclose((new - old)[sure], (-rate * np.sign(grad))[sure], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, optax.tree.norm(grads), rtol=1e-5)
    norms = [float(optax.tree.norm(grads[group])) for group in parameter_groups(start.params)]
    np.testing.assert_allclose(metrics.group_norms, norms, rtol=1e-5)
    np.testing.assert_array_equal(metrics.bin_counts, np.histogram(aux.t, 10, (0, 1))[0])
    np.testing.assert_allclose(metrics.bin_losses, np.histogram(aux.t, 10, (0, 1), weights=aux.losses)[0], rtol=1e-5)


def test_a_non_finite_step_changes_the_clock_and_the_counters_alone(trainer):
    state = trainer.start()
    for step in range(2):
        state, _ = trainer.step(state, trainer.batch(step))
    before = jax.device_get(state)
    for count in (1, 2):  # the first of them would update the average
        state, metrics = trainer.step(state, poisoned(trainer.batch(count)))
        assert not np.isfinite(metrics.loss)
        assert (int(metrics.skipped), int(metrics.skipped_in_row)) == (count, count)
        assert int(state.step) == 2 + count
    for name in ("params", "ema", "opt_state"):
        assert equal(getattr(state, name), getattr(before, name)), name
    state, metrics = trainer.step(state, trainer.batch(4))
    # the schedule went on, the optimiser's own count did not
    assert float(metrics.learning_rate) == pytest.approx(float(learning_rate(trainer.train)(4)))
    assert int(state.opt_state[1].count) == 3
    assert (int(state.skipped), int(state.skipped_in_row)) == (2, 0)
    assert not equal(state.params, before.params)


def toy_step(trainer, loss, **options):
    """A train step with `loss(params, step)` in the place of the network's."""

    def loss_fn(params, batch, step, places):
        value = loss(params, step)
        return value, ExampleLosses(jnp.zeros(places.shape), jnp.broadcast_to(value, places.shape))

    return make_train_step(loss_fn, trainer.optimizer, trainer.train, trainer.mesh, trainer.abstract, **options)


def test_an_infinite_gradient_of_a_finite_loss_is_skipped(trainer):
    step = toy_step(trainer, lambda params, step: jnp.sqrt(params["final"]["linear"]["bias"][0]))  # infinite slope at 0
    state, metrics = step(trainer.start(), trainer.batch(0))
    assert np.isfinite(metrics.loss) and int(metrics.skipped) == 1
    assert equal(state.params, trainer.start().params)


def test_ema_is_its_closed_form(trainer):
    """The parameters of each update, weighted by d^(k - i) over the sum: nothing of the initialisation is left."""
    state, seen = trainer.start(), []
    for step in range(10):
        state, _ = trainer.step(state, trainer.batch(step))
        if step < 2:
            assert equal(state.ema, state.params)  # before the first update
        if (step + 1) % 3 == 0:
            seen.append(jax.device_get(state.params))
    weights = 0.75 ** np.arange(len(seen))[::-1]
    weights /= weights.sum()
    expected = jax.tree.map(lambda *updates: sum(w * p for w, p in zip(weights, updates, strict=True)), *seen)
    jax.tree.map(lambda e, got: np.testing.assert_allclose(got, e, rtol=1e-6, atol=1e-7), expected, state.ema)
    assert not equal(state.ema, state.params)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999, 1 - 1e-7])
def test_the_weight_of_an_update(decay):
    """To six digits of the closed form, also where 1 - d^k cancels; exactly 1 at first, and 1 - d in the end."""
    numbers = np.array([1, 2, 3, 10, 1000, 10**6])
    got = [float(average_weight(decay, jnp.int32(number))) for number in numbers]
    exact = [1 / sum(decay**i for i in range(number)) if number < 2000 else None for number in numbers]
    for found, wanted in zip(got, exact, strict=True):
        assert wanted is None or found == pytest.approx(wanted, rel=1e-6)
    assert got[0] == 1.0
    assert got[-1] == pytest.approx(1 - decay, rel=1e-6) or decay > 0.99999


def test_defaults_follow_the_length_of_the_run():
    lengths = (100, 2000, 50_000, 500_000)
    configs = [TrainConfig(steps=steps) for steps in lengths]
    assert [each.average_every for each in configs] == [1, 2, 50, 100]
    assert [each.warmup for each in configs] == [10, 200, 1000, 1000]
    assert [TrainConfig().dropout(n) for n in (1, 3)] == [pytest.approx(0.1), pytest.approx(0.464, abs=2e-4)]
    given = TrainConfig(steps=100, ema_every=100, warmup_steps=1000, condition_dropout=0.0)
    assert (given.average_every, given.warmup, given.dropout(3)) == (100, 1000, 0.0)


def test_noise_follows_the_step_and_the_stream_offset(trainer):
    batch = trainer.batch(0)

    def at(step):
        state = trainer.start()
        return state._replace(step=jax.device_put(jnp.int32(step), state.step.sharding))

    losses = [float(trainer.step(at(step), batch)[1].loss) for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]

    def clock(params, step):
        return step * jnp.sum(params["final"]["linear"]["bias"] + 1.0)

    step = toy_step(trainer, clock, stream_offset=40)
    size = trainer.start().params["final"]["linear"]["bias"].size
    assert float(step(at(2), batch)[1].loss) == 42 * size


def test_the_state_is_donated(trainer):
    state = trainer.start()
    trainer.step(state, trainer.batch(0))
    assert state.params["final"]["linear"]["kernel"].is_deleted()


def test_a_batch_that_microbatches_do_not_divide_is_refused(trainer):
    train = dataclasses.replace(trainer.train, accumulate=3)
    with pytest.raises(ConfigError, match="batch_size=8 .*accumulate"):
        make_train_step(trainer.loss, trainer.optimizer, train, trainer.mesh, trainer.abstract)


@pytest.fixture(scope="module")
def low():
    """A real network in bfloat16, in four parts a step."""
    sizes = {"model.depth": 2, "model.hidden": 64, "model.head_size": 32, "model.qk_norm": True}

    def real(config):
        return training_backbone(config, load_corpus(config.data, config.seed).shapes, "cpu")

    return Trainer(sizes | {"train.compute_dtype": "bfloat16", "train.accumulate": 4}, make=real)


def test_parts_in_the_compute_type_are_summed_in_float32(low):
    """Against the gradients of each part by float32 parameters, summed by hand.

    Catches a sum in bfloat16, whose relative error is up to 2^-9 for each of the parts, and a leaf
    that is rounded where the network would not.
    """
    params, batch = low.start().params, jax.tree.map(jnp.asarray, low.batch(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))  # its zeros would make most gradients zero
    params = tree.unflatten(
        [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )
    found, loss, _ = jax.jit(low.parts.gradients)(params, batch, jnp.int32(0))
    each = jax.jit(jax.value_and_grad(low.loss, has_aux=True))
    places = jnp.arange(low.train.batch_size)
    taken = [
        each(params, jax.tree.map(lambda array, i=i: array[i::4], batch), jnp.int32(0), places[i::4]) for i in range(4)
    ]
    np.testing.assert_allclose(loss, np.mean([part[0][0] for part in taken]), rtol=1e-6)
    expected = jax.tree.map(lambda *grads: np.mean(grads, axis=0, dtype=np.float64), *[part[1] for part in taken])
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.max(np.abs(other)))


def scans(jaxpr):
    """All scans in a jaxpr, outer ones first."""
    for equation in jaxpr.eqns:
        inner = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        )
        if equation.primitive.name == "scan":
            yield equation
        for leaf in inner:
            if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"):
                yield from scans(getattr(leaf, "jaxpr", leaf))


def test_a_part_s_stacked_gradients_are_of_the_compute_type(low):
    """Catches float32 ones: of a network that fills its devices, half a copy of the parameters more on each."""
    program = jax.make_jaxpr(low.step)(low.abstract, low.batch(0))
    blocks = jax.tree_util.tree_leaves_with_path(low.abstract.params["blocks"])
    stacked = {leaf.shape for path, leaf in blocks if path[-1].key == "kernel"}
    outer = next(scan for scan in scans(program.jaxpr) if scan.params["length"] == 4)
    made = [
        out.aval for scan in scans(outer.params["jaxpr"].jaxpr) for out in scan.outvars if out.aval.shape in stacked
    ]
    assert len(made) >= len(stacked) and {aval.dtype for aval in made} == {jnp.dtype("bfloat16")}
