"""Parametrisations: a kind for every leaf; initial values and rates that move with the size as the tables say."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers.mmdit_reference import SMALL, jit, small_config
from rfjax.config import Config, ModelConfig, TrainConfig, apply_overrides
from rfjax.errors import ConfigError
from rfjax.limits import BACKBONES
from rfjax.models.backbone import make_backbone
from rfjax.models.parametrization import leaf_factors, leaf_rule
from rfjax.models.sharding import path_name
from rfjax.training import optimizer
from rfjax.training.optimizer import MUON_KINDS, check_leaves, matrix_of, matrix_shape

# All the leaves that a backbone can have.
WHOLE = {
    "mmdit": {
        "depth": 3,
        "dual_attention_blocks": 1,
        "weight_sets": 3,
        "first_text_tokens": 1,
        "positions": "stored",
        "temporal_attention": "factorised",
    }
}


def network(name, **more):
    config = small_config(name, **{"depth": 2} | more)
    return config, make_backbone(config, SMALL)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_leaf_of_every_backbone_has_a_kind_and_every_hidden_kernel_its_matrices(name):
    """Catches a backbone with a parameter that the tables miss, a bias or an input that Muon would orthogonalise, and a
    kind that contradicts the leaf's sides: only hidden kernels have the width in their inputs and their outputs."""
    made = [network(name, qk_norm=True, hidden=hidden, **WHOLE.get(name, {}))[1] for hidden in (48, 96)]
    shapes = [jax.eval_shape(each.init, jax.random.key(0)) for each in made]
    for (path, leaf), (_, wide) in zip(*map(jax.tree_util.tree_leaves_with_path, shapes), strict=True):
        name, kind = path_name(path), leaf_rule(path_name(path), "it")[1]
        assert name.endswith("/kernel") == (kind in ("input", "hidden", "branch", "output")), name
        if name.endswith("/kernel"):
            assert (kind in MUON_KINDS) == (wide.size == 4 * leaf.size), name
        if kind in MUON_KINDS:
            sides = [matrix_shape(each.shape, matrix_of(name)) for each in (leaf, wide)]
            assert sides[1] == (sides[0][0], 2 * sides[0][1], 2 * sides[0][2]), name
        else:
            assert matrix_of(name) is None, name


@pytest.mark.parametrize(
    "name", [name if name == "crossdit" else pytest.param(name, marks=pytest.mark.full) for name in BACKBONES]
)
def test_initial_values_move_with_width_as_their_kind_says(name):
    """Catches a leaf whose standard initialiser has the width in it (Glorot's for inputs) or lacks it (normal(0.02) for
    hidden kernels): measured on drawn values, not read from the table. At the balanced width all are standard's."""

    def values(width, **more):
        scaled = {"parametrization": "mup", "base_width": 48, "balanced_width": 96} | more
        _, backbone = network(name, hidden=width, **scaled)
        leaves = jax.tree_util.tree_leaves_with_path(jit(backbone.init)(jax.random.key(0)))
        return {path_name(path): np.asarray(leaf) for path, leaf in leaves}

    narrow, wide = values(48), values(192)
    if name == "dit":
        standard = values(96, parametrization="standard", base_width=0, balanced_width=256)
        jax.tree.map(np.testing.assert_array_equal, values(96), standard)
    for path, leaf in narrow.items():
        kind, before, after = leaf_rule(path, "it")[1], np.sqrt(np.mean(leaf**2)), np.sqrt(np.mean(wide[path] ** 2))
        if not before:
            assert not after, path
        elif leaf.size > 300:
            power = math.log(after / before) / math.log(4)
            assert abs(power - (-0.5 if kind in MUON_KINDS else 0.0)) < 0.06, (path, power)


def factors_of(path, shape=(64, 64), **model):
    return leaf_factors(ModelConfig(head_size=32, patch_size=4, **model), path, shape)


def test_factors_are_those_of_the_published_tables():
    """Against tables 1 of muP's Adam and CompleteP written out: v = 2 and L = 4 from the balanced width and the base
    depth. Folded multipliers: an output's 1/v into rate and epsilon, a branch's 1/L into all."""
    sizes = dict(hidden=512, depth=8, balanced_width=256, base_width=128)
    hidden, out, vector = "blocks/image/qkv/kernel", "final/linear/kernel", "blocks/image/qkv/bias"
    got = {path: factors_of(path, parametrization="mup", **sizes) for path in (hidden, out, vector)}
    unit = 0.5  # the rate of hidden kernels is the base width's, where they are twice as fast as at the balanced one
    assert got[hidden][1:] == pytest.approx((unit / 2, unit / math.sqrt(2), unit, 0.5))
    assert (got[out].rate, got[out].epsilon, got[out].decay) == (unit / 2, 1.0, unit)
    assert (got[vector].rate, got[vector].epsilon) == (unit, 0.5)
    base = factors_of(hidden, parametrization="mup", **sizes | {"hidden": 128})
    assert base.rate == 1.0  # train.learning_rate is the rate of hidden kernels at the base width
    deep = sizes | {"parametrization": "completep", "base_depth": 2}
    got = {
        path: factors_of(path, **deep)
        for path in (hidden, "blocks/image/proj/kernel", "blocks/image/proj/bias", "time_embed/out/kernel")
    }
    assert (got[hidden].rate, got[hidden].epsilon) == (unit / 2, 0.125)
    branch = got["blocks/image/proj/kernel"]
    assert (branch.initial, branch.rate, branch.epsilon, branch.decay) == (0.25, unit / 8, 0.5, unit)
    assert (got["blocks/image/proj/bias"].rate, got["blocks/image/proj/bias"].epsilon) == (unit / 4, 0.5)
    assert got["time_embed/out/kernel"].epsilon == 0.5  # outside blocks the depth changes nothing
    assert set(factors_of(hidden, parametrization="standard", hidden=512)) == {1.0}


def test_folding_a_multiplier_is_the_multiplier():
    """m W x with Adam on W, beside W' x with W' = m W and the folded rate, initial value, decay and epsilon."""
    rng, m, rate, eps, decay = np.random.default_rng(0), 0.25, 0.01, 1e-2, 0.1
    start, x = rng.normal(size=5), rng.normal(size=5)
    loss = lambda w: (w @ x - 1.0) ** 2  # noqa: E731
    plain, folded = optax.adam(1.0, eps=eps), optax.adam(1.0, eps=eps / m)
    w, v = jnp.asarray(start), jnp.asarray(m * start)
    states = plain.init(w), folded.init(v)
    for _ in range(5):
        step, one = plain.update(jax.grad(lambda w: loss(m * w))(w), states[0])
        w = w + rate * step - rate * decay * w
        step, two = folded.update(jax.grad(loss)(v), states[1])
        v = v + m * rate * step - rate * decay * v
        states = one, two
        np.testing.assert_allclose(v, m * w, rtol=1e-5)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"parametrization": "mup", "base_width": 128, "hidden": 64}, "base_width is 128 and the hidden size"),
        ({"parametrization": "mup", "hidden": 64}, "base_width is 0"),
        ({"parametrization": "completep", "base_width": 64, "base_depth": 3, "depth": 2}, "base_depth is 3"),
        ({"parametrization": "mup", "base_width": 64, "base_depth": 1}, "only completep"),
        ({"base_width": 64}, "standard has no base width"),
        ({"parametrization": "mop"}, "did you mean mup"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        apply_overrides(Config(), {f"model.{name}": value for name, value in ({"hidden": 64} | changes).items()})


def test_a_leaf_without_a_rule_or_without_matrices_is_refused_by_name(monkeypatch):
    """Catches a new parameter that silently learns at another rate."""
    config, backbone = network("dit", parametrization="mup", base_width=48)
    odd = backbone._replace(init=lambda key: {"blocks": {"gate": {"table": jnp.zeros(3)}}})
    with pytest.raises(ConfigError, match="mup has no rule for the parameter blocks/gate/table"):
        check_leaves(Config(model=config), odd)
    muon = Config(model=config, train=TrainConfig(optimizer="muon"))
    check_leaves(muon, backbone)
    monkeypatch.setattr(optimizer, "MATRICES", optimizer.MATRICES[:1])
    with pytest.raises(ConfigError, match="muon has no dimensions for the parameter .*kernel"):
        check_leaves(muon, backbone)
