"""Every implementation of attention against float32 products and softmax, and which one is chosen where.

Splash runs in Pallas' interpreter here; tests/plan/with_libtpu compiles it for a TPU.
cuDNN's test runs where there is an NVIDIA GPU.
"""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import child_process
from rfjax.config import Config, ModelConfig, apply_overrides
from rfjax.data.batch import BatchShapes
from rfjax.errors import ConfigError
from rfjax.models import attention_xla
from rfjax.models.attention import ALL_PLATFORMS, IMPLEMENTATIONS, attention, choose, platform_of
from rfjax.models.attention_kernels import LARGEST_BLOCK, block_sizes, cudnn_attention, splash_attention
from rfjax.models.attention_xla import xla_attention
from rfjax.models.backbone import make_backbone
from rfjax.models.mmdit import MMDiT
from rfjax.models.stack import CUDNN_FORWARD

interpreted = functools.partial(splash_attention, interpret=True)
HERE = {"xla": xla_attention, "splash": interpreted}  # xla_blocks is made of xla


def plain(q, k, v):
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), v)


def arrays(scale=1.0, tokens=150):
    keys = jax.random.split(jax.random.key(0), 4)
    return [scale * jax.random.normal(key, (2, tokens, 3, 16)) for key in keys]


def value_and_gradients(function, qkv, weight):
    """(sum of weighted outputs, its gradients), differentiated through a sum in float32."""
    total = lambda *x: jnp.sum(weight * function(*x).astype(jnp.float32))  # noqa: E731
    return jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*qkv)


def check_parity(function):
    *qkv, weight = arrays()
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(jax.jit(function)(*qkv), plain(*qkv), atol=1e-5)
        _, got = value_and_gradients(function, qkv, weight)
        _, want = value_and_gradients(plain, qkv, weight)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def check_low_precision(function):
    *qkv, weight = arrays()
    low = [x.astype(jnp.bfloat16) for x in qkv]
    _, got = value_and_gradients(function, low, weight)
    _, want = value_and_gradients(plain, qkv, weight)
    assert jax.eval_shape(function, *low).dtype == jnp.bfloat16
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(a), b, atol=0.03 * float(jnp.abs(b).max()))


def check_finite(function, dtype):
    *qkv, weight = arrays(scale=60.0)
    value, gradients = value_and_gradients(function, [x.astype(dtype) for x in qkv], weight)
    assert bool(jnp.isfinite(value)) and all(bool(jnp.isfinite(g).all()) for g in gradients)


@pytest.mark.parametrize("name", HERE)
def test_output_and_gradients_equal_plain_attention(name):
    """150 tokens are padded to 256 for splash: catches padding that is attended to, which takes a
    third of the weight, a scale left out, and axes in another order."""
    check_parity(HERE[name])


@pytest.mark.parametrize("name", HERE)
def test_bfloat16_inputs_give_bfloat16_gradients_near_the_float32_ones(name):
    check_low_precision(HERE[name])


@pytest.mark.parametrize("name", HERE)
def test_huge_logits_stay_finite(name):
    """Logits of some thousands: exp would overflow without the maximum taken off, and rows of padding
    that attend to nothing would divide by zero."""
    check_finite(HERE[name], jnp.float32)


@pytest.mark.parametrize("name", HERE)
def test_queries_and_keys_may_differ_in_number(name):
    """Attention across: 150 tokens attend to 40 and 40 to 150, each padded on its own for splash. Catches a
    segment or a block of the other's size, and gradients of keys summed over too few queries."""
    function = HERE[name]
    for ours, theirs in ((150, 40), (40, 150)):
        q, _, _, weight = arrays(tokens=ours)
        _, k, v, _ = arrays(tokens=theirs)
        with jax.default_matmul_precision("highest"):
            np.testing.assert_allclose(jax.jit(function)(q, k, v), plain(q, k, v), atol=1e-5)
            _, got = value_and_gradients(function, (q, k, v), weight)
            _, want = value_and_gradients(plain, (q, k, v), weight)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_several_blocks_equal_plain_attention(monkeypatch):
    """More tokens than a block holds: catches a gradient summed over one block alone."""
    from rfjax.models import attention_kernels

    monkeypatch.setattr(attention_kernels, "LARGEST_BLOCK", 128)
    attention_kernels._splash_kernel.cache_clear()
    assert block_sizes(150) == (256, 128)
    try:
        check_parity(interpreted)
    finally:
        attention_kernels._splash_kernel.cache_clear()


@pytest.mark.parametrize(
    "tokens, padded, block", [(410, 512, 512), (589, 640, 640), (1178, 1280, 640), (4250, 4480, 896), (128, 128, 128)]
)
def test_tokens_are_padded_to_whole_blocks(tokens, padded, block):
    """256^2 and 512^2 with 154 text tokens, 256^2 with 333, 1024^2 with 154, and none to add."""
    assert block_sizes(tokens) == (padded, block)
    assert padded % block == 0 and block % 128 == 0 and block <= LARGEST_BLOCK


@pytest.mark.skipif(platform_of(jax.devices()[0]) != "cuda", reason="needs an NVIDIA GPU, Ampere or later")
def test_cudnn_equals_plain_attention_and_stays_finite():
    """Catches a layout or a scale that is not cuDNN's, and gradients that are not finite at a number
    of tokens that is no multiple of 64; 410 is the paper's."""
    check_low_precision(cudnn_attention)
    check_finite(cudnn_attention, jnp.bfloat16)
    *qkv, weight = [x.astype(jnp.bfloat16) for x in arrays(tokens=410)]
    _, gradients = value_and_gradients(cudnn_attention, qkv, weight)
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)


def test_cudnn_runs_forward_once_where_a_policy_keeps_the_attention(monkeypatch):
    """Catches a policy that does not know cuDNN's kernel in a later JAX: it would run twice, and `none` keep nothing.
    Only traced, as no GPU is needed for that."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda *_: True)
    shapes = BatchShapes(latents=(8, 8, 4), context=(6, 16), pooled=8, encoders=())
    arguments = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((2, 1, 8, 8, 4), (2,), (2, 6, 16), (2, 8))]

    def runs(remat):
        how = {"compute_dtype": "bfloat16", "remat": remat, "attention": "cudnn", "platform": "cuda"}
        backbone = make_backbone(ModelConfig(depth=3, hidden=16, head_size=8), shapes, **how)
        params = jax.eval_shape(backbone.init, jax.random.key(0))
        gradient = jax.make_jaxpr(jax.grad(lambda p, *batch: jnp.sum(backbone.apply(p, *batch))))(params, *arguments)
        return str(gradient).count(f"= {CUDNN_FORWARD}")

    once = runs("none")
    assert [runs(remat) for remat in ("dots", "attention", "full")] == [once, once, 2 * once] and once


def test_blocks_of_queries_are_the_whole(monkeypatch):
    """Catches a block that sees the keys of its own queries alone, and padded queries in the result."""
    monkeypatch.setattr(attention_xla, "BLOCK", 64)  # 150 tokens become three blocks of 50
    check_parity(attention_xla.xla_blocks_attention)
    text = jax.jit(attention_xla.xla_blocks_attention).lower(*arrays()[:3]).as_text()
    assert "2x3x50x150" in text and "2x3x150x150" not in text  # never the logits of all tokens


def test_the_platform_decides():
    """The whole table of `auto`: catches a kernel chosen where it cannot run, such as cuDNN in float32."""
    found = {
        (platform, dtype): choose("auto", platform, dtype=dtype, head_size=64)
        for platform in ALL_PLATFORMS
        for dtype in ("float32", "bfloat16")
    }
    others = {"tpu": ("splash", "splash"), "cuda": ("xla", "cudnn")}
    for platform in ALL_PLATFORMS:
        assert (found[platform, "float32"], found[platform, "bfloat16"]) == others.get(platform, ("xla", "xla"))
    assert choose("auto", "cuda", dtype="bfloat16", head_size=60) == "xla"
    assert choose("auto", "cuda", dtype="bfloat16", head_size=136) == "xla"
    assert choose("xla", "tpu", dtype="bfloat16", head_size=64) == "xla"


@pytest.mark.parametrize(
    "name, platform, message",
    [
        (
            "splash",
            "cpu",
            "it runs on tpu, and this is cpu; use xla or xla_blocks, or auto, which takes xla",
        ),
        (
            "cudnn",
            "tpu",
            "it runs on cuda, and this is tpu; use splash or xla or xla_blocks, or auto, which takes splash",
        ),
        ("cudnn", "cuda", "it computes in bfloat16, and config.train.compute_dtype is float32; use xla"),
        ("flash", "tpu", "it must be one of auto, xla, splash, cudnn, xla_blocks; did you mean splash?"),
    ],
)
def test_what_cannot_run_is_refused_by_name(name, platform, message):
    with pytest.raises(ConfigError) as caught:
        choose(name, platform, dtype="float32", head_size=64)
    assert message in str(caught.value)


def test_a_network_is_refused_before_anything_is_traced():
    shapes = BatchShapes(latents=(8, 8, 3), context=(4, 8), pooled=8, encoders=())
    with pytest.raises(ConfigError, match="config.train.attention is 'splash', which cannot run here"):
        make_backbone(ModelConfig(depth=2, hidden=32, head_size=16), shapes, attention="splash", platform="cpu")
    assert apply_overrides(Config(), {"train.attention": "splash"}).train.attention == "splash"


def kernel_runs(jaxpr) -> int:
    """Pallas kernels of a traced program whose results are used (the compiler drops the others), scans
    counted as often as they run."""
    used = {id(v) for equation in jaxpr.eqns for v in equation.invars} | {id(v) for v in jaxpr.outvars}
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            total += any(id(v) in used for v in equation.outvars)
            continue
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * kernel_runs(inner)
    return total


@pytest.mark.parametrize("remat, kernels", [("none", 2), ("attention", 2), ("dots", 2), ("full", 3)])
def test_a_policy_that_saves_attention_spares_its_kernel(remat, kernels):
    """Forward and backward once per layer, and forward again only where everything is: catches a name
    that the policy does not know, which would compute attention twice and say nothing."""
    config, depth = ModelConfig(depth=3, hidden=32, head_size=16), 3
    module = MMDiT(config, jnp.dtype("float32"), 8, 8, remat, 1, "splash")
    batch = [jnp.zeros(shape) for shape in ((1, 1, 8, 8, 3), (1,), (1, 4, 8), (1, 8))]
    params = jax.eval_shape(module.init, jax.random.key(0), *batch)
    traced = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(module.apply(p, *batch))))(params)
    assert kernel_runs(traced.jaxpr) == kernels * depth


OVER_A_MESH = """
import dataclasses, functools, json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from rfjax.config import MeshConfig, ModelConfig
from rfjax.models import attention as table
from rfjax.models.attention_kernels import splash_attention
from rfjax.models.attention_xla import xla_attention
from rfjax.models.mmdit import MMDiT
from rfjax.models.stack import CUDNN_FORWARD
from rfjax.training.mesh import BATCH, make_mesh, shardings

jax.config.update("jax_disable_most_optimizations", True)
row = table.IMPLEMENTATIONS["splash"]
# What is split by hand, once as a kernel alone and once, cheaper to compile, within the network.
for name, function in (("kernel", functools.partial(splash_attention, interpret=True)), ("by hand", xla_attention)):
    table.IMPLEMENTATIONS[name] = dataclasses.replace(row, function=function)
mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=2))
keys = jax.random.split(jax.random.key(0), 5)

def compare(make, arguments, places):
    # (largest relative difference to one device, whether the kernel's program gathers anything)
    want = jax.jit(make("xla"))(*arguments)
    with jax.set_mesh(mesh):
        split = jax.jit(make(made), in_shardings=places).lower(*arguments).compile()
        got = split(*jax.device_put(arguments, places))
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want))
    return max(float(jnp.max(jnp.abs(a - b)) / (1e-6 + jnp.max(jnp.abs(b)))) for a, b in pairs), \
split.as_text().count("all-gather(")

with jax.default_matmul_precision("highest"):
    made = "kernel"
    qkv = tuple(jax.random.normal(key, (4, 20, 2, 16)) for key in keys[:3])
    square = lambda name: jax.grad(lambda x: jnp.sum(jnp.square(table.attention(*x, name))))
    attended = compare(square, (qkv,), ((NamedSharding(mesh, P("data", None, "tensor")),) * 3,))
    with jax.set_mesh(mesh):  # three examples on two devices
        uneven = jax.jit(lambda *x: table.attention(*x, made))(*[jnp.ones((3, 20, 2, 16))] * 3)

    made = "by hand"
    config = ModelConfig(depth=2, hidden=32, head_size=16)
    network = lambda name: MMDiT(config, jnp.dtype("float32"), 8, 8, "attention", 1, name)
    batch = tuple(jax.random.normal(k, s) for k, s in zip(keys, ((4, 1, 8, 8, 3), (4,), (4, 4, 8), (4, 8))))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network("xla").init, keys[4], *batch)
    params = jax.tree.map(lambda p: jnp.asarray(0.2 * rng.standard_normal(p.shape), jnp.float32), shapes)
    loss = lambda name: jax.grad(lambda p, batch: jnp.sum(jnp.square(network(name).apply(p, *batch))))
    places = {"params": shardings(mesh, params["params"])}, (NamedSharding(mesh, BATCH),) * 4
    trained = compare(loss, (params, batch), places)
print(json.dumps({"attended": attended, "trained": trained, "uneven": float(jnp.abs(uneven - 1).max())}))
"""


def test_over_a_mesh_each_device_attends_its_own_examples_and_heads():
    """The kernel on 2 x 1 x 2 devices, and the network around it under a scan and a remat policy, have
    the gradients of one device; catches examples or heads that are gathered first, and a batch that
    the mesh does not divide."""
    done = subprocess.run(
        [sys.executable, "-c", OVER_A_MESH], capture_output=True, text=True, env=child_process.quick_environment(4)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["attended"][0] < 2e-5 and found["attended"][1] == 0
    assert found["trained"][0] < 5e-5
    assert found["uneven"] < 1e-6


def test_attention_is_the_rows_function(monkeypatch):
    """Catches a name that is read and then not used."""
    row = dataclasses.replace(IMPLEMENTATIONS["splash"], function=lambda q, k, v: 2 * v)
    monkeypatch.setitem(IMPLEMENTATIONS, "splash", row)
    *qkv, _ = arrays(tokens=7)
    np.testing.assert_array_equal(attention(*qkv, "splash"), 2 * qkv[2])
    np.testing.assert_array_equal(attention(*qkv), xla_attention(*qkv))
