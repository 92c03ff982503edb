"""What the fields of a config may be: names, ranges, and the rules between fields. Tables, read by `check`.

This is a module of names: it imports neither JAX nor what the names stand for. A name that a table beside the code
implements (a schedule, a sampler) stands here a second time, and tests/test_limits.py holds the two equal.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from rfjax.errors import ConfigError

# (fields, what their values must satisfy, what is then said behind the fields and their values)
Rule = tuple[tuple[str, ...], Callable[..., object], str]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A kind of network that a config may name."""

    path: str  # of its class, which has its FLOPs too; imported when a network is made or counted
    own_fields: tuple[str, ...] = ()  # of `config.model`: the others do not read them
    width_divisor: str | None = None  # the field of `config.model` that must divide the hidden size
    rules: tuple[Rule, ...] = ()


_WIDTH = "model.width"  # the hidden size: given, or of the depth
POSITION_MULTIPLE = 4  # that the 2-D position embedding needs of it

BACKBONES: dict[str, Network] = {
    "mmdit": Network(
        path="rfjax.models.mmdit:MMDiT",
        own_fields=("weight_sets", "dual_attention_blocks", "first_text_tokens", "positions"),
    ),
    "dit": Network(path="rfjax.models.dit:DiT"),
    "dit_class": Network(path="rfjax.models.dit:ClassDiT"),
    "crossdit": Network(path="rfjax.models.crossdit:CrossDiT"),
    "uvit": Network(
        path="rfjax.models.uvit:UViT",
        width_divisor="patch_size",  # its channels halve with each level
        rules=(
            (
                ("model.patch_size",),
                lambda patch: patch >= 2 and patch & (patch - 1) == 0,
                "config.model.backbone=uvit halves the resolution level by level down to it, so it must be a power "
                "of two, at least 2",
            ),
        ),
    ),
}

CHOICES: dict[str, tuple[str | int, ...]] = {
    "model.backbone": tuple(BACKBONES),
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


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; an open end is not among them."""

    low: float | int
    high: float | int = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float | int) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low}"
        high = f" and {'below' if self.open_high else 'at most'} {self.high}"
        return low if self.high == math.inf else low + high


POSITIVE = Range(0, open_low=True)
SHARE = Range(0, 1)
DECAY = Range(0, 1, open_high=True)
SEED = Range(0, 2**32, open_high=True)  # the generator's keys are made of 32 bits: two larger seeds could be one

RANGES: dict[str, Range] = {
    "seed": SEED,
    "timestep_shift": POSITIVE,
    _WIDTH: Range(1),
    "model.depth": Range(1),
    "model.head_size": Range(1),
    "model.mlp_ratio": POSITIVE,
    "model.patch_size": Range(1),
    "model.dual_attention_blocks": Range(0),
    "model.time_embedding_size": Range(2),
    "model.position_grid": Range(1),
    "model.position_tokens": Range(1),
    "model.position_span": POSITIVE,
    "data.image_size": Range(1),
    "data.channels": Range(1),
    "data.context_tokens": Range(1),
    "data.context_size": Range(1),
    "data.pooled_size": Range(1),
    "data.prepared.synthetic_captions": SHARE,
    "train.steps": Range(1),
    "train.batch_size": Range(1),
    "train.accumulate": Range(1),
    "train.together": Range(1),
    "train.learning_rate": Range(0),
    "train.warmup_steps": Range(0),
    "train.decay_fraction": SHARE,
    "train.final_learning_rate_fraction": SHARE,
    "train.b1": DECAY,
    "train.b2": DECAY,
    "train.eps": POSITIVE,
    "train.weight_decay": Range(0),
    "train.clip_norm": Range(0),
    "train.ema_decay": DECAY,
    "train.ema_every": Range(1),
    "train.condition_dropout": SHARE,
    "train.max_skipped_in_row": Range(1),
    "train.log_every": Range(1),
    "train.checkpoint_every": Range(1),
    "train.keep_last": Range(1),
    "train.stall_seconds": Range(0),
    "train.keep_every": Range(0),
    "evaluation.every": Range(0),
    "evaluation.geneval_every": Range(0),
    "evaluation.sampler.steps": Range(1),
    "evaluation.validation.examples": Range(0),
    "evaluation.validation.batch_size": Range(1),
    "evaluation.validation.levels": Range(2),
    "evaluation.validation.seed": SEED,
    "evaluation.geneval.prompts_per_task": Range(0),
    "evaluation.geneval.images_per_prompt": Range(1),
    "evaluation.geneval.batch_size": Range(1),
    "evaluation.geneval.seed": SEED,
    "evaluation.ranking.prompts_per_task": Range(0),
    "evaluation.ranking.images_per_prompt": Range(1),
    "evaluation.ranking.batch_size": Range(1),
    "evaluation.ranking.seed": SEED,
}

# (field, the field or number that must divide its value)
DIVISORS: tuple[tuple[str, str | int], ...] = (
    ("model.time_embedding_size", 2),
    (_WIDTH, "model.head_size"),
    (_WIDTH, POSITION_MULTIPLE),
    ("data.image_size", "model.patch_size"),
    ("train.batch_size", "train.accumulate"),
)

_ALONE = "runs that are trained together are whole on one device each: set one of the two to 1"
_UNVALIDATED = "a score without its validation loss can be compared with nothing"

RULES: tuple[Rule, ...] = (
    (("model.mlp_ratio", _WIDTH), lambda ratio, width: int(ratio * width) >= 1, "their product must be at least 1"),
    (
        ("data.image_size", "model.patch_size", "model.position_grid"),
        lambda side, patch, grid: side // patch <= grid,
        "an image has more tokens a side than the grid of positions; raise that",
    ),
    (
        ("model.dual_attention_blocks", "model.depth"),
        lambda dual, depth: dual < depth,
        "the former must be below the latter: the last block has no dual attention",
    ),
    (
        ("model.weight_sets", "model.first_text_tokens", "data.context_tokens"),
        lambda sets, first, tokens: sets != 3 or 0 < first < tokens,
        "of 3 weight sets the first is that of the first text tokens, which must be some of the context's, not all",
    ),
    *(
        (("train.together", field), lambda together, value: together == 1 or value == 1, _ALONE)
        for field in ("train.accumulate", "mesh.fsdp", "mesh.tensor")
    ),
    *(
        ((field,), lambda weights: weights and set(weights) <= {"ema", "raw"}, "it must list ema, raw or both")
        for field in ("evaluation.weights", "evaluation.geneval.weights", "evaluation.ranking.weights")
    ),
    (
        ("evaluation.ranking.samplers",),
        lambda samplers: 0 < len(samplers) == len(set(map(sampler_setting, samplers))),
        "it must name one or more, each once",
    ),
    (
        ("evaluation.ranking.prompts_per_task",),
        lambda prompts: prompts != 1,
        "intervals are made by resampling the prompts of a task, so give 2 or more, or 0 for no ranking",
    ),
    (
        ("evaluation.validation.examples",),
        lambda examples: examples != 1,
        "a standard error needs 2 or more, and 0 turns the evaluation off",
    ),
    *(
        (
            (f"evaluation.{scores}.prompts_per_task", "evaluation.validation.examples"),
            lambda prompts, examples: not prompts or examples,
            f"{_UNVALIDATED}: set the former to 0, too",
        )
        for scores in ("geneval", "ranking")
    ),
    *(
        (
            (f"evaluation.{scores}.weights", "evaluation.weights", f"evaluation.{scores}.prompts_per_task"),
            lambda scored, validated, prompts: not prompts or set(scored) <= set(validated),
            f"{_UNVALIDATED}: leave out the weights that are not validated",
        )
        for scores in ("geneval", "ranking")
    ),
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


def check_choice(field: str, value: str | int) -> None:
    """Raises `ConfigError` for a value that is none of the field's choices, with the nearest."""
    allowed = CHOICES[field]
    if value not in allowed:
        near = difflib.get_close_matches(str(value), [str(a) for a in allowed], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"config.{field} is {value!r}; it must be one of {', '.join(map(str, allowed))}{hint}")


def check(config) -> None:
    """Raises `ConfigError` naming the first field out of its limits, its value, and what it may be."""
    for field in CHOICES:
        check_choice(field, attrgetter(field)(config))
    for field, allowed in RANGES.items():
        value = attrgetter(field)(config)
        if value not in allowed:
            raise ConfigError(f"{_name(field)} is {value}; it must be {allowed}")
    network = BACKBONES[config.model.backbone]
    _check_unread(config, network)
    for fields, holds, remedy in (*network.rules, *RULES):
        values = [attrgetter(field)(config) for field in fields]
        if not holds(*values):
            given = (f"{_name(field)} is {value}" for field, value in zip(fields, values, strict=True))
            raise ConfigError(f"{' and '.join(given)}; {remedy}")
    of_the_network = ((_WIDTH, f"model.{network.width_divisor}"),) if network.width_divisor else ()
    for field, divisor in (*DIVISORS, *of_the_network):
        value, by = attrgetter(field)(config), divisor if isinstance(divisor, int) else attrgetter(divisor)(config)
        if value % by:
            named = by if isinstance(divisor, int) else f"config.{divisor}={by}"
            raise ConfigError(
                f"{_name(field)} {value} is not divisible by {named}, as it must be; change one of the two"
            )


def _check_unread(config, network: Network) -> None:
    """Refuses a field that was set and that the network, or the corpus, does not read."""
    model, prepared = config.model, config.data.prepared
    for name, other in BACKBONES.items():
        for field in other.own_fields:
            value, default = getattr(model, field), getattr(type(model)(), field)
            if field not in network.own_fields and value != default:
                raise ConfigError(
                    f"config.model.{field} is {value}, which config.model.backbone={model.backbone} does not have; "
                    f"leave it at {default}, or use the backbone {name}"
                )
    unused = [name for name, value in vars(prepared).items() if value != getattr(type(prepared)(), name)]
    if config.data.corpus != "prepared" and unused:
        raise ConfigError(
            f"config.data.prepared.{unused[0]} is {getattr(prepared, unused[0])!r}, which the corpus "
            f"{config.data.corpus} does not read; set config.data.corpus=prepared, or leave it out"
        )


def _name(field: str) -> str:
    """What a message calls a field. The hidden size may follow from the depth, and is then no field."""
    return "the hidden size (config.model.hidden, or of the depth)" if field == _WIDTH else f"config.{field}"
