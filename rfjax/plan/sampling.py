"""Estimates by formula what sampling takes on a target: operations, bytes and exchanges of a batch of images.

Operations and the stored weights are exact. Working memory and traffic are estimates, with constants fitted to compiled
samplers (docs/plan.md). The time is the roofline's, a lower bound: real images take longer.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import AbstractMesh

from rfjax import limits
from rfjax.config import Config
from rfjax.data.batch import BatchShapes
from rfjax.data.buckets import format_shape
from rfjax.errors import ConfigError
from rfjax.flow.resolution import formulation_at
from rfjax.flow.samplers import EVALUATIONS_PER_STEP, guided_share, sampling_levels
from rfjax.mesh_axes import AXES, BATCH_AXES, FSDP, TENSOR, batch_ways
from rfjax.models.flops import attended_sequences, flops_by_part, forward_flops
from rfjax.models.quantised import check_weights, stored_shapes
from rfjax.plan.compiled import Compiled, Compiler, attention_of, compile_sampler_for
from rfjax.plan.estimate import OVER_TIME, UNSPLIT, tree_bytes
from rfjax.plan.roofline import Collective, Roofline, roofline
from rfjax.plan.targets import Target
from rfjax.training.mesh import mesh_sizes, shardings
from rfjax.training.run import plan_run

ALIVE = 36  # arrays of [tokens, hidden] at a block's peak: queries, keys, values, the MLP's channels, some in float32
LOGITS_ALIVE = 1.5  # arrays of [heads, tokens, tokens] in float32, if the attention keeps them in memory
TRAFFIC = 40  # times that each block reads or writes an array of [tokens, hidden] in an evaluation
LOGITS_TRAFFIC = 4  # times that each block reads or writes an array of logits


@dataclass(frozen=True)
class Request:
    """What to sample."""

    weights: str  # the type that weights are stored in: a row of `models.quantised.STORED`
    batch: int  # images at once over all devices
    latents: tuple[int, int, int, int]  # (frames, height, width, channels)


@dataclass(frozen=True)
class SampleEstimate:
    """Bytes, operations and exchanges of a batch of images, per device, and its limits in seconds."""

    mesh: dict[str, int]
    evaluations: int  # of the network, for one image; a guided step of Euler's method has two
    weight_bytes: int
    logits_bytes: int  # of the largest attention, in one evaluation; 0 if the attention keeps no logits in memory
    peak_bytes: int
    flops: float
    hbm_bytes: float
    collectives: tuple[Collective, ...]
    limits: Roofline


@dataclass(frozen=True)
class SamplePlan:
    """What sampling a point's images takes on a target, with weights stored in one type."""

    point: str
    params: int
    request: Request
    attention: str
    estimate: SampleEstimate
    compiled: Compiled | None
    fits: bool
    chips: int

    @property
    def peak_bytes(self) -> int:
        return self.compiled.peak_bytes if self.compiled else self.estimate.peak_bytes

    @property
    def seconds_per_image(self) -> float:
        """Seconds that the whole target spends on an image: a batch's seconds over its number of images."""
        return self.estimate.limits.step / self.request.batch

    @property
    def images_per_chip_hour(self) -> float:
        return 3600.0 / (self.seconds_per_image * self.chips)

    def to_json(self) -> dict:
        found = dataclasses.asdict(self)
        rates = {"seconds_per_image": self.seconds_per_image, "images_per_chip_hour": self.images_per_chip_hour}
        return found | {"peak_bytes": self.peak_bytes, "batch_seconds": self.estimate.limits.step} | rates


def shapes_at(shapes: BatchShapes, size: tuple[int, int] | None, config: Config) -> BatchShapes:
    """Returns a corpus's shapes with latents of `size` (height, width); None keeps the corpus's own.

    Raises `ConfigError` if the network cannot take such latents.
    """
    frames, height, width, channels = shapes.latents
    height, width = size or (height, width)
    limits.check_latents(config.model, (frames, height, width, channels))
    return dataclasses.replace(shapes, latents=(frames, height, width, channels))


def check_no_guide(config: Config) -> None:
    """Raises `ConfigError` for a sampler guided by a second network: only one network is planned and timed."""
    guide = config.evaluation.sampler.guide
    if guide:
        raise ConfigError(
            f"config.evaluation.sampler.guide is {guide!r}, and only one network is planned and timed: leave it empty, "
            "and plan the weaker run's evaluations apart"
        )


def guided_part(config: Config, latents: tuple[int, ...]) -> float:
    """Returns the share of a sampler's evaluations that are guided (`flow.samplers.guided_share`)."""
    sampler, formulation = config.evaluation.sampler, formulation_at(config, latents)
    times = np.asarray(sampling_levels(formulation, sampler.steps, sampler.sigmas))
    check_no_guide(config)
    interval = sampler.guidance_from, sampler.guidance_to
    return guided_share(times, sampler.method, sampler.guidance_scale, interval)


def evaluations_of(config: Config, latents: tuple[int, ...]) -> int:
    """Counts the network's evaluations for one image; a guided evaluation counts as two."""
    sampler = config.evaluation.sampler
    return round(sampler.steps * EVALUATIONS_PER_STEP[sampler.method] * (1 + guided_part(config, latents)))


def estimate_sampling(config: Config, target: Target, request: Request) -> SampleEstimate:
    """Estimates what a batch of images takes on each of the target's devices.

    Raises `ConfigError` for a mesh or a batch that does not divide over the devices, for weights or an attention that
    cannot be used there, and for a sampler guided by a second network.
    """
    sizes = mesh_sizes(config.mesh, target.devices, target.shown_slices)
    mesh, model, sampler = AbstractMesh(tuple(sizes.values()), AXES), config.model, config.evaluation.sampler
    check_weights(request.weights, model)
    fsdp, tensor, ways = sizes[FSDP], sizes[TENSOR], batch_ways(sizes)
    if request.batch < 1 or request.batch % ways:
        shared = f"the {ways} devices ({' x '.join(BATCH_AXES)}) that share it"
        raise ConfigError(f"--batch is {request.batch}; it must be a multiple of {shared}")
    shapes = dataclasses.replace(plan_run(config).corpus.shapes, latents=request.latents)
    init = plan_run(config).backbone.init
    stored = stored_shapes(init, request.weights)
    weight_bytes = tree_bytes(stored, shardings(mesh, stored))
    share = guided_part(config, request.latents)
    halves = 2 if share else 1
    steps = sampler.steps * EVALUATIONS_PER_STEP[sampler.method]
    examples = request.batch // ways * halves  # of one evaluation on one device

    parts, whole = flops_by_part(model, shapes), forward_flops(model, shapes)
    unsplit = sum(parts.get(name, 0) for name in UNSPLIT)
    images = request.batch // ways * (1 + share)  # in an average evaluation
    flops = steps * images * ((whole - unsplit) / tensor + unsplit)

    width = 2 if config.train.compute_dtype == "bfloat16" else 4
    (count, length), *over_time = sequences = attended_sequences(model, shapes)
    tokens = count * length + OVER_TIME * sum(n * size for n, size in over_time)
    activation = examples * tokens * model.width * width
    in_memory = attention_of(config, target) == "xla"
    # Bytes, of each attention in a block.
    logits = [4 * examples * model.heads * n * size**2 / tensor if in_memory else 0 for n, size in sequences]
    kernels = sum(leaf.size for leaf in jax.tree.leaves(stored_shapes(init, "float32"))) * width / tensor
    converted = request.weights != config.train.compute_dtype or fsdp > 1
    layer = 2 * kernels / model.depth if converted else 0  # two layers: one in use, one read ahead
    conditions = 4 * examples * (math.prod(shapes.context) + shapes.pooled + 2 * math.prod(shapes.latents))
    peak = weight_bytes + conditions + max(layer, ALIVE * activation + LOGITS_ALIVE * max(logits))

    read = weight_bytes + (2 * kernels if converted else 0)  # a converted kernel is written and read again
    traffic = float(steps * (read + model.depth * (TRAFFIC * activation + LOGITS_TRAFFIC * sum(logits))))
    exchanges = []
    if fsdp > 1:
        exchanges.append(Collective("all-gather", int(kernels), fsdp, steps, "weights", stride=tensor))
    if tensor > 1:  # two for each block
        exchanges.append(Collective("all-reduce", int(activation), tensor, 2 * model.depth * steps, "activations"))
    evaluations, times = evaluations_of(config, request.latents), roofline(target, flops, traffic, exchanges)
    return SampleEstimate(
        sizes, evaluations, weight_bytes, int(max(logits)), int(peak), flops, traffic, tuple(exchanges), times
    )


def plan_sampling(
    point: str, config: Config, target: Target, request: Request, compiler: Compiler | None
) -> SamplePlan:
    """Plans the sampling of a point's images. Raises `ConfigError` as `estimate_sampling` does.

    With a `compiler` the sampler is compiled, and the memory is that of the compiled program; with None the memory is
    an estimate. The time is the roofline's either way.
    """
    estimated = estimate_sampling(config, target, request)
    budget, compiled = target.chip.device_bytes, None
    if compiler and estimated.weight_bytes <= budget:  # else the weights alone are too large to compile
        compiled = compile_sampler_for(config, target, dataclasses.asdict(request), compiler)
    peak = compiled.peak_bytes if compiled else estimated.peak_bytes
    fits = peak <= budget and (compiled is None or compiled.fits)
    params, attention = plan_run(config).parameter_count, attention_of(config, target)
    return SamplePlan(point, params, request, attention, estimated, compiled, fits, target.chips)


def describe_latents(latents: tuple[int, ...]) -> str:
    """Describes latents in words: their frames, if there are several, height and width, and the images' size in pixels
    if the autoencoder divides height and width by 8."""
    height, width = latents[-3:-1]
    return f"latents of {format_shape(latents)}, {8 * height}x{8 * width} pixels if the autoencoder divides by 8"
