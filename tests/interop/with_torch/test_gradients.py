"""The gradient of the loss by every parameter, against PyTorch's autograd."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import SD3Transformer2DModel

from helpers.random_runs import inputs
from helpers.torch_reference import their_velocity
from rfjax.interop.layouts import DIFFUSERS, sources
from rfjax.training.mesh import path_name


def test_gradients_agree_layer_by_layer(exported):
    """Catches a backward pass that is wrong where the forward is right: attention's, a norm's, the scan's."""
    run, folder = exported("dual_qk_norm")
    arrays = inputs(run.config, 16, 16)
    target = np.random.default_rng(1).standard_normal(arrays[0].shape).astype(np.float32)

    def loss(params):
        z, *others = map(jnp.asarray, arrays)
        velocity = run.backbone.apply(params, z[:, None], *others)[:, 0]
        return jnp.mean(jnp.square(velocity - target))

    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.grad(loss))(run.params)
    leaves = {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)}

    model = SD3Transformer2DModel.from_pretrained(folder)
    (their_velocity(model, arrays) - torch.from_numpy(target)).square().mean().backward()
    theirs = {name: parameter.grad for name, parameter in model.named_parameters()}

    # The last block's text queries are used by nothing: PyTorch gives them zeros, or no gradient.
    idle = {
        f"transformer_blocks.3.attn.{name}" for name in ("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight")
    }
    compared, worst = set(), {}
    for source in sources(DIFFUSERS, run.config.model, {leaf: array.shape for leaf, array in leaves.items()}):
        array = leaves[source.leaf] if source.layer is None else leaves[source.leaf][source.layer]
        for name, ours in zip(source.names, source.transform.out(source.leaf.rsplit("/", 1)[1], array), strict=True):
            compared.add(name)
            if name in idle:
                assert not ours.any() and (theirs[name] is None or not theirs[name].any())
            else:
                worst[name] = np.linalg.norm(ours - theirs[name].numpy()) / np.linalg.norm(theirs[name].numpy())
    assert compared == theirs.keys()
    assert {name: value for name, value in worst.items() if not value <= 1e-4} == {}
