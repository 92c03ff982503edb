"""Says which mesh axis splits each dimension of the parameters and of the layers' activations.

There are two tables. `RULES` names the dimensions of a parameter by its path, and `mesh_axes.py` gives the mesh axis of
a name. `data` splits the batch, `fsdp` splits the batch and the weights' hidden dimension, `tensor` splits heads and
MLP channels. Left alone, the compiler prefers to exchange activations, which are larger than weights. So a layer tells
it three things. A weight is gathered over `fsdp` where it is used, under a scan one layer at a time. Its gradient is
split again. Activations stay split by example. Without a mesh of several devices, `gather` and `by_example` return
their argument unchanged, and `by_head`, `product` and `convolution` compute without constraints.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from rfjax.mesh_axes import AXES, BATCH_AXES, DIMENSION_AXIS, TENSOR, batch_ways

# (end of the parameter's path, its last dimensions: a name if it may be split, None if it is whole). The first match
# counts. The layer axis in front of stacked blocks is never split: the scan takes one layer's weights at a time.
# Parameters that no row matches (biases, norms) are replicated.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"/qkv2?/kernel$", ("hidden", None, "heads", None)),
    (r"/(cross_)?proj2?/kernel$", ("heads", None, "hidden")),
    (r"/cross_q/kernel$", ("hidden", "heads", None)),
    (r"/cross_kv/kernel$", ("hidden", None, "heads", None)),
    (r"/mlp_in/kernel$", ("hidden", "mlp")),
    (r"/mlp_out/kernel$", ("mlp", "hidden")),
    (r"/modulation/kernel$", ("hidden", None, None)),
    (r"(patch|context|class)_embed/kernel$", (None, "hidden")),
    (r"(time|pooled|context)_embed/in/kernel$", (None, "hidden")),
    (r"(time|pooled|context)_embed/out/kernel$", ("hidden", None)),
    (r"final/linear/kernel$", ("hidden", None)),
    # convolutional levels; their `hidden` is a fraction of the transformer's
    (r"/stem/kernel$", (None, None, None, "hidden")),
    (r"/(conv_in|conv_out|head)/kernel$", (None, None, "hidden", None)),
    (r"/(down|up)\d+_linear/kernel$", ("hidden", None)),
)


def dimensions(path: str) -> tuple[str | None, ...]:
    """Returns the names of a parameter's last dimensions, from the first rule in `RULES` that matches the parameter's
    path."""
    return next((names for pattern, names in RULES if re.search(pattern, "/" + path)), ())


def path_name(path: tuple) -> str:
    """A leaf's path in a tree as text: `blocks/image/qkv/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _mesh():
    """The mesh set by `jax.set_mesh`, or None if there is none or it has one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES and mesh.size > 1 else None


def _axes(names) -> list[str | None]:
    return [DIMENSION_AXIS.get(name) for name in names]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _constrain(x, forward, backward):
    return jax.lax.with_sharding_constraint(x, forward)


_constrain.defvjp(
    lambda x, forward, backward: (_constrain(x, forward, backward), None),
    lambda forward, backward, _, gradient: (jax.lax.with_sharding_constraint(gradient, backward),),
)


def gather(kernel: Float[Array, " ..."], names: tuple[str | None, ...]) -> Float[Array, " ..."]:
    """Gathers `kernel` over `fsdp`, and leaves it split over `tensor`. Its gradient is split like the parameter.

    A plain constraint would gather the gradient too, and turn its reduce-scatter into an all-reduce.
    """
    if _mesh() is None:
        return kernel
    stored = _axes(names)
    # Without this constraint the compiler gathers the float32 parameter of which `kernel` is a cast.
    kernel = _constrain(kernel, P(*stored), P(*stored))
    return _constrain(kernel, P(*(axis if axis == TENSOR else None for axis in stored)), P(*stored))


def by_example(x: Float[Array, "batch ..."], names: tuple[str | None, ...]) -> Float[Array, "batch ..."]:
    """Splits `x` and its gradient by example, and over `tensor` if the names of the last dimensions say so.

    A batch that the mesh does not divide (initialisation has one example) is left alone.
    """
    mesh = _mesh()
    if mesh is None or x.shape[0] % batch_ways(mesh.shape):
        return x
    last = [axis if axis == TENSOR else None for axis in _axes(names)]
    spec = P(BATCH_AXES, *[None] * (x.ndim - 1 - len(last)), *last)
    return _constrain(x, spec, spec)


def by_head(
    function: Callable, *arrays: Float[Array, "batch tokens heads head_size"]
) -> Float[Array, "batch tokens heads head_size"]:
    """Applies `function` to each device's own examples and heads, for kernels that the compiler cannot split. If the
    mesh does not divide the number of examples, every device computes all examples; the same holds for heads."""
    mesh = _mesh()
    if mesh is None:
        return function(*arrays)
    batch, _, heads, _ = arrays[0].shape
    spec = P(
        BATCH_AXES if batch % batch_ways(mesh.shape) == 0 else None,
        None,
        TENSOR if heads % mesh.shape[TENSOR] == 0 else None,
        None,
    )
    # `check_vma` is off, because a kernel does not declare over which mesh axes its result varies.
    return jax.shard_map(function, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False)(*arrays)


def product(
    x: Float[Array, "batch ..."], kernel: Float[Array, " ..."], inputs: int, names: tuple[str | None, ...]
) -> Float[Array, "batch ..."]:
    """Contracts the last `inputs` axes of `x` with the first axes of a parameter's `kernel`.

    Over a mesh whose `tensor` axis is 1 the kernel is reshaped to a matrix: for gradients with more axes the TPU
    compiler makes an all-reduce, which moves twice the bytes of a reduce-scatter.
    """
    mesh, target = _mesh(), kernel.shape[inputs:]
    if mesh is not None and mesh.shape[TENSOR] == 1 and names:
        first = kernel.shape[:inputs]
        kernel = kernel.reshape(math.prod(first), math.prod(target))
        x = x.reshape(*x.shape[: x.ndim - inputs], math.prod(first))
        names = tuple("hidden" if "hidden" in part else None for part in (names[:inputs], names[inputs:]))
        inputs = 1
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    x = by_example(x, names[:inputs])
    y = by_example(jax.lax.dot_general(x, gather(kernel, names), (axes, ((), ()))), names[inputs:])
    return y.reshape(*y.shape[: x.ndim - inputs], *target)


def convolution(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels targets"],
    names: tuple[str | None, ...],
) -> Float[Array, "batch height width targets"]:
    """Convolves `x` with a parameter's `kernel`, with zeros around the edges. Nothing is split over `tensor`."""
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(by_example(x, ()), gather(kernel, names), (1, 1), "SAME", dimension_numbers=layout)
    return by_example(y, ())
