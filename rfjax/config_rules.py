"""The rules between a config's fields, and `check`, which tests a config against these rules and the tables of
`limits`. No JAX here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from fractions import Fraction
from operator import attrgetter

from rfjax.errors import ConfigError
from rfjax.limits import (
    BACKBONES,
    CHOICES,
    CLIP_CORPORA,
    POSITION_MULTIPLE,
    RANGES,
    SCORES,
    TRACKERS,
    WIDTH,
    Network,
    Rule,
    check_choice,
    format_number,
)
from rfjax.mesh_axes import INNER_AXES
from rfjax.weight_names import WIDTHS, are_widths

# (field, the field or number that must divide its value)
DIVISORS: tuple[tuple[str, str | int], ...] = (
    ("model.time_embedding_size", 2),
    (WIDTH, "model.head_size"),
    (WIDTH, POSITION_MULTIPLE),
    ("data.image_size", "model.patch_size"),
    ("train.batch_size", "train.accumulate"),
)

LEAST_UPDATES = 20  # of power-function averages in a run; with 20 updates, a width of 0.05 comes out as 0.048
_ALONE = "each of the runs trained together is whole on one device: set one of the two to 1"
_UNVALIDATED = "a score without its validation loss can be compared with nothing"


def parse_bucket(text: str) -> tuple[tuple[int, int, int], Fraction]:
    """Reads a bucket of `config.data.buckets`, such as 8x16x16@0.7 of clips or 16x16@0.3 of stills. Returns ((frames,
    height, width), share of the training examples). Raises `ConfigError` for other text."""
    shape, _, share = text.partition("@")
    try:
        sides = tuple(map(int, shape.split("x")))
        found = (1, *sides)[-3:], Fraction(share)
        if len(sides) not in (2, 3) or min(sides) < 1 or not 0 < found[1] <= 1:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        name = "config.data.buckets"
        wanted = "a bucket is FRAMESxHEIGHTxWIDTH@SHARE, such as 8x16x16@0.7, or HEIGHTxWIDTH@SHARE of stills"
        raise ConfigError(f"{name} has {text!r}; {wanted}, with a share above 0 and at most 1") from None
    return found


def _are_buckets(buckets: tuple[str, ...]) -> bool:
    asked = [parse_bucket(text) for text in buckets]
    shapes = {shape for shape, _ in asked}
    return not asked or (len(shapes) == len(asked) <= 32 and sum(share for _, share in asked) == 1)


RULES: tuple[Rule, ...] = (
    (
        ("data.buckets",),
        _are_buckets,
        "it lists at most 32 buckets, each shape once, and their shares add up to 1",
    ),
    (
        ("data.buckets", "data.corpus"),
        lambda buckets, corpus: not buckets or corpus in CLIP_CORPORA,
        f"only these corpora are drawn in the shapes asked for: {', '.join(CLIP_CORPORA)}; leave the buckets empty",
    ),
    (
        ("data.buckets", "data.frames"),
        lambda buckets, frames: not buckets or frames == 1,
        "buckets say their frames themselves; leave config.data.frames at 1",
    ),
    (
        ("evaluation.sampler.guide",),
        lambda guide: not guide or re.fullmatch(r".+@\d+", guide),
        "write a run's folder and the step of its checkpoint, as runs/small@2000, or leave it empty",
    ),
    (
        ("evaluation.sampler.guidance_from", "evaluation.sampler.guidance_to"),
        lambda low, high: low < high,
        "guidance is given for t from guidance_from to guidance_to: raise guidance_to, or set guidance_scale=1",
    ),
    (
        ("train.condition_dropout",),
        lambda share: share == -1 or 0 <= share <= 1,
        "it must be at least 0 and at most 1, or -1 for the paper's",
    ),
    (
        ("model.depth", WIDTH),
        lambda depth, width: depth * width**2 <= 10**14,
        "a network of these has more than 10^15 parameters, which no machine holds; lower one of the two",
    ),
    (
        ("train.trackers",),
        lambda names: len(set(names)) == len(names) and set(names) <= set(TRACKERS),
        f"it may list {', '.join(TRACKERS)}, each once, or nothing, as ()",
    ),
    (
        ("train.branches", "train.steps"),
        lambda lengths, steps: not lengths or [0, *lengths] == sorted({0, *lengths}) and lengths[-1] == steps,
        "branches are whole lengths that increase, and the last of them is config.train.steps, as 500,1000,2000; "
        "() trains one run alone",
    ),
    (
        ("train.branches", "train.schedule"),
        lambda lengths, schedule: not lengths or schedule == "wsd",
        "a branch is the run with the schedule wsd and its length: set config.train.schedule=wsd",
    ),
    (
        ("train.branches", "train.decay_fraction", "train.warmup"),
        lambda lengths, share, warmup: not lengths or lengths[0] - max(1, round(share * lengths[0])) >= max(1, warmup),
        "the shortest branch leaves the trunk before its warm-up ends: lengthen it, or lower config.train.warmup_steps",
    ),
    (
        ("model.parametrization", "model.base_width", WIDTH),
        lambda name, base, width: name == "standard" or 1 <= base <= width,
        "rates are relative to a base width: give one of at least 1 and at most the hidden size, such as that of the "
        "smallest network of the study",
    ),
    (
        ("model.parametrization", "model.base_depth", "model.depth"),
        lambda name, base, depth: name != "completep" or 1 <= base <= depth,
        "completep is relative to a base depth: give one of at least 1 and at most the depth",
    ),
    (
        ("model.parametrization", "model.base_width"),
        lambda name, base: name != "standard" or base == 0,
        "standard has no base width: leave it at 0, or use mup or completep",
    ),
    (
        ("model.parametrization", "model.balanced_width"),
        lambda name, width: name != "standard" or width == 256,
        "standard has no balanced width: leave it at 256, or use mup or completep",
    ),
    (
        ("model.parametrization", "model.base_depth"),
        lambda name, base: name == "completep" or base == 0,
        "only completep has a base depth: leave it at 0, or use completep",
    ),
    (
        ("train.role", "train.branches"),
        lambda role, lengths: role == "run" or not lengths,
        "a run of a sweep has no branches: set config.train.branches=()",
    ),
    (
        ("mesh.slices",),
        lambda slices: slices == -1 or slices >= 1,
        "give the number of slices that the devices are in, or -1 for as many as TPUs show",
    ),
    (("name",), str.strip, "it names the folder of the runs, so it must not be empty"),
    (
        ("model.mlp_ratio", WIDTH),
        lambda ratio, width: int(ratio * width) >= 1,
        "their product must be at least 1; raise one of them",
    ),
    (
        ("data.image_size", "model.patch_size", "model.position_grid", "model.positions"),
        lambda side, patch, grid, positions: side // patch <= grid or positions == "rotary",
        "an image has more tokens a side than the grid of positions; raise config.model.position_grid",
    ),
    (
        ("data.frames", "model.temporal_patch_size"),
        lambda frames, patch: frames == 1 or frames % patch == 0,
        "config.model.temporal_patch_size must divide config.data.frames; only a still, of 1 frame, fits every patch",
    ),
    (
        ("model.positions", "model.rotary_channels", "model.head_size"),
        lambda positions, channels, size: positions != "rotary" or are_rotary(channels, size),
        "rotary positions need three even numbers of channels, for time, height and width, that add up to the head's; "
        "() shares out an even head size of at least 6",
    ),
    (
        ("model.dual_attention_blocks", "model.depth"),
        lambda dual, depth: dual < depth,
        "config.model.dual_attention_blocks must be below config.model.depth: the last block has no dual attention",
    ),
    (
        ("model.weight_sets", "model.first_text_tokens", "data.context_tokens"),
        lambda sets, first, tokens: sets != 3 or 0 < first < tokens,
        "of 3 weight sets one is for the first text tokens: set config.model.first_text_tokens above 0 and below "
        "config.data.context_tokens",
    ),
    *(
        (("train.together", field), lambda together, value: together == 1 or value == 1, _ALONE)
        for field in ("train.accumulate", *(f"mesh.{axis}" for axis in INNER_AXES))
    ),
    (
        ("train.together", "train.diagnostics_every"),
        lambda together, every: together == 1 or every == 0,
        "diagnostics look into one run: set config.train.together=1, or config.train.diagnostics_every=0",
    ),
    (
        ("train.power_averages",),
        are_widths,
        f"it must list different widths {WIDTHS}, such as (0.05, 0.1)",
    ),
    (
        ("train.power_averages", "train.steps", "train.average_every"),
        lambda widths, steps, every: not widths or steps // every >= LEAST_UPDATES,
        f"with fewer than {LEAST_UPDATES} updates an average does not have its width: set config.train.ema_every so "
        f"that config.train.steps holds {LEAST_UPDATES}, or leave power_averages out",
    ),
    (
        ("train.power_averages", "train.branches", "train.departure", "train.average_every"),
        lambda widths, lengths, departure, every: (
            not widths or not lengths or min(lengths[0], departure) // every >= LEAST_UPDATES
        ),
        f"the trunk, which ends at the last departure, and the shortest branch need {LEAST_UPDATES} updates of the "
        "averages: lengthen it, lower config.train.ema_every, or leave power_averages out",
    ),
    *(
        ((field,), lambda weights: weights and set(weights) <= {"ema", "raw"}, "it must list ema, raw or both")
        for field in ("evaluation.weights", *(f"evaluation.{scores}.weights" for scores in SCORES))
    ),
    (
        ("evaluation.ranking.samplers",),
        lambda samplers: 0 < len(samplers) == len(set(map(sampler_setting, samplers))),
        "it must list at least one sampler, and each only once",
    ),
    *(
        (
            (f"evaluation.{scores}.prompts_per_task",),
            lambda prompts: prompts != 1,
            f"intervals are made by resampling a task's prompts: give 2 or more, or 0 for no {what}",
        )
        for scores, what in (("ranking", "ranking"), ("temporal", "temporal GenEval"))
    ),
    (
        ("evaluation.temporal.prompts_per_task", "data.corpus"),
        lambda prompts, corpus: not prompts or corpus in CLIP_CORPORA,
        f"temporal GenEval needs clips with prompts: set config.data.corpus={CLIP_CORPORA[0]}, or prompts_per_task=0",
    ),
    (
        ("evaluation.geneval.few_prompts_per_task", "evaluation.geneval.prompts_per_task"),
        lambda few, prompts: not few or not prompts or few < prompts,
        "few_prompts_per_task must be below prompts_per_task: lower it, or set it to 0, which turns it off",
    ),
    (
        ("evaluation.validation.examples",),
        lambda examples: examples != 1,
        "a standard error needs 2 examples or more; 0 turns validation off",
    ),
    *(
        (
            (f"evaluation.{scores}.prompts_per_task", "evaluation.validation.examples"),
            lambda prompts, examples: not prompts or examples,
            f"{_UNVALIDATED}: set config.evaluation.{scores}.prompts_per_task to 0, too",
        )
        for scores in SCORES
    ),
    *(
        (
            (f"evaluation.{scores}.weights", "evaluation.weights", f"evaluation.{scores}.prompts_per_task"),
            lambda scored, validated, prompts: not prompts or set(scored) <= set(validated),
            f"{_UNVALIDATED}: leave out the weights that are not validated",
        )
        for scores in SCORES
    ),
)


# Fields that only some schedules of the learning rate read, and those schedules.
READ_BY_SCHEDULES: dict[str, tuple[str, ...]] = {
    "train.decay_fraction": ("wsd",),
    "train.decay_shape": ("wsd",),
    "train.final_learning_rate_fraction": ("cosine", "wsd"),
}


def check_is_read(given: Iterable[str], schedules: Iterable[str]) -> None:
    """Raises `ConfigError` for a field that a user gave and that none of the learning-rate schedules `schedules` reads.
    `check` does not do this, because a value that was only inherited, such as the decay of a trunk, is not a
    mistake."""
    schedules = sorted(set(schedules))
    for field in sorted(set(given) & set(READ_BY_SCHEDULES)):
        readers = READ_BY_SCHEDULES[field]
        if not set(schedules) & set(readers):
            raise ConfigError(
                f"config.{field} is given, but config.train.schedule={' or '.join(schedules)} does not read it; leave "
                f"it out, or set config.train.schedule={' or '.join(readers)}"
            )


def sampler_setting(text: str) -> tuple[int, float]:
    """Reads a sampler of `config.evaluation.ranking.samplers`, such as 25@5, as (steps, guidance scale). Raises
    `ConfigError` for other text."""
    steps, _, guidance = text.partition("@")
    try:
        setting = int(steps), float(guidance)
        if setting[0] not in RANGES["evaluation.sampler.steps"] or not math.isfinite(setting[1]):
            raise ValueError
    except ValueError:
        name = "config.evaluation.ranking.samplers"
        raise ConfigError(f"{name} has {text!r}; a sampler is steps@guidance scale, such as 25@5") from None
    return setting


def are_rotary(channels: tuple[int, ...], head_size: int) -> bool:
    """Whether `channels` is a valid split of a head's channels over time, height and width; () is the default split."""
    if not channels:
        return head_size >= 6 and head_size % 2 == 0
    return len(channels) == 3 and sum(channels) == head_size and all(n > 0 and n % 2 == 0 for n in channels)


def check(config) -> None:
    """Raises `ConfigError` for the first field that breaks a limit or a rule, with its value and what it may be."""
    for field in CHOICES:
        check_choice(field, attrgetter(field)(config))
    for field, allowed in RANGES.items():
        value = attrgetter(field)(config)
        if value not in allowed:
            raise ConfigError(f"{_name(field)} is {format_number(value)}; it must be {allowed}")
    network = BACKBONES[config.model.backbone]
    _check_unread(config, network)
    for fields, holds, remedy in (*network.rules, *RULES):
        values = [attrgetter(field)(config) for field in fields]
        if not holds(*values):
            given = (f"{_name(field)} is {value}" for field, value in zip(fields, values, strict=True))
            raise ConfigError(f"{' and '.join(given)}; {remedy}")
    divisors = (*DIVISORS, (WIDTH, f"model.{network.width_divisor}")) if network.width_divisor else DIVISORS
    for field, divisor in divisors:
        value, by = attrgetter(field)(config), divisor if isinstance(divisor, int) else attrgetter(divisor)(config)
        if value % by:
            named = by if isinstance(divisor, int) else f"config.{divisor}={by}"
            raise ConfigError(f"{_name(field)} {value} is not divisible by {named}; change one of the two")


def _check_unread(config, network: Network) -> None:
    """Raises `ConfigError` for a field that differs from its default and that the network or the corpus does not
    read."""
    model, prepared = config.model, config.data.prepared
    if model.positions not in network.positions:
        able = " or ".join(name for name, other in BACKBONES.items() if model.positions in other.positions)
        given = f"config.model.positions is {model.positions}, which config.model.backbone={model.backbone}"
        raise ConfigError(f"{given} does not have; set it to {' or '.join(network.positions)}, or use {able}")
    for name, other in BACKBONES.items():
        for field in other.own_fields:
            value, default = getattr(model, field), getattr(type(model)(), field)
            if field not in network.own_fields and value != default:
                given = f"config.model.{field} is {value}, which config.model.backbone={model.backbone} does not have"
                raise ConfigError(f"{given}; leave it at {default}, or use the backbone {name}")
    for field in ("rotary_channels", "rotary_theta") if model.positions != "rotary" else ():
        value, default = getattr(model, field), getattr(type(model)(), field)
        if value != default:
            given = f"config.model.{field} is {value}, which config.model.positions={model.positions} does not read"
            raise ConfigError(f"{given}; leave it at {default}, or set the positions to rotary")
    world, own = config.data.world, type(config.data)().world
    if config.data.corpus != "motion" and world != own:
        given = f"config.data.world is {world}, which the corpus {config.data.corpus} does not read"
        raise ConfigError(f"{given}; leave it at {own}, or set config.data.corpus=motion")
    unused = [name for name, value in vars(prepared).items() if value != getattr(type(prepared)(), name)]
    if config.data.corpus != "prepared" and unused:
        given = f"config.data.prepared.{unused[0]} is {getattr(prepared, unused[0])!r}"
        remedy = "set config.data.corpus=prepared, or leave it out"
        raise ConfigError(f"{given}, which the corpus {config.data.corpus} does not read; {remedy}")


# How messages name values that are no fields, because several fields or the run's length may set them.
_NAMES = {
    WIDTH: "the hidden size (config.model.hidden, or of the depth)",
    "train.warmup": "the warm-up (config.train.warmup_steps, or of the steps)",
    "train.departure": "the last departure (of config.train.steps and decay_fraction)",
    "train.average_every": "the steps between updates of the averages (config.train.ema_every, or of the steps)",
}


def _name(field: str) -> str:
    """The name of a field in messages."""
    return _NAMES.get(field, f"config.{field}")
