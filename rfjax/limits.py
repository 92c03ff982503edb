"""What the fields of a config may be: names, ranges, and the rules between fields. Tables, read by `check`.

No JAX here, and no import of the things that the names stand for. So the names of schedules, samplers and other tables
stand here a second time, and tests/test_limits.py holds the two equal.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from rfjax.errors import ConfigError

# (fields, the condition on their values, the remedy: a refusal gives the fields, their values and the remedy)
Rule = tuple[tuple[str, ...], Callable[..., object], str]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A kind of network that a config may name."""

    path: str  # of its class, which also counts its FLOPs; imported when a network is made or counted
    own_fields: tuple[str, ...] = ()  # fields of `config.model` that not every network reads
    positions: tuple[str, ...] = ("formula", "rotary")  # its values of `model.positions`
    text_in_sequence: bool = True  # text tokens stand in the sequence, beside the image's
    takes_frames: bool = True  # several frames; a network of single images refuses them
    width_divisor: str | None = None  # the field of `config.model` that must divide the hidden size
    rules: tuple[Rule, ...] = ()


# What a run is to a study, and why no law, correlation or ranking takes it: "" where they do.
ROLES: dict[str, str] = {
    "run": "",
    "branch": "",
    "trunk": "its learning rate never falls: its branches are the points",
    "sweep": "it was trained to find a learning rate",
    "tuned": "it was tuned after pretraining",
}

SCORES = ("geneval", "ranking", "temporal")  # sections of `config.evaluation` that sample prompts
CLIP_CORPORA = ("motion",)  # they have prompts that say what happens in a clip

_WIDTH = "model.width"  # the hidden size: given, or set by the depth
_OF_TOKENS = ("temporal_patch_size", "rotary_channels", "rotary_theta")  # of networks whose layers see tokens alone
POSITION_MULTIPLE = 4  # the 2-D position embedding needs a hidden size that is a multiple of it

BACKBONES: dict[str, Network] = {
    "mmdit": Network(
        path="rfjax.models.mmdit:MMDiT",
        own_fields=("weight_sets", "dual_attention_blocks", "first_text_tokens", "temporal_attention", *_OF_TOKENS),
        positions=("formula", "stored", "rotary"),
    ),
    "dit": Network(path="rfjax.models.dit:DiT", own_fields=_OF_TOKENS),
    "dit_class": Network(path="rfjax.models.dit:ClassDiT", own_fields=_OF_TOKENS, text_in_sequence=False),
    "crossdit": Network(path="rfjax.models.crossdit:CrossDiT", own_fields=_OF_TOKENS, text_in_sequence=False),
    "uvit": Network(
        path="rfjax.models.uvit:UViT",
        positions=("formula",),
        takes_frames=False,  # it convolves over height and width
        width_divisor="patch_size",  # its channels halve with each level
        rules=(
            (
                ("model.patch_size",),
                lambda patch: patch >= 2 and patch & (patch - 1) == 0,
                "config.model.backbone=uvit halves the resolution level by level: give a power of two, at least 2",
            ),
        ),
    ),
}

CHOICES: dict[str, tuple[str | int, ...]] = {
    "model.backbone": tuple(BACKBONES),
    "model.weight_sets": (2, 3),
    "model.positions": ("formula", "stored", "rotary"),
    "model.temporal_attention": ("joint", "factorised"),
    "model.parametrization": ("standard", "mup", "completep"),
    "data.corpus": ("shapes", "digits", "random", "motion", "prepared"),
    "data.world": ("first", "full"),
    "train.schedule": ("constant", "cosine", "wsd"),
    "train.optimizer": ("adamw", "muon"),
    "train.role": ("run", "sweep"),
    "train.decay_shape": ("linear", "1-sqrt", "cosine"),
    "train.compute_dtype": ("float32", "bfloat16"),
    "train.matmul_precision": ("default", "high", "highest"),
    "train.remat": ("none", "full", "attention", "dots"),
    "train.attention": ("auto", "xla", "splash", "cudnn", "xla_blocks"),
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


SHARE = Range(0, 1)
DECAY = Range(0, 1, open_high=True)
SEED = Range(0, 2**32, open_high=True)  # keys are made of 32 bits: two larger seeds could give the same key

# Steps are counted in 32 bits. The other upper ends are far beyond what machines hold: a number above one is a slip.
COUNT_END = 2**31 - 1
SIDE_END, FEATURES_END, BATCH_END = 2**16, 2**24, 2**24

# (section of the config, what its fields may be, the fields)
_RANGES: tuple[tuple[str, Range, str], ...] = (
    ("model", Range(0, 10_000), "dual_attention_blocks"),
    ("model", Range(1, 10_000), "depth"),
    ("model", Range(1, FEATURES_END), "width head_size position_tokens"),
    ("model", Range(1, SIDE_END), "patch_size temporal_patch_size position_grid"),
    ("model", Range(0, FEATURES_END), "base_width base_depth"),
    ("model", Range(1, FEATURES_END), "balanced_width"),
    ("model", Range(1, 1e12, open_low=True), "rotary_theta"),
    ("model", Range(2, FEATURES_END), "time_embedding_size"),
    ("model", Range(0, 1e4, open_low=True), "mlp_ratio"),
    ("model", Range(0, 1e6, open_low=True), "position_span"),
    ("data", Range(1, SIDE_END), "frames image_size channels"),
    ("data", Range(1, FEATURES_END), "context_tokens context_size pooled_size"),
    ("data.prepared", SHARE, "synthetic_captions"),
    ("train", Range(0, 1e6), "learning_rate weight_decay"),
    ("train", Range(0, 1e12), "clip_norm"),
    ("train", Range(0, 1e9), "stall_seconds"),
    ("train", Range(0, COUNT_END), "keep_every ema_every diagnostics_every"),
    ("train", Range(1, COUNT_END), "steps log_every checkpoint_every max_skipped_in_row keep_last"),
    ("train", Range(1, BATCH_END), "batch_size accumulate together"),
    ("train", Range(-1, COUNT_END), "warmup_steps"),  # -1, here and below: by the run's length or by the corpus
    ("train", Range(0, 1, open_low=True), "eps"),
    ("train", SHARE, "decay_fraction final_learning_rate_fraction"),
    ("train", DECAY, "b1 b2 ema_decay"),
    ("evaluation", Range(0, COUNT_END), "every geneval_every"),
    ("evaluation.sampler", Range(1, 10**6), "steps"),
    ("evaluation.sampler", SHARE, "guidance_from guidance_to"),
    ("evaluation.validation", Range(0, 10**8), "examples"),
    ("evaluation.validation", Range(1, BATCH_END), "batch_size"),
    ("evaluation.validation", Range(2, 10**5), "levels"),
    ("evaluation.validation", SEED, "seed"),
    *((f"evaluation.{scores}", Range(0, 10**6), "prompts_per_task") for scores in SCORES),
    ("evaluation.geneval", Range(0, 10**6), "few_prompts_per_task"),
    ("evaluation.temporal", Range(0, COUNT_END), "every"),
    ("evaluation.temporal", Range(1, 10**6), "clips_per_prompt"),
    *((f"evaluation.{scores}", Range(1, 10**6), "images_per_prompt") for scores in ("geneval", "ranking")),
    *((f"evaluation.{scores}", Range(1, BATCH_END), "batch_size") for scores in SCORES),
    *((f"evaluation.{scores}", SEED, "seed") for scores in SCORES),
)
RANGES: dict[str, Range] = {
    "seed": SEED,
    "timestep_shift": Range(0, 1e6, open_low=True),
    "timestep_shift_frames": SHARE,
    **{f"{section}.{field}": allowed for section, allowed, fields in _RANGES for field in fields.split()},
}

# The largest value of each numeric option of the command line, by its name or by VERB.NAME. The verbs check the low
# ends; here, as above, a larger number is a slip.
OPTION_ENDS: dict[str, float | int] = {
    "batch": BATCH_END,
    "batch_size": BATCH_END,
    "beams": 1000,
    "between": 1,
    "budget": 1e60,  # FLOPs
    "captions": 1000,
    "clusters": 10**7,
    "corrupt_limit": 1,
    "counting_threshold": 1,
    "delta": 1e6,
    "drop_largest_losses": 10**9,
    "fixed_images": 1e18,
    "flops_per_param_image": 1e12,
    "gpus_per_node": 1024,
    "grace": 10**6,  # seconds
    "images_per_prompt": 10**6,
    "inspect.samples": 1000,  # all in one picture
    "lost_after": 10**6,  # seconds
    "max_loss": 1e30,
    "max_objects": 10**6,
    "max_overlap": 1,
    "max_restarts": 10**6,
    "max_shard_gb": 10**6,
    "max_tokens": FEATURES_END,
    "model_size": SIDE_END,
    "nodes": 10**6,
    "position_threshold": 1e6,
    "price": 1e9,
    "probes": 10**7,
    "process_id": 10**6,
    "processes": 10**6,
    "resamples": 10**5,
    "sample.samples": 10**5,  # of each prompt
    "seed": 2**32 - 1,
    "seeds": 100,
    "shard_size": 10**7,
    "size": SIDE_END,
    "skip_batches": COUNT_END,
    "step": COUNT_END,
    "steps": 10**6,
    "t5_tokens": 4096,  # attention over a caption takes memory by the square
    "target": 1e60,  # FLOPs
    "temperature": 1e6,
    "threads": 4096,
    "threshold": 1,
    "tokens_per_image": 10**9,
    "validation_share": 1,
    "within": 1,
}


def check_option(verb: str, name: str, value: float | int) -> None:
    """Raises `ConfigError` for the value of an option, such as `batch_size`, above its end, and for one that is not a
    number. Raises KeyError for an option without an end."""
    end = OPTION_ENDS.get(f"{verb}.{name}")
    end = OPTION_ENDS[name] if end is None else end
    if not value <= end:
        option = f"--{name.replace('_', '-')}"
        raise ConfigError(f"{option} is {_shown(value)}; it must be at most {end:,}")


# (field, the field or number that must divide its value)
DIVISORS: tuple[tuple[str, str | int], ...] = (
    ("model.time_embedding_size", 2),
    (_WIDTH, "model.head_size"),
    (_WIDTH, POSITION_MULTIPLE),
    ("data.image_size", "model.patch_size"),
    ("train.batch_size", "train.accumulate"),
)

_ALONE = "each of the runs trained together is whole on one device: set one of the two to 1"
_UNVALIDATED = "a score without its validation loss can be compared with nothing"

RULES: tuple[Rule, ...] = (
    (
        ("evaluation.sampler.guidance_from", "evaluation.sampler.guidance_to"),
        lambda low, high: low < high,
        "guidance is for t from the first to the second: give a larger end, or a guidance_scale of 1 for none",
    ),
    (
        ("train.condition_dropout",),
        lambda share: share == -1 or 0 <= share <= 1,
        "it must be at least 0 and at most 1, or -1 for the paper's",
    ),
    (
        ("model.depth", _WIDTH),
        lambda depth, width: depth * width**2 <= 10**14,
        "a network of these has more than 10^15 parameters, which no machine holds; lower one of the two",
    ),
    (
        ("train.branches", "train.steps"),
        lambda lengths, steps: not lengths or [0, *lengths] == sorted({0, *lengths}) and lengths[-1] == steps,
        "branches are whole lengths that increase, and the last of them is config.train.steps, as 500,1000,2000; "
        "() is a run alone",
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
        ("model.parametrization", "model.base_width", _WIDTH),
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
        "a run of a sweep is a run alone: set config.train.branches=()",
    ),
    (("name",), str.strip, "it names the folder of runs and cannot be empty"),
    (("model.mlp_ratio", _WIDTH), lambda ratio, width: int(ratio * width) >= 1, "their product must be at least 1"),
    (
        ("data.image_size", "model.patch_size", "model.position_grid", "model.positions"),
        lambda side, patch, grid, positions: side // patch <= grid or positions == "rotary",
        "an image has more tokens a side than the grid of positions; raise the grid",
    ),
    (
        ("data.frames", "model.temporal_patch_size"),
        lambda frames, patch: frames == 1 or frames % patch == 0,
        "the latter must divide the former; only a still, of 1 frame, fits every patch",
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
        "the former must be below the latter: the last block has no dual attention",
    ),
    (
        ("model.weight_sets", "model.first_text_tokens", "data.context_tokens"),
        lambda sets, first, tokens: sets != 3 or 0 < first < tokens,
        "of 3 weight sets one is for the first text tokens: give it some tokens of the context, and not all",
    ),
    *(
        (("train.together", field), lambda together, value: together == 1 or value == 1, _ALONE)
        for field in ("train.accumulate", "mesh.fsdp", "mesh.tensor")
    ),
    (
        ("train.together", "train.diagnostics_every"),
        lambda together, every: together == 1 or every == 0,
        "diagnostics look into one run: set config.train.together=1, or config.train.diagnostics_every=0",
    ),
    *(
        ((field,), lambda weights: weights and set(weights) <= {"ema", "raw"}, "it must list ema, raw or both")
        for field in ("evaluation.weights", *(f"evaluation.{scores}.weights" for scores in SCORES))
    ),
    (
        ("evaluation.ranking.samplers",),
        lambda samplers: 0 < len(samplers) == len(set(map(sampler_setting, samplers))),
        "it must name one or more, each once",
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
        f"temporal GenEval needs clips with prompts: set config.data.corpus={CLIP_CORPORA[0]}, or the former to 0",
    ),
    (
        ("evaluation.geneval.few_prompts_per_task", "evaluation.geneval.prompts_per_task"),
        lambda few, prompts: not few or not prompts or few < prompts,
        "the former must be below the latter; config.evaluation.geneval.few_prompts_per_task=0 turns it off",
    ),
    (
        ("evaluation.validation.examples",),
        lambda examples: examples != 1,
        "a standard error needs 2 or more; 0 is off",
    ),
    *(
        (
            (f"evaluation.{scores}.prompts_per_task", "evaluation.validation.examples"),
            lambda prompts, examples: not prompts or examples,
            f"{_UNVALIDATED}: set the former to 0, too",
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


def sampler_setting(text: str) -> tuple[int, float]:
    """(steps, guidance scale) of a sampler of `config.evaluation.ranking.samplers`, such as 25@5; or `ConfigError`."""
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
    """Whether a head's channels can be shared out so over time, height and width; () is the default share."""
    if not channels:
        return head_size >= 6 and head_size % 2 == 0
    return len(channels) == 3 and sum(channels) == head_size and all(n > 0 and n % 2 == 0 for n in channels)


def check_latents(model, latents) -> None:
    """Raises `ConfigError` for latents of (frames, height, width, channels) that the network cannot take."""
    frames, *sides = latents[:3]
    patch, grid, given = model.patch_size, model.position_grid, f"latents of {sides[0]}x{sides[1]}"
    if frames > 1:
        given = f"latents of {frames} frames of {sides[0]}x{sides[1]}"
        if not BACKBONES[model.backbone].takes_frames:
            able = [name for name, network in BACKBONES.items() if network.takes_frames]
            remedy = f"it takes single images; use {' or '.join(able)}"
            raise ConfigError(f"{given}: config.model.backbone is {model.backbone}; {remedy}")
        if frames % model.temporal_patch_size:
            by = f"config.model.temporal_patch_size={model.temporal_patch_size}"
            raise ConfigError(f"{given}: the number of frames is not divisible by {by}")
    for name, side in zip(("height", "width"), sides, strict=True):
        if side % patch:
            raise ConfigError(f"{given}: the {name} {side} is not divisible by config.model.patch_size={patch}")
        if side // patch > grid and model.positions != "rotary":
            tokens = f"{given} have {side // patch} tokens along the {name}"
            raise ConfigError(f"{tokens}, more than config.model.position_grid={grid}; raise it to {side // patch}")


def parse_latent_size(text: str | None, option: str = "--latent-size") -> tuple[int, int] | None:
    """(height, width) in latent pixels of an option's HxW; None where none was given. Raises `ConfigError`."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise ConfigError(f"{option} is {text!r}; it must be height x width in latent pixels, such as 40x24")
    for side in map(int, sides):
        if not 1 <= side <= SIDE_END:
            raise ConfigError(f"{option} has a side of {side}; it must be at least 1 and at most {SIDE_END}")
    return int(sides[0]), int(sides[1])


def check_choice(field: str, value: str | int) -> None:
    """Raises `ConfigError` with the nearest choice for a value that is not a choice of the field."""
    allowed = CHOICES[field]
    if value not in allowed:
        near = difflib.get_close_matches(str(value), [str(a) for a in allowed], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"config.{field} is {value!r}; it must be one of {', '.join(map(str, allowed))}{hint}")


def check(config) -> None:
    """Raises `ConfigError` naming the first field outside its limits, its value, and what it may be."""
    for field in CHOICES:
        check_choice(field, attrgetter(field)(config))
    for field, allowed in RANGES.items():
        value = attrgetter(field)(config)
        if value not in allowed:
            raise ConfigError(f"{_name(field)} is {_shown(value)}; it must be {allowed}")
    network = BACKBONES[config.model.backbone]
    _check_unread(config, network)
    for fields, holds, remedy in (*network.rules, *RULES):
        values = [attrgetter(field)(config) for field in fields]
        if not holds(*values):
            given = (f"{_name(field)} is {value}" for field, value in zip(fields, values, strict=True))
            raise ConfigError(f"{' and '.join(given)}; {remedy}")
    divisors = (*DIVISORS, (_WIDTH, f"model.{network.width_divisor}")) if network.width_divisor else DIVISORS
    for field, divisor in divisors:
        value, by = attrgetter(field)(config), divisor if isinstance(divisor, int) else attrgetter(divisor)(config)
        if value % by:
            named = by if isinstance(divisor, int) else f"config.{divisor}={by}"
            raise ConfigError(f"{_name(field)} {value} is not divisible by {named}; change one of the two")


def _check_unread(config, network: Network) -> None:
    """Raises `ConfigError` for a field that was set and that the network or the corpus does not read."""
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


def _shown(value: float | int) -> str:
    """A number as a message shows it."""
    return str(value) if len(str(value)) <= 80 else f"a number of {len(str(value))} digits"


# What is no field where another field, or the run's length, sets it.
_NAMES = {
    _WIDTH: "the hidden size (config.model.hidden, or of the depth)",
    "train.warmup": "the warm-up (config.train.warmup_steps, or of the steps)",
}


def _name(field: str) -> str:
    """The name of a field in messages."""
    return _NAMES.get(field, f"config.{field}")
