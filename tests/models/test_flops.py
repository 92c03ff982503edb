"""The FLOPs formula against the traced program and against the compiler."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from rfjax import limits
from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.models.backbone import make_backbone
from rfjax.models.flops import forward_flops, recompute_flops, training_flops

SHAPES = BatchShapes(latents=(16, 8, 3), context=(20, 40), pooled=24, encoders=())
CLIPS = dataclasses.replace(SHAPES, latents=(6, 8, 4, 3))
VARIANTS = {
    "plain": {},
    "patch1": {"patch_size": 1},
    "dual": {"dual_attention_blocks": 2, "qk_norm": True},
    "three_sets": {"weight_sets": 3, "first_text_tokens": 7},
    "one_block": {"depth": 1},
    "wide_mlp": {"mlp_ratio": 3.0},
    "factorised": {"temporal_attention": "factorised", "temporal_patch_size": 2, "qk_norm": True},
    "dit": {"backbone": "dit"},
    "dit_one_block": {"backbone": "dit", "depth": 1},
    "dit_class": {"backbone": "dit_class", "patch_size": 1},
    "crossdit": {"backbone": "crossdit", "qk_norm": True},
    "uvit": {"backbone": "uvit"},
    "uvit_two_levels": {"backbone": "uvit", "patch_size": 4, "depth": 2},
}


def test_every_backbone_is_counted_here():
    """Catches a new backbone whose count nothing compares with its program."""
    assert {variant.get("backbone", "mmdit") for variant in VARIANTS.values()} == set(limits.BACKBONES)


def abstract_inputs(shapes):
    sizes = (1, *shapes.latents), (1,), (1, *shapes.context), (1, shapes.pooled)
    return [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]


def meetings(size, kernel, outputs, stride, low, left_dilation, right_dilation) -> int:
    """The pairs (place of the output, place in the kernel) along an axis that meet an element, not padding."""
    places = [o * stride + k * right_dilation - low for o in range(outputs) for k in range(kernel)]
    return sum(place in range(0, size * left_dilation, left_dilation) for place in places)


def convolution(equation) -> int:
    parameters = equation.params
    numbers = parameters["dimension_numbers"]
    left, right, out = (v.aval.shape for v in (*equation.invars, *equation.outvars))
    total = 2 * right[numbers.rhs_spec[0]] * right[numbers.rhs_spec[1]] * out[numbers.out_spec[0]]
    for axis, (stride, (low, _), dilated, spread) in enumerate(
        zip(*(parameters[key] for key in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")), strict=True)
    ):
        sizes = (
            array[spec[2 + axis]]
            for array, spec in ((left, numbers.lhs_spec), (right, numbers.rhs_spec), (out, numbers.out_spec))
        )
        total *= meetings(*sizes, stride, low, dilated, spread)
    return total


def products(jaxpr) -> int:
    """Operations of all dots and convolutions in a traced program, scans counted as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            assert equation.params["feature_group_count"] == equation.params["batch_group_count"] == 1
            total += convolution(equation)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * products(inner)
    return total


@pytest.mark.parametrize("name", VARIANTS)
def test_formula_equals_the_dots_of_the_forward_pass(name):
    model = ModelConfig(**{"depth": 4, "hidden": 64, "head_size": 16, **VARIANTS[name]})
    shapes = CLIPS if name == "factorised" else SHAPES
    backbone = make_backbone(model, shapes)
    params = jax.eval_shape(backbone.init, jax.random.key(0))
    traced = jax.make_jaxpr(backbone.apply)(params, *abstract_inputs(shapes))
    assert products(traced.jaxpr) == forward_flops(model, shapes)


def test_the_papers_sizes():
    """Independently counted GFLOPs an image: 256 image and 154 text tokens."""
    paper = BatchShapes(latents=(32, 32, 16), context=(154, 4096), pooled=2048, encoders=())
    for depth, giga in {15: 145, 18: 247, 21: 390, 24: 579, 30: 1122, 38: 2266}.items():
        assert round(forward_flops(ModelConfig(depth=depth), paper) / 1e9) == giga
        assert training_flops(ModelConfig(depth=depth), paper) == 3 * forward_flops(ModelConfig(depth=depth), paper)


@pytest.mark.parametrize("name", ("plain", "dual", "three_sets", "factorised", "dit", "dit_class", "crossdit", "uvit"))
def test_remat_computes_again_what_the_formula_says(name):
    """The dots of the traced gradient beyond those without rematerialisation, policy by policy."""
    model = ModelConfig(**{"depth": 4, "hidden": 64, "head_size": 16, **VARIANTS[name]})

    shapes = CLIPS if name == "factorised" else SHAPES

    def gradient_products(remat):
        backbone = make_backbone(model, shapes, remat=remat)
        params = jax.eval_shape(backbone.init, jax.random.key(0))
        loss = lambda p, *batch: jnp.sum(jnp.square(backbone.apply(p, *batch)))  # noqa: E731
        return products(jax.make_jaxpr(jax.grad(loss))(params, *abstract_inputs(shapes)).jaxpr)

    plain, plain_formula = gradient_products("none"), recompute_flops(model, shapes, "none")
    for remat in ("dots", "attention", "full"):
        extra = recompute_flops(model, shapes, remat) - plain_formula
        assert gradient_products(remat) - plain == extra, remat
        # crossdit has its modulation outside the blocks, so that "dots" finds every product saved
        assert (extra > 0) != (name == "crossdit" and remat == "dots"), remat


@pytest.mark.parametrize("remat", (pytest.param("none", marks=pytest.mark.full), "full"))
def test_within_one_percent_of_the_compiler(remat):
    """Forward and training at width 960, unrolled, as the compiler counts (elementwise work too)."""
    model = ModelConfig(depth=3, hidden=960)
    shapes = BatchShapes(latents=(16, 16, 16), context=(48, 256), pooled=128, encoders=())
    backbone = make_backbone(model, shapes, unroll=3, remat=remat)
    params = jax.eval_shape(backbone.init, jax.random.key(0))
    batch = abstract_inputs(shapes)

    def counted(function):
        return jax.jit(function).lower(params, *batch).compile().cost_analysis()["flops"]

    assert counted(backbone.apply) == pytest.approx(forward_flops(model, shapes), rel=0.01)
    training = counted(jax.grad(lambda p, *x: jnp.sum(jnp.square(backbone.apply(p, *x)))))
    formula = training_flops(model, shapes) + recompute_flops(model, shapes, remat)
    assert training == pytest.approx(formula, rel=0.01)
