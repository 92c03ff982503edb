import jax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from rfjax.config import MeshConfig, from_dict
from rfjax.data.corpus import load_corpus
from rfjax.errors import ConfigError
from rfjax.models.backbone import make_backbone
from rfjax.models.sharding import AXES, dimensions
from rfjax.training.mesh import check_batch, make_mesh, path_name, shardings

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
