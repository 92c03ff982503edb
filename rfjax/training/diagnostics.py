"""Measures, every few steps, each layer's largest attention logit and the size of the layer's outputs.

A diagnosis is a forward pass of the step's batch, with the step's noise, before the step is taken. It is a separate
program and changes nothing. Growing attention logits announce that a large transformer will diverge (Dehghani et al.
2023, arXiv 2302.05442, section 2). SD3 met this at high resolution, and solved it with QK-norm (section 5.3.2).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from rfjax import limits
from rfjax.data.buckets import trained_parts
from rfjax.models.flops import patches
from rfjax.training.loss import make_loss
from rfjax.training.mesh import BATCH
from rfjax.training.processes import distributed
from rfjax.training.program import abstract_batch, abstract_state
from rfjax.training.run import Run
from rfjax.training.step import microbatches

DEEP, LONG = 24, 1024  # from this depth on, or above this many tokens, bfloat16 attention may need QK-norm


class Diagnostics(NamedTuple):
    """The measurements of a forward pass. A key names a layer, counted from 0, or a part of a layer: "3", "3/image"
    (`watching.by_layer`)."""

    loss: Float[Array, ""]  # the step's training loss, before its update
    largest_logit: dict[str, Float[Array, ""]]
    rms: dict[str, Float[Array, ""]]  # root mean square of a stream's values after the layer


def lower_diagnostics(run: Run, *, stream_offset: int = 0) -> jax.stages.Lowered:
    """Lowers the program `(params, batch, step) -> Diagnostics` for the devices of the run's mesh.

    The run's corpus must have one latent shape. `step` and `stream_offset` are those of the training step.
    """
    config, mesh = run.config, run.mesh
    accumulate, encoders = config.train.accumulate, run.corpus.shapes.encoders

    def part(params, batch, step, places):
        seen = []

        def apply(params, *given):
            prediction, *noted = run.backbone.watched(params, *given)
            seen.append(noted)
            return prediction

        loss, _ = make_loss(config, apply, encoders)(params, batch, step, places)
        return loss, *seen[0]

    def diagnose(params, batch, step):
        places = jnp.arange(config.train.batch_size, dtype=jnp.int32)
        places = jax.lax.with_sharding_constraint(places, NamedSharding(mesh, BATCH))
        given = jax.tree.map(lambda array: microbatches(mesh, array, accumulate), (batch, places))
        losses, logits, squares = jax.lax.map(lambda each: part(params, each[0], step + stream_offset, each[1]), given)
        return Diagnostics(
            jnp.mean(losses),
            jax.tree.map(jnp.max, logits),
            jax.tree.map(lambda square: jnp.sqrt(jnp.mean(square)), squares),
        )

    state, whole = abstract_state(run), NamedSharding(mesh, P())
    with run.computing():
        program = jax.jit(diagnose, out_shardings=whole)
        step = jax.ShapeDtypeStruct((), state.step.dtype, sharding=state.step.sharding)
        return program.lower(state.params, abstract_batch(run, NamedSharding(mesh, BATCH)), step)


def compile_diagnostics(run: Run, *, stream_offset: int = 0) -> dict[tuple[int, ...], jax.stages.Compiled]:
    """Compiles a run's diagnostics. Returns {latent shape: the program of `lower_diagnostics`, compiled}."""
    runs = [run.on_part(part) for part in trained_parts(run.corpus)]
    lowered = {each.corpus.shapes.latents: lower_diagnostics(each, stream_offset=stream_offset) for each in runs}
    return {shape: distributed.compiled("the diagnostics", program) for shape, program in lowered.items()}


def qk_norm_advice(run: Run) -> str | None:
    """Returns a sentence that recommends QK-norm, if a run in bfloat16 lacks it and is deep or has long sequences; else
    None."""
    model, train = run.config.model, run.config.train
    if model.qk_norm or train.compute_dtype != "bfloat16":
        return None
    text = limits.BACKBONES[model.backbone].text_in_sequence
    tokens = max(patches(model, part.shapes)[0] + text * part.shapes.context[0] for part in run.corpus.parts)
    reasons = [f"depth {model.depth}"] * (model.depth >= DEEP) + [f"{tokens:,} tokens"] * (tokens > LONG)
    if not reasons:
        return None
    why = "in bfloat16 attention logits may grow until training diverges (SD3 section 5.3.2)"
    return f"{' and '.join(reasons)} without QK-norm: {why}; config.model.qk_norm=true keeps them small"


def narrow_advice(run: Run) -> str | None:
    """Returns a sentence that recommends another width or patch, if a patch holds more numbers than the network is
    wide; else None. A narrower network cannot predict the noise of its input: the last linear map has too low a rank.
    """
    model, channels = run.config.model, run.corpus.shapes.latents[-1]
    numbers = model.temporal_patch_size * model.patch_size**2 * channels
    if model.width >= numbers:
        return None
    why = "it cannot pass on the noise of its input, so the loss stays high"
    remedy = "take a larger config.model.hidden or a smaller config.model.patch_size"
    return f"the network is {model.width} wide, and a patch holds {numbers} numbers: {why}; {remedy}"


def network_advice(run: Run) -> list[str]:
    """Returns all sentences of advice about a run's network."""
    return [advice for advice in (narrow_advice(run), qk_norm_advice(run)) if advice]
