"""Adapters: which maps have factors, what merging computes, and that a new adapter changes no bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.mmdit_reference import SMALL, inputs, jit, random_params, small_config
from rfjax.limits import BACKBONES
from rfjax.models import lora
from rfjax.models.backbone import make_backbone
from rfjax.models.sharding import dimensions, path_name

NOT_LINEAR = {"stem", "conv_in", "conv_out", "head"}  # the last element but one of a convolution's path


def shapes_of(name, **settings):
    backbone = make_backbone(small_config(name, depth=3, **settings), SMALL)
    return jax.eval_shape(backbone.init, jax.random.key(0))


def kernels(tree):
    paths = (path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree))
    return {path for path in paths if dimensions(path)}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_linear_map_but_the_patch_embedding_has_factors(name):
    """Catches a backbone's map that the table of axes has no row for, and a row with an axis too many or too few."""
    shapes = shapes_of(name)
    wanted = {path for path in kernels(shapes) if path.split("/")[-2] not in {*NOT_LINEAR, "patch_embed"}}
    found = lora.adapted_leaves(shapes)
    assert found.keys() == wanted
    adapter = jax.eval_shape(lambda key: lora.init_adapter(key, shapes, 4), jax.random.key(0))
    factors = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(adapter)}
    assert factors == {f"{path}/{part}" for path in wanted for part in "ab"}
    for path, parts in found.items():
        assert len(parts.stacked) == path.startswith("blocks/"), path


def test_queries_keys_and_values_have_factors_of_their_own():
    found = lora.adapted_leaves(shapes_of("mmdit"))
    qkv = found["blocks/image/qkv/kernel"]
    assert (qkv.stacked, qkv.apart) == ((2,), (3,))
    assert found["blocks/image/modulation/kernel"].apart == ()  # one map to all six chunks, as diffusers has it


def test_the_rank_is_cut_to_half_the_smaller_side():
    shape = lora.MatrixShape((2,), (3,), (64,), (2, 8))
    assert [lora.rank_of(shape, rank) for rank in (1, 8, 9, 128)] == [1, 8, 8, 8]
    assert lora.rank_of(lora.MatrixShape((), (), (64,), (1,)), 4) == 1


@pytest.fixture(scope="module")
def network():
    backbone = make_backbone(small_config("mmdit", depth=3), SMALL)
    params = random_params(backbone)
    return backbone, params, jit(lora.init_adapter, static_argnums=2)(jax.random.key(1), params, 4)


def test_a_new_adapter_changes_no_bit(network):
    """At scale 1 and at scale 0, the merged parameters are those of the network, and one program's velocities are
    equal. Catches a `b` that does not start at zero, and a merge that rounds."""
    backbone, params, adapter = network
    merge = jit(lora.merge)
    for one, other, own in zip(
        *(jax.tree.leaves(tree) for tree in (merge(params, adapter, 1.0), merge(params, adapter, 0.0), params)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, own)
    velocity = jit(lambda scale: backbone.apply(lora.merge(params, adapter, scale), *inputs()))
    at_one = np.asarray(velocity(1.0))
    assert np.any(at_one)
    np.testing.assert_array_equal(at_one, velocity(0.0))


def test_merged_is_adapted(network):
    """W + s (a b) against each map's own x W + s (x a) b, for maps of every kind. Catches exchanged axes of heads,
    chunks or queries, keys and values, and a lost scale."""
    _, params, adapter = network
    adapter = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), adapter)
    merged = lora.merge(params, adapter, 0.7)
    flat = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path((params, merged))}
    factors = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(adapter)}
    rng = np.random.default_rng(0)
    # einsum of x (batch first), of a and of b, written by hand for each kind of map
    maps = {
        "blocks/image/qkv/kernel": ("lni,litho->lntho", "lni,ltir->lntr", "lntr,ltrz->lntz"),
        "blocks/image/proj/kernel": ("lnhs,lhso->lno", "lni,lir->lnr", "lnr,lrz->lnz"),
        "blocks/context/modulation/kernel": ("lni,lico->lnco", "lni,lir->lnr", "lnr,lrz->lnz"),
        "last_block/image/mlp_out/kernel": ("ni,io->no", "ni,ir->nr", "nr,rz->nz"),
        "final/linear/kernel": ("ni,io->no", "ni,ir->nr", "nr,rz->nz"),
    }
    for path, (whole, first, second) in maps.items():
        kernel, changed = np.float64(flat[f"0/{path}"]), np.float64(flat[f"1/{path}"])
        a, b = np.float64(factors[f"{path}/a"]), np.float64(factors[f"{path}/b"])
        parts = lora.matrix_shape(kernel.shape, lora.matrix_axes(path))
        x = rng.normal(size=(*parts.stacked, 5, *parts.inputs))
        want = np.einsum(whole, x, kernel)
        through = np.einsum(second, np.einsum(first, x.reshape(*parts.stacked, 5, -1), a), b)
        want = want + 0.7 * through.reshape(want.shape)
        np.testing.assert_allclose(np.einsum(whole, x, changed), want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_before_any_step_a_gets_no_gradient_and_b_does(network):
    backbone, params, adapter = network

    def loss(adapter):
        return jnp.mean(jnp.square(backbone.apply(lora.merge(params, adapter, 1.0), *inputs()) - 1.0))

    for path, leaf in jax.tree_util.tree_leaves_with_path(jit(jax.grad(loss))(adapter)):
        assert bool(np.any(leaf)) == (path[-1].key == "b"), path_name(path)
