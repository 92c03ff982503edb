import dataclasses

import jax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from rfjax.config import MeshConfig, from_dict
from rfjax.data.corpus import load_corpus
from rfjax.errors import ConfigError
from rfjax.mesh_axes import AXES, BATCH_AXES, DIMENSION_AXIS, SLICE_AXIS
from rfjax.models.backbone import make_backbone
from rfjax.models.sharding import RULES, dimensions
from rfjax.training.mesh import check_batch, make_mesh, mesh_sizes, path_name, shardings, slice_count, slice_places

MESH = AbstractMesh((2, 4, 2), AXES)


def shape(*dimensions):
    return jax.ShapeDtypeStruct(dimensions, "float32")


def test_axes_fill_and_their_product_must_be_the_devices():
    assert dict(make_mesh(MeshConfig(), jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(ConfigError, match=r"config.mesh.data=2, config.mesh.fsdp=4.* takes 8 devices, but there are 1"):
        make_mesh(MeshConfig(data=2, fsdp=4), jax.devices()[:1])
    with pytest.raises(ConfigError, match="multiple of 3"):
        make_mesh(MeshConfig(data=-1, fsdp=3), jax.devices()[:1])
    with pytest.raises(ConfigError, match="at most one"):
        make_mesh(MeshConfig(data=-1, fsdp=-1), jax.devices()[:1])


def test_only_data_goes_over_slices():
    """Catches a group of `fsdp` or `tensor` that would exchange weights over the slow network."""
    assert mesh_sizes(MeshConfig(fsdp=4, slices=2), 8) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert mesh_sizes(MeshConfig(fsdp=4), 8, shown_slices=2) == {"data": 2, "fsdp": 4, "tensor": 1}
    with pytest.raises(ConfigError, match=r"only data goes over slices, and data=1 is not divisible by 2 slices"):
        mesh_sizes(MeshConfig(fsdp=8, slices=2), 8)
    with pytest.raises(
        ConfigError, match=r"data=2 is not divisible by 4 .* 4 devices, which must divide the 2 of a slice"
    ):
        mesh_sizes(MeshConfig(fsdp=2, tensor=2, slices=4), 8)


def test_slices_are_those_that_the_devices_show():
    assert slice_count(MeshConfig(), None) == 1 and slice_count(MeshConfig(slices=4), None) == 4
    assert slice_count(MeshConfig(), 2) == slice_count(MeshConfig(slices=2), 2) == 2
    with pytest.raises(ConfigError, match=r"mesh.slices is 2, but the devices are in 1 slice.*set it to 1 or -1"):
        slice_count(MeshConfig(slices=2), 1)


def test_a_slice_is_whole_processes_or_a_part_of_one():
    """Catches devices cut in the order in which they are listed, whatever machine they are in."""
    assert slice_places([0, 1, 0, 1], 2) == [[0, 2], [1, 3]]
    assert slice_places([3, 2, 1, 0, 3, 2, 1, 0], 2) == [[3, 7, 2, 6], [1, 5, 0, 4]]
    assert slice_places([0, 0, 0, 0], 2) == [[0, 1], [2, 3]]
    assert slice_places([0, 0, 1, 1], 4) == [[0], [1], [2], [3]]
    for owners, slices in (([0, 0, 1, 1, 2, 2], 2), ([0, 0, 0, 1], 2), ([0, 0, 0, 1, 1, 1], 3)):
        with pytest.raises(ConfigError, match=rf"config.mesh.slices is {slices}, but .* do not form as many"):
            slice_places(owners, slices)


@pytest.mark.parametrize("slices", [0, -2])
def test_a_number_of_slices_is_at_least_one(slices):
    with pytest.raises(ConfigError, match=rf"config.mesh.slices is {slices}; give the number of slices"):
        from_dict({"mesh": {"slices": slices}})


def test_the_table_of_axes_is_the_config_and_the_rules():
    """Catches an axis without a field of the config, and a dimension of a parameter that no axis splits."""
    assert {field.name for field in dataclasses.fields(MeshConfig)} == {*AXES, "slices"}
    assert {name for _, names in RULES for name in names if name} == set(DIMENSION_AXIS)
    assert SLICE_AXIS in BATCH_AXES  # what is exchanged between slices is a sum of gradients, never weights


def test_rules_split_hidden_over_fsdp_and_heads_and_mlp_over_tensor():
    block = {
        "qkv": {"kernel": shape(5, 16, 3, 2, 8), "bias": shape(5, 3, 2, 8)},
        "proj2": {"kernel": shape(5, 2, 8, 16)},
        "mlp_in": {"kernel": shape(5, 16, 64)},
        "mlp_out": {"kernel": shape(5, 64, 16)},
        "modulation": {"kernel": shape(5, 16, 6, 16)},
        "query_norm": {"scale": shape(5, 8)},
    }
    got = jax.tree.map(lambda s: s.spec, shardings(MESH, {"opt_state": ({"mu": {"blocks": {"image": block}}},)}))
    got = got["opt_state"][0]["mu"]["blocks"]["image"]
    assert got["qkv"]["kernel"] == P(None, "fsdp", None, "tensor", None)
    assert got["proj2"]["kernel"] == P(None, "tensor", None, "fsdp")
    assert got["mlp_in"]["kernel"] == P(None, "fsdp", "tensor")
    assert got["mlp_out"]["kernel"] == P(None, "tensor", "fsdp")
    assert got["modulation"]["kernel"] == P(None, "fsdp", None, None)
    assert not any(got["qkv"]["bias"]) and not any(got["query_norm"]["scale"])
    # a block outside the stack has no layer axis
    last = shardings(MESH, {"last_block": {"image": {"mlp_in": {"kernel": shape(16, 64)}}}})
    assert last["last_block"]["image"]["mlp_in"]["kernel"].spec == P("fsdp", "tensor")


def test_every_kernel_of_the_network_has_a_rule():
    config = from_dict(
        {
            "model": {
                "depth": 3,
                "hidden": 32,
                "head_size": 16,
                "qk_norm": True,
                "weight_sets": 3,
                "first_text_tokens": 1,
                "dual_attention_blocks": 1,
                "temporal_attention": "factorised",
            },
            "data": {"corpus": "random", "image_size": 4, "context_tokens": 2, "context_size": 8, "pooled_size": 8},
        }
    )
    backbone = make_backbone(config.model, load_corpus(config.data, 0).shapes)
    params = jax.eval_shape(backbone.init, jax.random.key(0))
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    unruled = [name for name in leaves if name.endswith("kernel") and not dimensions(name)]
    assert not unruled
    hidden = config.model.width
    for name, sharding in zip(leaves, jax.tree.leaves(shardings(MESH, params)), strict=True):
        split = [size for size, axis in zip(leaves[name].shape, sharding.spec, strict=True) if axis == "fsdp"]
        assert split == ([hidden] if name.endswith("kernel") else []), name


def test_a_dimension_that_an_axis_does_not_divide_is_named():
    tree = {"params": {"blocks": {"image": {"mlp_in": {"kernel": shape(5, 30, 64)}}}}}
    with pytest.raises(ConfigError, match=r"hidden size 30 of parameter blocks/image/mlp_in/kernel .* fsdp=4"):
        shardings(MESH, tree)
    with pytest.raises(ConfigError, match=r"heads size 3 .* tensor=2"):
        shardings(MESH, {"blocks": {"image": {"qkv": {"kernel": shape(5, 32, 3, 3, 8)}}}})


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    check_batch(MESH, 32, 4)
    with pytest.raises(ConfigError, match=r"batch_size=24 .*2\*4\*4 = 32"):
        check_batch(MESH, 24, 4)
