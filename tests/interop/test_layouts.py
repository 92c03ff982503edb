"""The tables of names: which tensors there are, and that no bit is lost on the way there and back."""

import dataclasses

import numpy as np
import pytest

from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.interop.exporting import parameter_shapes
from rfjax.interop.layouts import DIFFUSERS, LAYOUTS, PLAIN, SD3, sources, tensor_shapes
from rfjax.interop.transforms import Linear, Patches

RELEASED_SHAPES = BatchShapes((128, 128, 16), (154, 4096), 2048, ())
# (diffusers' keys, the single file's), enumerated from the released modules
RELEASED = {
    "SD3-Medium": (ModelConfig(depth=24), 683, 491),
    "SD3.5-Medium": (ModelConfig(depth=24, qk_norm=True, dual_attention_blocks=13, position_grid=384), 909, 665),
    "SD3.5-Large": (ModelConfig(depth=38, qk_norm=True), 1227, 923),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_have_their_number_of_tensors(name):
    """Catches a row too many, one too few, or a stack's layers numbered twice."""
    model, diffusers, single = RELEASED[name]
    ours = parameter_shapes(model, RELEASED_SHAPES)
    assert len(tensor_shapes(DIFFUSERS, model, ours)) == diffusers
    assert len(tensor_shapes(SD3, model, ours)) == single


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_tensors_hold_every_parameter_once(layout, name):
    """Catches a leaf written twice or left out: the elements would not add up to the published count."""
    model = RELEASED[name][0]
    tensors = tensor_shapes(layout, model, parameter_shapes(model, RELEASED_SHAPES))
    count = sum(int(np.prod(shape)) for shape in tensors.values())
    published = {"SD3-Medium": 2_028_328_000, "SD3.5-Medium": 2_243_171_520, "SD3.5-Large": 8_056_627_520}[name]
    assert count == published + model.position_grid**2 * model.width


@pytest.mark.parametrize(
    ("transform", "leaf", "shape"),
    [
        (Linear(), "kernel", (5, 6, 4)),
        (Linear(inputs=2), "kernel", (3, 2, 7)),
        (Linear(parts=3), "kernel", (5, 3, 2, 4)),
        (Linear(parts=3), "bias", (3, 2, 4)),
        (Linear(swapped=True), "kernel", (5, 2, 4)),
        (Linear(swapped=True), "bias", (2, 4)),
        (Patches(2), "kernel", (12, 7)),
    ],
)
def test_transforms_go_there_and_back(transform, leaf, shape):
    """Catches an inverse that is not one, and wrong shapes predicted."""
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    tensors = transform.out(leaf, array)
    assert [tensor.shape for tensor in tensors] == transform.shapes(leaf, shape)
    np.testing.assert_array_equal(transform.back(leaf, tensors, shape), array)


def test_qkv_rows_are_those_of_q_then_k_then_v():
    """Catches q and k exchanged: attention would be transposed, and only a comparison of tensors shows it."""
    kernel = np.arange(5 * 3 * 2 * 4, dtype=np.float32).reshape(5, 3, 2, 4)
    x = np.linspace(-1, 1, 5, dtype=np.float32)
    q, k, v = Linear(parts=3).out("kernel", kernel)
    ours = np.einsum("i,ichs->chs", x, kernel)
    for part, theirs in zip(ours, (q, k, v), strict=True):
        np.testing.assert_allclose(theirs @ x, part.ravel(), rtol=1e-5)
    (joined,) = Linear().out("kernel", kernel)
    np.testing.assert_array_equal(joined, np.concatenate([q, k, v]))


def test_a_patch_is_row_column_channel_here_and_channel_row_column_there():
    """Catches a transposed patch: the convolution of a random patch with the weight must be our product."""
    rng = np.random.default_rng(0)
    kernel, pixels = rng.standard_normal((2 * 2 * 3, 7)), rng.standard_normal((2, 2, 3))  # row, column, channel
    (weight,) = Patches(2).out("kernel", kernel)
    np.testing.assert_allclose(np.einsum("ocij,ijc->o", weight, pixels), pixels.reshape(-1) @ kernel)


def test_dual_blocks_come_first():
    """Catches layers of the second stack numbered from zero: block 0 written twice."""
    model = ModelConfig(depth=5, head_size=64, qk_norm=True, dual_attention_blocks=2)
    found = sources(DIFFUSERS, model, parameter_shapes(model, RELEASED_SHAPES))
    named = [source.names[0] for source in found if source.leaf == "blocks/image/mlp_in/bias"]
    assert named == [f"transformer_blocks.{i}.ff.net.0.proj.bias" for i in (2, 3)]


def test_plain_names_every_stream_of_three_weight_sets():
    """Catches the third weight set forgotten: a model that only this layout can express could not be exported."""
    model = dataclasses.replace(ModelConfig(depth=3), weight_sets=3)
    tensors = tensor_shapes(PLAIN, model, parameter_shapes(model, RELEASED_SHAPES))
    assert "blocks.1.context_first.mlp_in.weight" in tensors
    assert "blocks.2.context_first.qkv.weight" in tensors
    assert "blocks.2.context_first.proj.weight" not in tensors
