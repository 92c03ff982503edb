"""Sampling for evaluation: makes latents for captions, from the same noise for every model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt32

from rfjax.config import Config, SamplerConfig
from rfjax.errors import ConfigError
from rfjax.evaluation.guide import Guide, guide_of
from rfjax.flow.formulation import Formulation
from rfjax.flow.matched import matched, velocity_of
from rfjax.flow.resolution import formulation_at
from rfjax.flow.samplers import autoguided_velocity, guided_velocity, integrate, integrate_with_length, sampling_levels
from rfjax.mesh_axes import BATCH_AXES
from rfjax.training.mesh import spread
from rfjax.training.processes import distributed, watch
from rfjax.training.run import Run


def noise_for(
    seed: int | UInt32[Array, ""], ids: Int[Array, "batch 2"], latent_shape: tuple[int, ...]
) -> Float[Array, "batch frames height width channels"]:
    """Returns standard normal noise for each row of `ids`. The noise of a row is a function of (seed, prompt index,
    sample), so it is the same for all models and batch sizes."""
    key = jax.random.key(seed, impl="threefry2x32")

    def one(pair):
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, pair[0]), pair[1]), latent_shape)

    return jax.vmap(one)(ids)


def compile_sampler(
    apply: Callable,
    sampler: SamplerConfig,
    latent_shape: tuple[int, ...],
    *,
    guide: Guide | None = None,
    batch_sharding: NamedSharding | None = None,
    path_length: bool = False,
) -> Callable:
    """Returns the program that samples one batch (`sampling_program`). It is compiled at its first call, when all
    processes wait for each other."""
    how = {"weaker": guide and guide.apply, "batch_sharding": batch_sharding, "path_length": path_length}
    program = sampling_program(apply, sampler, latent_shape, **how)
    return distributed.compiled_at_first_call("the sampler", program)


def sampling_program(
    apply: Callable,
    sampler: SamplerConfig,
    latent_shape: tuple[int, ...],
    *,
    weaker: Callable | None = None,
    batch_sharding: NamedSharding | None = None,
    path_length: bool = False,
) -> Callable:
    """Returns the jitted function that samples one batch by a backbone's `apply`, for any formulation.

    The function is `program(params, levels, at, seed, ids, conditions, negative)`. It returns latents [batch,
    *latent_shape] or, with `path_length`, (latents, the length of each latent's path). `levels` [steps + 1] and `at`,
    the formulation's coefficients at these levels, come from `sampler_rows`. `weaker` is the `apply` of a weaker
    network, for autoguidance. With `weaker`, `params` is a pair (the network's parameters, the weaker network's
    parameters), and `negative` is not used.
    """
    solve = integrate_with_length if path_length else integrate

    def make_batch(params, levels, at, seed, ids, conditions, negative):
        networks = ((apply, params),) if weaker is None else zip((apply, weaker), params, strict=True)
        velocities = [functools.partial(velocity_of, *network) for network in networks]
        negative = jax.tree.map(lambda row, each: jnp.broadcast_to(row, each.shape), negative, conditions)
        scale, interval = sampler.guidance_scale, (sampler.guidance_from, sampler.guidance_to)
        if weaker is None:
            field = guided_velocity(*velocities, scale, conditions, negative, interval)
        else:
            field = autoguided_velocity(*velocities, scale, conditions, interval)
        start = levels[0] * noise_for(seed, ids, latent_shape)
        return solve(field, start, levels, sampler.method, at)

    # Every process gets every image, because a process cannot read arrays of another.
    whole = None if batch_sharding is None else NamedSharding(batch_sharding.mesh, PartitionSpec())
    return jax.jit(make_batch, out_shardings=whole)


def sampler_rows(formulation: Formulation, sampler: SamplerConfig) -> tuple:
    """Computes the arguments `levels` and `at` of `sampling_program` from a formulation and a sampler, in float32."""
    levels = sampling_levels(formulation, sampler.steps, sampler.sigmas)
    return jax.tree.map(np.float32, (levels, matched(formulation, levels)))


def make_generator(
    apply: Callable,
    sampler: SamplerConfig,
    formulation: Formulation,
    latent_shape: tuple[int, ...],
    *,
    batch_size: int,
    guide: Guide | None = None,
    batch_sharding: NamedSharding | None = None,
    path_length: bool = False,
    program: Callable | None = None,
) -> Callable:
    """Returns `generate(params, seed, ids, conditions, negative=None, progress=None)`, which is compiled once and
    returns latents [n, *latent_shape].

    `apply` belongs to a backbone trained on the formulation; the sampler uses the formulation's timestep shift. `ids`
    [n, 2] are (prompt index, sample). The images are made in batches of `batch_size`, and the last batch is padded.
    `negative` has one row, used for every prompt; by default it is the null condition, zeros. With `path_length` the
    generator returns (latents, length of each latent's path). `progress(images done, n)` is called after each batch.
    `program` is the result of `compile_sampler` for the same arguments; formulations may share it. With a `guide`, a
    negative raises `ConfigError`, because it would have no effect.
    """
    program = program or compile_sampler(
        apply, sampler, latent_shape, guide=guide, batch_sharding=batch_sharding, path_length=path_length
    )
    rows = sampler_rows(formulation, sampler)

    def generate(params, seed, ids, conditions, negative=None, progress=None):
        ids = np.asarray(ids, np.int32)
        if guide is not None:
            if negative is not None:
                raise ConfigError("a negative prompt has no effect with config.evaluation.sampler.guide; leave one out")
            params = params, guide.params
        if negative is None:
            negative = jax.tree.map(lambda each: np.zeros((1, *each.shape[1:]), np.float32), conditions)
        parts = []
        for start in range(0, len(ids), batch_size):
            # Rows past the end repeat the last row, so that all batches have one shape.
            chosen = np.minimum(np.arange(start, start + batch_size), len(ids) - 1)
            batch = spread((ids[chosen], conditions.rows(chosen)), batch_sharding)
            made = program(params, *rows, np.uint32(seed), *batch, negative)
            kept = len(ids) - start
            parts.append(jax.tree.map(lambda array, kept=kept: np.asarray(array)[:kept], made))
            watch.beat()
            if progress is not None:
                progress(min(start + batch_size, len(ids)), len(ids))
        return jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts)

    return generate


def generator_of(
    run: Run,
    sampler: SamplerConfig,
    batch_size: int,
    *,
    latent_shape: tuple[int, ...] | None = None,
    path_length: bool = False,
    program: Callable | None = None,
) -> Callable:
    """Returns the generator (`make_generator`) of a run's network, with batches split over the run's mesh.

    The generator makes latents of `latent_shape`, by default the first of the corpus's own shapes.
    """
    latent_shape = latent_shape or run.corpus.shapes.latents
    return make_generator(
        run.backbone.apply,
        sampler,
        formulation_at(run.config, latent_shape),
        latent_shape,
        batch_size=batch_size,
        guide=guide_of(run, sampler),
        batch_sharding=run.batch_sharding,
        path_length=path_length,
        program=program,
    )


def check_batch_size(config: Config, evaluation: str, ways: int) -> None:
    """Raises `ConfigError` if the batches of an evaluation (a section of `config.evaluation`) cannot be split over
    `ways` devices."""
    size = getattr(config.evaluation, evaluation).batch_size
    if size % ways:
        raise ConfigError(
            f"config.evaluation.{evaluation}.batch_size={size} is not divisible by the {ways} devices "
            f"that a batch is split over ({' x '.join(BATCH_AXES)}); set it to a multiple of {ways}"
        )


def whole_batch(run: Run, images: int) -> int:
    """The smallest batch size that holds this number of images and can be split over the run's devices."""
    return -(-images // run.batch_ways) * run.batch_ways


def prompt_ids(prompts: int, images_per_prompt: int) -> Int[np.ndarray, "images 2"]:
    """Returns (prompt index, sample) of every image, prompt by prompt."""
    return np.indices((prompts, images_per_prompt)).reshape(2, -1).T


def other_prompts_of_task(prompts: Sequence[Mapping]) -> Int[np.ndarray, " prompts"]:
    """Returns for each prompt the index of the next prompt of its task that has another text. After the last prompt
    comes the first.

    Prompts may repeat. Raises `ConfigError` for a task whose prompts are all equal.
    """
    other = np.arange(len(prompts))
    for index, row in enumerate(prompts):
        following = (*range(index + 1, len(prompts)), *range(index))
        try:
            other[index] = next(
                i for i in following if prompts[i]["tag"] == row["tag"] and prompts[i]["prompt"] != row["prompt"]
            )
        except StopIteration:
            raise ConfigError(
                f"GenEval's task {row['tag']} has no prompt but {row['prompt']!r}, so its floor cannot be measured; "
                "raise config.evaluation.geneval.prompts_per_task"
            ) from None
    return other
