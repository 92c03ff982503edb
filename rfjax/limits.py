"""What each field of a config may be: names and ranges, as tables. `config_rules.check` checks a config against them.

No JAX here, and no import of the things that the names stand for. So the names in the tables of schedules, samplers and
so on are repeated here, and tests/test_limits.py checks that both lists of names agree.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rfjax.errors import ConfigError

# (fields, the condition on their values, the remedy: a refusal gives the fields, their values and the remedy)
Rule = tuple[tuple[str, ...], Callable[..., object], str]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A kind of network that a config may name."""

    path: str  # of the network's class, as module:name; imported when a network is made or its FLOPs are counted
    own_fields: tuple[str, ...] = ()  # fields of `config.model` that not every network reads
    positions: tuple[str, ...] = ("formula", "rotary")  # the values of `model.positions` that it takes
    text_in_sequence: bool = True  # text tokens stand in the sequence, beside the image's
    takes_frames: bool = True  # whether latents may have several frames; a network of single images refuses them
    convolves: bool = False  # its kernels are not all matrices, so none is stored in int8
    width_divisor: str | None = None  # the field of `config.model` that must divide the hidden size
    rules: tuple[Rule, ...] = ()


# role of a run in a study -> the reason why laws, correlations and rankings leave such a run out; "" if they take it
ROLES: dict[str, str] = {
    "run": "",
    "branch": "",
    "trunk": "its learning rate never falls: its branches are the points",
    "sweep": "it was trained to find a learning rate",
    "tuned": "it was tuned after pretraining",
}

SCORES = ("geneval", "ranking", "temporal")  # sections of `config.evaluation` that sample prompts
CLIP_CORPORA = ("motion",)  # corpora with prompts that say what happens in a clip

WIDTH = "model.width"  # the hidden size: given, or set by the depth
_OF_TOKENS = ("temporal_patch_size", "rotary_channels", "rotary_theta")  # of networks without convolutions
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
        takes_frames=False,  # its convolutions are over height and width
        convolves=True,
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

LEAST_WIDTH = 0.01  # of a power-function average (sigma_rel)
MOST_WIDTH = 0.288  # just below 12^-1/2, the width of an average that weights all steps equally
# Names that `config.train.trackers` may list. metrics.jsonl is always written.
TRACKERS = ("tensorboard", "wandb", "mlflow")

CHOICES: dict[str, tuple[str | int, ...]] = {
    "model.backbone": tuple(BACKBONES),
    "model.weight_sets": (2, 3),
    "model.positions": ("formula", "stored", "rotary"),
    "model.temporal_attention": ("joint", "factorised"),
    "model.parametrization": ("standard", "mup", "completep"),
    "data.corpus": ("shapes", "digits", "random", "motion", "prepared"),
    "data.world": ("first", "full", "digits"),
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
    """The numbers from `low` to `high`. An open end does not belong to the range."""

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

# Steps are counted in 32 bits. The other upper ends are far beyond what machines hold: a larger number is a slip.
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
    ("train", Range(0, COUNT_END), "keep_every ema_every unroll diagnostics_every"),
    ("train", Range(1, COUNT_END), "steps log_every checkpoint_every max_skipped_in_row keep_last average_snapshots"),
    ("train", Range(1, BATCH_END), "batch_size accumulate together"),
    ("train", Range(-1, COUNT_END), "warmup_steps tokens_per_batch"),  # -1: follows from other fields
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


def check_choice(field: str, value: str | int, allowed: Sequence[str | int] | None = None) -> None:
    """Raises `ConfigError` if `value` is not one of `allowed`, by default the field's row of `CHOICES`. The message
    suggests the allowed value that is spelt most like it."""
    allowed = CHOICES[field] if allowed is None else allowed
    if value not in allowed:
        near = difflib.get_close_matches(str(value), [str(a) for a in allowed], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"config.{field} is {value!r}; it must be one of {', '.join(map(str, allowed))}{hint}")


def format_number(value: float | int) -> str:
    """Writes a number for a message. For a number of more than 80 characters, writes only how many digits it has."""
    return str(value) if len(str(value)) <= 80 else f"a number of {len(str(value))} digits"
