"""Diagnostics: what they show is true, and a run has the same bits with and without them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.training_tiny import BASE, rows
from rfjax.config import apply_overrides, from_dict
from rfjax.data.batch import BatchShapes
from rfjax.models import attention_xla
from rfjax.models.attention_xla import largest_logit
from rfjax.models.backbone import make_backbone
from rfjax.training.diagnostics import lower_diagnostics, narrow_advice, qk_norm_advice
from rfjax.training.loop import train
from rfjax.training.run import make_run, plan_run

SHAPES = BatchShapes(latents=(1, 4, 4, 16), context=(2, 8), pooled=8, encoders=())


def test_the_largest_logit_is_over_all_blocks(monkeypatch):
    """Catches the filling of the last block counted as a logit of zero, and a block left out."""
    q, k = (np.random.default_rng(seed).normal(size=(2, 7, 3, 4)).astype(np.float32) for seed in (0, 1))
    k[..., 0], q[..., 0] = 9, -9  # all logits are below zero
    expected = np.einsum("bqhd,bkhd->bhqk", q, k) / 2
    monkeypatch.setattr(attention_xla, "BLOCK", 3)
    found = largest_logit(jnp.asarray(q), jnp.asarray(k))
    assert found < 0 and np.isclose(found, expected.max(), rtol=1e-6)


NAMES = {
    "mmdit": ("0 1 2", "0/context 0/image 1/context 1/image 2/image", {}),
    "dual": ("0 0/image 1 2", "0/context 0/image 1/context 1/image 2/image", {"dual_attention_blocks": 1}),
    "dit": ("0 1 2", "0/tokens 1/tokens 2/tokens", {"backbone": "dit"}),
    "dit_class": ("0 1 2", "0/tokens 1/tokens 2/tokens", {"backbone": "dit_class"}),
    "crossdit": ("0 1 2", "0/image 1/image 2/image", {"backbone": "crossdit"}),
    "uvit": ("0 1 2", "0/tokens 1/tokens 2/tokens", {"backbone": "uvit"}),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_of_every_backbone_is_named(name):
    """Catches an attention that nobody watches, and layers counted anew in each stack. Nothing is computed."""
    logits, streams, changes = NAMES[name]
    model = dataclasses.replace(from_dict(BASE).model, depth=3, **changes)
    backbone = make_backbone(model, SHAPES)
    params = jax.eval_shape(backbone.init, jax.random.key(0))
    inputs = [jnp.zeros((2, *shape)) for shape in (SHAPES.latents, (), SHAPES.context, (SHAPES.pooled,))]
    prediction, found, squares = jax.eval_shape(backbone.watched, params, *inputs)
    assert prediction.shape == (2, *SHAPES.latents)
    assert sorted(found) == logits.split() and sorted(squares) == streams.split()
    assert all(leaf.shape == () for leaf in (*found.values(), *squares.values()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{every: (folder, state)} of one run with diagnostics every second step, and of the same without."""
    found = {}
    for every in (0, 2):
        changes = {"train.steps": 6, "train.log_every": 1, "train.accumulate": 2, "train.diagnostics_every": every}
        folder = tmp_path_factory.mktemp("runs") / f"every{every}"
        result = train(make_run(apply_overrides(from_dict(BASE), changes), folder))
        found[every] = folder, jax.device_get(result.state)
    return found


def test_a_run_has_the_same_bits_with_diagnostics(trained):
    (plain, without), (watched, with_them) = trained[0], trained[2]
    pairs = zip(jax.tree.leaves(without), jax.tree.leaves(with_them), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert rows(plain) == rows(watched) and not (plain / "diagnostics.jsonl").exists()


def test_the_forward_pass_is_that_of_the_step(trained):
    """Catches another batch, another step's noise, or parameters after the step: its loss is the step's own."""
    folder, _ = trained[2]
    losses = {row["step"]: row["loss"] for row in rows(folder)}
    found = [json.loads(line) for line in (folder / "diagnostics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found] == [2, 4, 6]
    for row in found:
        assert np.isclose(row["loss"], losses[row["step"]], rtol=1e-5)
        assert sorted(row["largest_logit"]) == ["0", "1"] and sorted(row["rms"]) == ["0/context", "0/image", "1/image"]
        assert all(value > 0 for value in row["rms"].values())


def test_rms_is_that_of_the_blocks_outputs():
    """Against the outputs themselves, in a batch of two microbatches."""
    config = apply_overrides(from_dict(BASE), {"train.accumulate": 2})
    run = plan_run(config)
    backbone = run.backbone
    params = jax.tree.map(lambda leaf: leaf + 0.05, backbone.init(jax.random.key(1)))
    inputs = [
        jax.random.normal(jax.random.key(number), (2, *shape))
        for number, shape in enumerate((run.corpus.shapes.latents, (), run.corpus.shapes.context, (8,)))
    ]
    _, logits, squares = jax.jit(backbone.watched)(params, *inputs)
    sizes = jax.jit(backbone.activations)(params, *inputs)  # mean |x|, at most the root of the mean square
    for name, of_module in {"0/image": "blocks", "1/image": "last_block"}.items():
        named = [value for key, value in sizes.items() if key == of_module or key == f"{of_module}/image"]
        assert all(value <= np.sqrt(squares[name]) * (1 + 1e-6) for value in named)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"train.compute_dtype": "bfloat16"}, None),
        ({"train.compute_dtype": "bfloat16", "model.depth": 24}, "depth 24 without"),
        ({"train.compute_dtype": "bfloat16", "model.depth": 24, "model.qk_norm": True}, None),
        ({"model.depth": 24}, None),
        ({"train.compute_dtype": "bfloat16", "data.image_size": 64}, "1,026 tokens without"),
        ({"train.compute_dtype": "bfloat16", "data.image_size": 64, "model.backbone": "crossdit"}, None),
    ],
)
def test_qk_norm_is_recommended_where_logits_may_grow(changes, said):
    """1,024 tokens of the image and 2 of the text: crossdit's own attention has no text."""
    advice = qk_norm_advice(plan_run(apply_overrides(from_dict(BASE), changes)))
    assert (advice is None) == (said is None) and (said is None or said in advice)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.hidden": 48, "model.patch_size": 4}, None),
        ({"model.hidden": 32, "model.patch_size": 4}, "32 wide, and a patch holds 48 numbers"),
        ({"model.hidden": 48, "model.patch_size": 8}, "48 wide, and a patch holds 192 numbers"),
    ],
)
def test_a_network_narrower_than_its_patch_is_named(changes, said):
    pixels = {"data.channels": 3, "data.image_size": 16, "model.head_size": 16}
    advice = narrow_advice(plan_run(apply_overrides(from_dict(BASE), pixels | changes)))
    assert (advice is None) == (said is None) and (said is None or said in advice)


def test_diagnostics_of_several_devices_are_lowered_alone():
    """Catches a program whose parameters must be gathered by hand, without compiling one."""
    config = apply_overrides(from_dict(BASE), {"train.diagnostics_every": 1})
    run = make_run(config)
    text = lower_diagnostics(run, stream_offset=3).as_text()
    assert "jit_diagnose" in text
