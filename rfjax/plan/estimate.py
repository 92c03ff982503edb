"""Estimates by formula what a step takes on one device, without compiling it. A search tries layouts in the order of
these estimates.

Operations and state are exact. Working memory and memory traffic are estimates, with constants fitted to compiled
programs of the paper's depths (docs/plan.md). If the step is compiled, the compiled program's numbers replace them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh

from rfjax.config import Config, MeshConfig
from rfjax.mesh_axes import AXES, DATA, FSDP, TENSOR, batch_ways, strides_of
from rfjax.models.flops import RECOMPUTED, attended_sequences, flops_by_part, recompute_flops, training_flops
from rfjax.plan.roofline import Collective, Roofline, roofline
from rfjax.plan.targets import Target
from rfjax.training.mesh import check_batch, mesh_sizes, shardings
from rfjax.training.optimizer import optimizer_flops
from rfjax.training.program import state_shapes
from rfjax.training.run import plan_run

# Parts of the network that the mesh axis `tensor` does not split.
UNSPLIT = ("embeddings", "modulation", "final", "conv_in", "conv_out", "levels")

# `train.remat` -> number of arrays of [tokens, hidden] that each block keeps for the backward pass
KEPT = {"full": 1, "attention": 2, "dots": 11, "none": 26}
LOGITS_ALIVE = 8  # arrays of [heads, tokens, tokens] in float32 at the peak of a block's backward pass
BLOCK_ALIVE = 20  # arrays of [tokens, hidden] at the same peak
OVER_TIME = 0.45  # in the bytes of activations, a token of attention over time counts as this many tokens of a block
LOGITS_TRAFFIC = 12  # times that each block reads or writes an array of logits in a step
BLOCK_TRAFFIC = 140  # times that each block reads or writes an array of [tokens, hidden]
WEIGHT_TRAFFIC = 8  # times that a weight in the compute type is read or written: gathered, used, and its gradient
WIDEST_SCATTER = 32  # over axes wider than this the TPU compiler all-reduces gradients


@dataclass(frozen=True)
class StepEstimate:
    """Bytes, operations and exchanges of one step, per device."""

    mesh: dict[str, int]
    state_bytes: int
    peak_bytes: int
    flops: float
    optimizer_flops: int  # those among `flops` that are the optimiser's
    hbm_bytes: float
    collectives: tuple[Collective, ...]
    roofline: Roofline


def _without_layout(config: Config) -> Config:
    """Returns `config` with one fixed mesh, rematerialisation policy and number of microbatches. So the hundreds of
    layouts in a search share one cached state."""
    train = dataclasses.replace(config.train, remat="none", accumulate=1)
    return dataclasses.replace(config, mesh=MeshConfig(), train=train)


@functools.cache
def _state(config: Config):
    """Returns (batch shapes, abstract state, the optimiser's operations) of a config, and allocates nothing.

    The shapes are the largest aspect bucket's, since that has to fit.
    """
    run = plan_run(config)
    return run.corpus.parts[run.largest_part].shapes, state_shapes(run), optimizer_flops(config, run.backbone)


def tree_bytes(tree, places) -> int:
    """Sums the bytes of a tree's arrays on one device; `places` has the leaves' shardings."""

    def size(leaf, place):
        return math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, tree, places)))


def estimate(config: Config, target: Target) -> StepEstimate:
    """Estimates what a config's step takes on each of the target's devices.

    Raises `ConfigError` if the devices, the batch or the parameters do not divide over the mesh.
    """
    sizes = mesh_sizes(config.mesh, target.devices, target.shown_slices)
    mesh = AbstractMesh(tuple(sizes.values()), AXES)
    check_batch(mesh, config.train.batch_size, config.train.accumulate)
    shapes, state, optimizer = _state(_without_layout(config))
    places = shardings(mesh, state)
    state_bytes = tree_bytes(state, places)
    gradient_bytes = tree_bytes(state.params, places.params)
    model, train = config.model, config.train
    width = 2 if train.compute_dtype == "bfloat16" else 4
    tensor, ways = sizes[TENSOR], batch_ways(sizes)
    examples = train.batch_size // ways

    parts = flops_by_part(model, shapes)
    whole = training_flops(model, shapes) + recompute_flops(model, shapes, train.remat)
    recomputed = RECOMPUTED[train.remat]
    unsplit = sum(parts.get(name, 0) * (3 + recomputed.count(name)) for name in UNSPLIT)
    flops = examples * ((whole - unsplit) / tensor + unsplit) + optimizer  # undivided: one device may do all of Muon's

    (count, length), *over_time = sequences = attended_sequences(model, shapes)
    tokens = count * length + OVER_TIME * sum(n * size for n, size in over_time)
    activation = tokens * model.width * width
    logits = [4 * model.heads * n * size**2 / tensor for n, size in sequences]  # bytes, of each attention in a block
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params)) * width / tensor
    micro = examples // train.accumulate
    batch_bytes = 4 * examples * (math.prod(shapes.latents) + math.prod(shapes.context) + shapes.pooled)
    layer = 2 * weights / model.depth
    peak = state_bytes + batch_bytes + gradient_bytes * (1 if train.accumulate == 1 else 2) + 2 * layer
    peak += micro * (
        model.depth * KEPT[train.remat] * activation + LOGITS_ALIVE * max(logits) + BLOCK_ALIVE * activation
    )
    peak += weights if train.remat == "none" else 0  # gathered weights are kept

    passes = 0.75 if train.remat in ("none", "dots") else 1.0
    traffic = examples * model.depth * passes * (LOGITS_TRAFFIC * sum(logits) + BLOCK_TRAFFIC * activation)
    traffic += train.accumulate * WEIGHT_TRAFFIC * weights + 2 * state_bytes

    collectives = _collectives(sizes, target.slices, train, weights, model.depth * micro * activation)
    limits = roofline(target, flops, traffic, collectives)
    return StepEstimate(sizes, state_bytes, int(peak), flops, optimizer, traffic, collectives, limits)


def _collectives(sizes, slices, train, weights, activations) -> tuple[Collective, ...]:
    """Lists a step's exchanges between devices.

    Over `fsdp`, weights are gathered (twice for each microbatch, or once if the gathered weights are kept), and
    gradients are reduce-scattered (all-reduced, if `fsdp` is above `WIDEST_SCATTER`). Over `data`, gradients are
    all-reduced within each slice; then each device all-reduces its share of the result between slices. Over `tensor`,
    activations are all-reduced.
    """
    fsdp, data, tensor = sizes[FSDP], sizes[DATA] // slices, sizes[TENSOR]
    times, strides, found = train.accumulate, strides_of(sizes), []
    if fsdp > 1:
        scatter = "reduce-scatter" if fsdp <= WIDEST_SCATTER else "all-reduce"
        gathers = times * (1 if train.remat == "none" else 2)
        found.append(Collective("all-gather", int(weights), fsdp, gathers, "weights", stride=strides[FSDP]))
        found.append(Collective(scatter, int(weights), fsdp, times, "gradients", stride=strides[FSDP]))
    if data > 1:
        found.append(Collective("all-reduce", int(weights / fsdp), data, times, "gradients", stride=strides[DATA]))
    if slices > 1:
        part = int(weights / fsdp / data)
        found.append(Collective("all-reduce", part, slices, times, "gradients", between_slices=True))
    if tensor > 1:
        sums = 4 if train.remat in ("none", "dots") else 6  # two for each block and pass
        found.append(Collective("all-reduce", int(activations), tensor, times * sums, "activations"))
    return tuple(found)
