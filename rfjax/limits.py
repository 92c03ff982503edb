"""What the fields of a config may be: tables of limits, and the rules between fields."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

from rfjax.errors import ConfigError

CHOICES: dict[str, tuple[str, ...]] = {
    "model.backbone": ("mmdit", "dit", "dit_class", "crossdit", "uvit"),
    "model.weight_sets": (2, 3),
    "model.positions": ("formula", "stored"),
    "data.corpus": ("shapes", "digits", "random", "prepared"),
    "train.schedule": ("constant", "cosine", "wsd"),
    "train.compute_dtype": ("float32", "bfloat16"),
    "train.matmul_precision": ("default", "high", "highest"),
    "train.remat": ("none", "full", "attention", "dots"),
    "train.attention": ("auto", "xla", "splash", "cudnn"),
    "evaluation.sampler.method": ("euler", "heun"),
    "evaluation.sampler.sigmas": ("uniform", "matched", "diffusers"),
    "evaluation.validation.grid": ("paper", "mlperf", "midpoints"),
}

# (field, smallest value allowed)
MINIMA: tuple[tuple[str, float], ...] = (
    ("seed", 0),
    ("model.position_grid", 1),
    ("model.position_tokens", 1),
    ("model.time_embedding_size", 2),
    ("data.context_tokens", 1),
    ("data.context_size", 1),
    ("data.pooled_size", 1),
    ("train.weight_decay", 0.0),
    ("evaluation.every", 0),
    ("evaluation.geneval_every", 0),
    ("evaluation.validation.seed", 0),
    ("evaluation.geneval.seed", 0),
    ("model.depth", 1),
    ("model.head_size", 1),
    ("model.patch_size", 1),
    ("model.dual_attention_blocks", 0),
    ("data.image_size", 1),
    ("data.channels", 1),
    ("train.steps", 1),
    ("train.batch_size", 1),
    ("train.accumulate", 1),
    ("train.together", 1),
    ("train.learning_rate", 0.0),
    ("train.warmup_steps", 0),
    ("train.clip_norm", 0.0),
    ("train.ema_every", 1),
    ("train.max_skipped_in_row", 1),
    ("train.log_every", 1),
    ("train.checkpoint_every", 1),
    ("train.keep_last", 1),
    ("train.keep_every", 0),
    ("train.stall_seconds", 0.0),
    ("evaluation.sampler.steps", 1),
    ("evaluation.validation.examples", 0),
    ("evaluation.validation.batch_size", 1),
    ("evaluation.validation.levels", 2),
    ("evaluation.geneval.prompts_per_task", 0),
    ("evaluation.geneval.images_per_prompt", 1),
    ("evaluation.geneval.batch_size", 1),
    ("evaluation.ranking.seed", 0),
    ("evaluation.ranking.prompts_per_task", 0),
    ("evaluation.ranking.images_per_prompt", 1),
    ("evaluation.ranking.batch_size", 1),
)

OPEN_RANGES: tuple[tuple[str, float, float], ...] = (
    ("timestep_shift", 0, math.inf),
    ("model.mlp_ratio", 0, math.inf),
    ("model.position_span", 0, math.inf),
    ("train.eps", 0, math.inf),
)
UNIT_RANGES = (
    "train.condition_dropout",
    "train.decay_fraction",
    "train.final_learning_rate_fraction",
    "data.prepared.synthetic_captions",
)
HALF_OPEN_RANGES = ("train.ema_decay", "train.b1", "train.b2")
SEEDS = ("seed", "evaluation.validation.seed", "evaluation.geneval.seed", "evaluation.ranking.seed")

# (field, the value that leaves it unset, the backbones that have it): the others would not read it
BACKBONES_OWN: tuple[tuple[str, object, tuple[str, ...]], ...] = (
    ("model.weight_sets", 2, ("mmdit",)),
    ("model.dual_attention_blocks", 0, ("mmdit",)),
    ("model.first_text_tokens", 77, ("mmdit",)),
    ("model.positions", "formula", ("mmdit",)),
)


def sampler_setting(text: str) -> tuple[int, float]:
    """(steps, guidance scale) of one of `config.evaluation.ranking.samplers`, such as 25@5.

    Raises `ConfigError` for text that is none.
    """
    steps, _, guidance = text.partition("@")
    try:
        setting = int(steps), float(guidance)
        if setting[0] < 1 or not math.isfinite(setting[1]):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"config.evaluation.ranking.samplers has {text!r}; a sampler is steps@guidance scale, as 25@5"
        ) from None
    return setting


def check_latents(model, latents) -> None:
    """Raises `ConfigError` for latents of (height, width, channels) that the network cannot take."""
    height, width, _ = latents
    for name, side in (("height", height), ("width", width)):
        if side % model.patch_size:
            raise ConfigError(
                f"latents of {height}x{width}: the {name} {side} is not divisible by "
                f"config.model.patch_size={model.patch_size}"
            )
        if side // model.patch_size > model.position_grid:
            raise ConfigError(
                f"latents of {height}x{width} have {side // model.patch_size} tokens along the {name}, more than "
                f"config.model.position_grid={model.position_grid}; raise that to {side // model.patch_size} or more"
            )


def check(config, flat: Mapping[str, object]) -> None:
    """Raises `ConfigError` naming the first field out of its limits; `flat` is `config` by dotted key."""
    for key, allowed in CHOICES.items():
        if flat[key] not in allowed:
            near = difflib.get_close_matches(str(flat[key]), [str(a) for a in allowed], 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"config.{key} is {flat[key]!r}; it must be one of {', '.join(map(str, allowed))}{hint}")
    for key, minimum in MINIMA:
        if flat[key] < minimum:
            raise ConfigError(f"config.{key} is {flat[key]}; it must be at least {minimum}")
    model, data, train = config.model, config.data, config.train
    if model.width < 1 or int(model.mlp_ratio * model.width) < 1:
        raise ConfigError(
            f"the hidden size is {model.width} and config.model.mlp_ratio {model.mlp_ratio}; the hidden size and "
            "their product must be at least 1"
        )
    if model.time_embedding_size % 2:
        raise ConfigError(f"config.model.time_embedding_size is {model.time_embedding_size}; it must be even")
    for key, low, high in OPEN_RANGES:
        if not low < flat[key] < high:
            raise ConfigError(f"config.{key} is {flat[key]}; it must lie between {low:g} and {high:g}")
    for key in UNIT_RANGES:
        if not 0 <= flat[key] <= 1:
            raise ConfigError(f"config.{key} is {flat[key]}; it must lie in [0, 1]")
    for key in HALF_OPEN_RANGES:
        if not 0 <= flat[key] < 1:
            raise ConfigError(f"config.{key} is {flat[key]}; it must lie in [0, 1)")
    for key in SEEDS:  # the generator's keys are made of 32 bits: two larger seeds could be one
        if flat[key] >= 2**32:
            raise ConfigError(f"config.{key} is {flat[key]}; it must be below 2^32")
    if model.width % model.head_size:
        raise ConfigError(
            f"the hidden size {model.width} (config.model.depth={model.depth}) is not divisible by "
            f"config.model.head_size={model.head_size}; choose a head size that divides it"
        )
    if model.width % 4:
        raise ConfigError(
            f"the hidden size {model.width} is not divisible by 4, which the 2-D position embedding needs"
        )
    for key, unset, backbones in BACKBONES_OWN:
        if model.backbone not in backbones and flat[key] != unset:
            raise ConfigError(
                f"config.{key} is {flat[key]}, which config.model.backbone={model.backbone} does not have; leave it at "
                f"{unset}, or use the backbone {' or '.join(backbones)}"
            )
    if model.backbone == "uvit" and (model.patch_size < 2 or model.patch_size & (model.patch_size - 1)):
        raise ConfigError(
            f"config.model.patch_size is {model.patch_size}; config.model.backbone=uvit halves the resolution level by "
            "level down to it, so it must be a power of two, at least 2"
        )
    if model.backbone == "uvit" and model.width % model.patch_size:
        raise ConfigError(
            f"the hidden size {model.width} is not divisible by config.model.patch_size={model.patch_size}, which "
            "config.model.backbone=uvit needs: its channels halve with each level"
        )
    if data.image_size % model.patch_size:
        raise ConfigError(
            f"config.data.image_size={data.image_size} is not divisible by config.model.patch_size={model.patch_size}"
        )
    if data.image_size // model.patch_size > model.position_grid:
        raise ConfigError(
            f"an image has {data.image_size // model.patch_size} tokens a side, more than "
            f"config.model.position_grid={model.position_grid}"
        )
    if model.dual_attention_blocks >= model.depth:
        raise ConfigError(
            f"config.model.dual_attention_blocks={model.dual_attention_blocks} must be below "
            f"config.model.depth={model.depth}: the last block has none"
        )
    if model.weight_sets == 3 and not 0 < model.first_text_tokens < data.context_tokens:
        raise ConfigError(
            f"config.model.first_text_tokens={model.first_text_tokens} must lie inside the "
            f"{data.context_tokens} context tokens when config.model.weight_sets=3"
        )
    unused = [
        key for key, value in flat.items() if key.startswith("data.prepared.") and value not in ("", None, 0.0, [])
    ]
    if data.corpus != "prepared" and unused:
        raise ConfigError(
            f"config.{unused[0]} is {flat[unused[0]]!r}, which the corpus {data.corpus} does not read; set "
            "config.data.corpus=prepared, or leave it out"
        )
    if train.batch_size % train.accumulate:
        raise ConfigError(
            f"config.train.batch_size={train.batch_size} is not divisible by config.train.accumulate={train.accumulate}"
        )
    alone = {"train.accumulate": train.accumulate, "mesh.fsdp": config.mesh.fsdp, "mesh.tensor": config.mesh.tensor}
    for key, value in alone.items():
        if train.together > 1 and value != 1:
            raise ConfigError(
                f"config.{key} is {value} and config.train.together {train.together}; runs that are trained "
                "together are "
                "whole on one device each: set one of the two to 1"
            )
    for key in ("evaluation.weights", "evaluation.geneval.weights", "evaluation.ranking.weights"):
        if not flat[key] or set(flat[key]) - {"ema", "raw"}:
            raise ConfigError(f"config.{key} is {tuple(flat[key])}; it must list ema, raw or both")
    samplers = config.evaluation.ranking.samplers
    if not samplers or len(set(map(sampler_setting, samplers))) < len(samplers):
        raise ConfigError(f"config.evaluation.ranking.samplers is {samplers}; it must name one or more, each once")
    if config.evaluation.ranking.prompts_per_task == 1:
        raise ConfigError(
            "config.evaluation.ranking.prompts_per_task is 1; intervals are made by resampling the prompts of a "
            "task, so "
            "give 2 or more, or 0 for no ranking"
        )
    examples = config.evaluation.validation.examples
    if examples == 1:
        raise ConfigError(
            "config.evaluation.validation.examples is 1; a standard error needs 2 or more, and 0 turns the "
            "evaluation off"
        )
    for name in ("geneval", "ranking"):
        scored = getattr(config.evaluation, name)
        if scored.prompts_per_task and not examples:
            raise ConfigError(
                f"config.evaluation.validation.examples is 0 and config.evaluation.{name}.prompts_per_task "
                f"{scored.prompts_per_task}: "
                "a score without its validation loss can be compared with nothing; set the latter to 0, too"
            )
        unvalidated = set(scored.weights) - set(config.evaluation.weights)
        if scored.prompts_per_task and unvalidated:
            raise ConfigError(
                f"config.evaluation.{name}.weights lists {', '.join(unvalidated)}, which config.evaluation.weights "
                "does not: "
                "a score without its validation loss can be compared with nothing"
            )
