"""Muon: its direction by hand, on meshes, over kills, and what it costs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.training_tiny import rows, run_in, tiny_backbone, tiny_config, tiny_train
from rfjax.errors import Preempted
from rfjax.training import checkpoint
from rfjax.training.cohort import train_cohort
from rfjax.training.optimizer import MUON_RMS, make_optimizer, optimizer_bytes, optimizer_flops

MUON = {"train.optimizer": "muon", "train.steps": 12, "train.weight_decay": 0.0}


def iterate(matrix, steps=5):
    """Newton-Schulz with Muon's coefficients, in float64."""
    a, b, c = 3.4445, -4.775, 2.0315
    x = matrix / np.linalg.norm(matrix)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def test_hidden_kernels_get_orthogonal_updates_layer_by_layer_and_the_rest_adams():
    """Catches a stack seen as one matrix, queries, keys and values as one, a bias that is orthogonalised, and a scale
    that is not AdamW's."""
    rng = np.random.default_rng(0)
    shapes = {
        "blocks": {
            "image": {"qkv": {"kernel": (2, 8, 3, 2, 4), "bias": (2, 3, 2, 4)}, "mlp_in": {"kernel": (2, 8, 32)}}
        },
        "patch_embed": {"kernel": (6, 8)},
    }
    params = jax.tree.map(lambda shape: jnp.zeros(shape), shapes, is_leaf=lambda x: isinstance(x, tuple))
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    config = tiny_config({"train.optimizer": "muon", "train.weight_decay": 0.0, "train.clip_norm": 0.0})
    muon, adam = (
        make_optimizer(config),
        make_optimizer(tiny_config({"train.weight_decay": 0.0, "train.clip_norm": 0.0})),
    )
    got, _ = muon.update(grads, muon.init(params), params)
    adams, _ = adam.update(grads, adam.init(params), params)
    for name in ("bias",):
        np.testing.assert_allclose(
            got["blocks"]["image"]["qkv"][name], adams["blocks"]["image"]["qkv"][name], rtol=1e-6
        )
    np.testing.assert_allclose(got["patch_embed"]["kernel"], adams["patch_embed"]["kernel"], rtol=1e-6)
    image, given = got["blocks"]["image"], grads["blocks"]["image"]
    for layer in range(2):
        for part in range(3):
            matrix = np.asarray(given["qkv"]["kernel"], float)[layer, :, part].reshape(8, 8)
            want = MUON_RMS * math.sqrt(8) * iterate(matrix)
            np.testing.assert_allclose(image["qkv"]["kernel"][layer, :, part].reshape(8, 8), want, atol=2e-3)
        want = MUON_RMS * math.sqrt(32) * iterate(np.asarray(given["mlp_in"]["kernel"], float)[layer])
        np.testing.assert_allclose(image["mlp_in"]["kernel"][layer], want, atol=4e-3)
        # The root mean square is that of AdamW's updates over a run, about 0.2.
        assert np.sqrt(np.mean(np.square(image["mlp_in"]["kernel"][layer]))) == pytest.approx(MUON_RMS, rel=0.3)


def test_state_and_operations_are_counted():
    """The state against the optimiser's own arrays; the operations against the compiler's count of one iteration."""
    config = tiny_config(MUON)
    backbone = tiny_backbone(config)
    params = jax.eval_shape(backbone.init, jax.random.key(0))
    state = jax.eval_shape(make_optimizer(config).init, params)
    moments = sum(4 * leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim and leaf.size > 3)
    assert optimizer_bytes(config, backbone) == moments
    assert optimizer_bytes(tiny_config(), backbone) == 8 * sum(leaf.size for leaf in jax.tree.leaves(params))

    def once(x):
        gram = x @ x.T
        return gram @ gram, gram @ x

    counted = jax.jit(once).lower(jnp.zeros((16, 32))).compile().cost_analysis()["flops"]
    assert optimizer_flops(config, backbone) == pytest.approx(5 * 4 * counted, rel=0.01)  # 2 layers of 2 kernels
    assert optimizer_flops(tiny_config(), backbone) == 0


def final(folder, step=12):
    return checkpoint.read_facts(folder, step)["checksums"]


MUP = {"model.parametrization": "mup", "model.base_width": 8, "model.balanced_width": 8}


@pytest.mark.parametrize("more", [pytest.param({}, marks=pytest.mark.full), MUP])
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, more):
    """Catches a state that a checkpoint does not hold whole, with Muon and with rates by leaf."""
    tiny_train(tmp_path / "whole", MUON | more)
    calls = iter(range(10**6))
    with pytest.raises(Preempted):
        tiny_train(tmp_path / "cut", MUON | more, stop=lambda: next(calls) >= 7)
    tiny_train(tmp_path / "cut", MUON | more)
    assert final(tmp_path / "cut") == final(tmp_path / "whole")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.full
def test_members_of_a_cohort_are_trained_as_if_alone(tmp_path):
    """Muon's matrices must not be those of all members together, and each has its own rate."""
    made = [
        run_in(tmp_path / f"m{place}", tiny_config(MUON | {"train.together": 2, "train.learning_rate": rate}))
        for place, rate in enumerate((1e-2, 3e-3))
    ]
    assert train_cohort(made, on_checkpoint=lambda *given: None, stop=lambda: False) == {}
    for place, member in enumerate(made):
        tiny_train(tmp_path / f"a{place}", MUON | {"train.learning_rate": member.config.train.learning_rate})
        ours, alone = (checkpoint.restore_params(tmp_path / f"{kind}{place}", 12, "raw")[0] for kind in "ma")
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3), ours, alone)


@pytest.mark.full
def test_a_mesh_gives_the_same_run(tmp_path):
    """Sharded kernels in two processes' worth of devices: the matrices are whole ones."""
    from helpers.training_tiny import ended, start_processes

    overrides = MUON | {"mesh.data": 1, "mesh.fsdp": 2}
    ((status, said),) = ended(start_processes(tmp_path / "split", 1, devices=2, overrides=overrides))
    assert status == 0, said
    tiny_train(tmp_path / "whole", MUON)
    ours, alone = (checkpoint.restore_params(tmp_path / name, 12, "raw")[0] for name in ("split", "whole"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3), ours, alone)
