"""The properties that the trainer needs of every backbone: interface, policies, sharding, limits."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import child_process
from helpers.mmdit_reference import SMALL, inputs, jit, random_params, small_config
from rfjax.config import Config, ModelConfig, apply_overrides
from rfjax.errors import ConfigError
from rfjax.limits import BACKBONES
from rfjax.models.backbone import make_backbone
from rfjax.models.sharding import dimensions
from rfjax.training.mesh import path_name

OTHERS = tuple(name for name in BACKBONES if name != "mmdit")  # test_mmdit.py has MM-DiT's


@pytest.mark.parametrize("name", OTHERS)
def test_a_new_network_predicts_zero_and_every_parameter_matters(name):
    """Catches a last layer that does not start at zero, a parameter that no output depends on, and gradients that
    are not finite, at the start or anywhere else."""
    backbone, batch = make_backbone(small_config(name, depth=2, qk_norm=True), SMALL), inputs()
    start = jit(backbone.init)(jax.random.key(0))
    gradient = jit(jax.grad(lambda p: jnp.sum(jnp.square(backbone.apply(p, *batch) - 1.0))))
    assert not np.any(jit(backbone.apply)(start, *batch))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient(start)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(random_params(backbone))):
        assert 0 < float(jnp.abs(leaf).max()) < np.inf, path_name(path)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_condition_matters(name):
    """By time, by pooled text and, but for `dit_class`, by which context belongs to which example."""
    backbone, (z, t, context, pooled) = make_backbone(small_config(name, depth=2), SMALL), inputs()
    params, apply = random_params(backbone), jit(backbone.apply)
    whole = apply(params, z, t, context, pooled)
    moved = lambda *batch: float(jnp.abs(apply(params, *batch) - whole).max())  # noqa: E731
    assert moved(z, t[::-1], context, pooled) > 0.01
    assert moved(z, t, context, pooled[::-1]) > 0.01
    assert (moved(z, t, context[::-1], pooled) > 0.01) != (name == "dit_class")
    # text has no positions: the order of its tokens says nothing
    assert moved(z, t, context[:, ::-1], pooled) < 1e-3 * float(jnp.abs(whole).max())


@pytest.mark.parametrize(
    "name", [name if name == "crossdit" else pytest.param(name, marks=pytest.mark.full) for name in OTHERS]
)
def test_remat_changes_memory_and_not_numbers(name):
    config, batch = small_config(name, depth=2, qk_norm=True), inputs()

    def gradient(remat):
        backbone = make_backbone(config, SMALL, remat=remat)
        with jax.default_matmul_precision("highest"):
            return jit(jax.grad(lambda p: jnp.sum(jnp.square(backbone.apply(p, *batch)))))(
                random_params(backbone, scale=0.1)
            )

    plain = gradient("none")
    for remat in ("full", "dots"):  # "attention" runs over a mesh below
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(gradient(remat)), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(a).max()))


@pytest.mark.parametrize("name", OTHERS)
def test_bfloat16_compute_keeps_float32_parameters_and_output(name):
    """Catches a piece that falls back to float32, and one that overflows."""
    config, batch = small_config(name, depth=2), inputs()
    backbone, low = make_backbone(config, SMALL), make_backbone(config, SMALL, compute_dtype="bfloat16")
    params = random_params(backbone, scale=0.1)
    exact, rough = jit(backbone.apply)(params, *batch), jit(low.apply)(params, *batch)
    assert rough.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(low.init, jax.random.key(0)))} == {
        jnp.dtype("float32")
    }
    assert 1e-5 < float(jnp.abs(rough - exact).max() / jnp.abs(exact).max()) < 0.1
    products = [
        eqn.invars[0].aval.dtype
        for eqn in jax.make_jaxpr(low.apply)(params, *batch).jaxpr.eqns
        if eqn.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    assert products and set(products) == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_layer_can_be_watched(name):
    """Catches blocks with an attention of their own that diagnostics do not see. Nothing is computed."""
    backbone = make_backbone(small_config(name, depth=3), SMALL)
    params = jax.eval_shape(backbone.init, jax.random.key(0))
    _, logits, squares = jax.eval_shape(backbone.watched, params, *inputs())
    for found, call in ((logits, "attend"), (squares, "note_streams")):
        layers = {noted.split("/")[0] for noted in found}
        assert layers == {"0", "1", "2"}, f"{name}: some layers do not call models/watching.py: {call}; seen {layers}"


@pytest.mark.parametrize("name", OTHERS)
def test_the_program_does_not_grow_with_the_depth(name):
    def lines(depth):
        backbone = make_backbone(small_config(name, depth=depth), SMALL)
        params = jax.eval_shape(backbone.init, jax.random.key(0))
        return len(jax.jit(backbone.apply).lower(params, *inputs()).as_text().splitlines())

    assert lines(12) == lines(3)


@pytest.mark.parametrize("name", OTHERS)
def test_every_kernel_has_a_rule_that_names_its_dimensions(name):
    backbone = make_backbone(small_config(name, patch_size=4), SMALL)
    params = jax.eval_shape(backbone.init, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = dimensions(path_name(path))
        if path_name(path).endswith("kernel"):
            assert "hidden" in names, path_name(path)
            stacked = path_name(path).startswith("blocks/")
            assert len(names) == leaf.ndim - stacked, path_name(path)
        else:
            assert not names, path_name(path)


@pytest.mark.parametrize("field", BACKBONES["mmdit"].own_fields)
def test_a_field_that_a_backbone_would_not_read_is_refused(field):
    """Catches a study that varies a field without effect."""
    key = f"model.{field}"
    set_to = {
        "model.weight_sets": 3,
        "model.dual_attention_blocks": 1,
        "model.first_text_tokens": 5,
        "model.temporal_patch_size": 2,
        "model.temporal_attention": "factorised",
        "model.rotary_channels": (4, 4, 8),
        "model.rotary_theta": 256.0,
    }[key]
    without = [name for name in OTHERS if field not in BACKBONES[name].own_fields]
    for name in without:
        refused = f"config.{key} is {set_to}, which config.model.backbone={name} does not have"
        with pytest.raises(ConfigError, match=re.escape(refused)):
            apply_overrides(Config(), {"model.backbone": name, key: set_to})
    assert without


@pytest.mark.parametrize(
    "positions, name, others", [("stored", "dit", "use mmdit$"), ("rotary", "uvit", "or crossdit$")]
)
def test_positions_that_a_backbone_does_not_have_are_refused(positions, name, others):
    """Catches a network that adds the formula's positions whatever the config says."""
    refused = f"config.model.positions is {positions}, which config.model.backbone={name} does not have.*{others}"
    with pytest.raises(ConfigError, match=refused):
        apply_overrides(Config(), {"model.backbone": name, "model.positions": positions})


def test_unknown_backbones_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean crossdit"):
        apply_overrides(Config(), {"model.backbone": "crosdit"})
    assert ModelConfig().backbone == "mmdit"


OVER_A_MESH = """
import json, sys
sys.path.insert(0, sys.argv[1])
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding
from helpers.mmdit_reference import SMALL, inputs, jit, random_params, small_config
from rfjax.config import MeshConfig
from rfjax.models.backbone import make_backbone
from rfjax.training.mesh import BATCH, make_mesh, shardings

mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
found = {}
for name in sys.argv[2:]:
    backbone = make_backbone(small_config(name, depth=2, hidden=64), SMALL, remat="attention")
    arguments = random_params(backbone, scale=0.1), inputs(4)
    loss = lambda p, batch: jnp.sum(jnp.square(backbone.apply(p, *batch)))
    places = shardings(mesh, arguments[0]), (NamedSharding(mesh, BATCH),) * 4
    with jax.default_matmul_precision("highest"):
        want = jit(jax.grad(loss))(*arguments)
        with jax.set_mesh(mesh):
            split = jit(jax.grad(loss), in_shardings=places, out_shardings=places[0])
            got = split(*jax.device_put(arguments, places))
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want))
    worst = max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)
    kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(got) if path[-1].key == "kernel"]
    found[name] = worst, max(leaf.addressable_shards[0].data.size / leaf.size for leaf in kernels)
print(json.dumps(found))
"""


@pytest.mark.full
def test_four_devices_have_the_gradients_of_one():
    """Two by `fsdp` and two by `tensor`. Catches a rule that splits what is then added up wrongly, such as a
    convolution's channels, and a large weight that every device keeps whole."""
    command = [sys.executable, "-c", OVER_A_MESH, str(child_process.TESTS), *OTHERS]
    done = subprocess.run(command, capture_output=True, text=True, env=child_process.quick_environment(4))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert tuple(found) == OTHERS
    for name, (worst, kept) in found.items():
        assert worst < 1e-4, name
        assert kept <= 0.5, name
