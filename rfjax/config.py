"""The schema of a run: frozen dataclasses, checked before anything starts.

A config file is a short Python file whose `get_config()` returns an `ml_collections.ConfigDict`
with any subset of the fields below, and, for a study, whose `points()` returns a mapping from
point id to overrides (`{"depth4": {"model.depth": 4}}`). Defaults live here and nowhere else.
What a field may be, the names of choices too, is in `limits.py`. This module imports neither JAX nor
a later part of rfjax.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ml_collections import ConfigDict

from rfjax import limits
from rfjax.errors import ConfigError
from rfjax.shipped import find_config, find_site


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A backbone. Width and heads follow from the depth (SD3 paper, section 5.3)."""

    backbone: str = "mmdit"
    depth: int = 15
    width_per_depth: int = 64  # hidden = width_per_depth * depth, unless `hidden` is given
    hidden: int | None = None
    head_size: int = 64  # heads = hidden / head_size
    mlp_ratio: float = 4.0
    patch_size: int = 2
    qk_norm: bool = False  # RMSNorm with learnable scale on queries and keys, per head
    dual_attention_blocks: int = 0  # image-only second attention in the first n blocks (SD3.5-M: 13)
    weight_sets: int = 2  # 3: the context's first `first_text_tokens` tokens get their own weights
    first_text_tokens: int = 77
    time_embedding_size: int = 256
    position_grid: int = 192  # side, in tokens, of the stored grid that is centre-cropped
    position_tokens: int = 16  # tokens per side at the training resolution
    position_span: float = 16.0  # a square of position_tokens spans [0, position_span)
    positions: str = "formula"  # stored: the grid itself is in the checkpoint, as imported, and frozen

    @property
    def width(self) -> int:
        return self.hidden if self.hidden is not None else self.width_per_depth * self.depth

    @property
    def heads(self) -> int:
        return self.width // self.head_size


@dataclass(frozen=True, kw_only=True)
class PreparedConfig:
    """What `rfjax prepare` wrote, for the corpus `prepared`."""

    path: str = ""  # the folder with manifest.json
    encoders: tuple[str, ...] = ()  # text encoders whose features are used; none named: all that are stored
    synthetic_captions: float = 0.0  # share of training examples with a synthetic caption (0.5: SD3, 0.95: DALL-E 3)
    latent_shift: float | None = None  # if given, those of the corpus must be these
    latent_scale: float | None = None
    models: str = ""  # the frozen models, to encode prompts and decode images; "": where the manifest says


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A corpus. `random` takes any sizes; the others know their own, and refuse others."""

    corpus: str = "shapes"
    image_size: int = 16  # side of a latent, in latent pixels
    channels: int = 3
    context_tokens: int = 16
    context_size: int = 96
    pooled_size: int = 96
    prepared: PreparedConfig = field(default_factory=PreparedConfig)

    @property
    def label(self) -> str:
        """What tables call the corpus. Prepared ones are told apart by their folders' names: losses on two
        of them compare no better than those on shapes and digits."""
        return f"{self.corpus}:{Path(self.prepared.path).resolve().name}" if self.corpus == "prepared" else self.corpus


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = 2000
    batch_size: int = 64
    accumulate: int = 1  # microbatches a step
    together: int = 1  # so many points of a study that differ in their formulation alone are trained in one program
    learning_rate: float = 1e-4
    schedule: str = "constant"  # of the learning rate; wsd: warm-up, stable, decay
    warmup_steps: int = 1000
    decay_fraction: float = 0.2  # wsd: the last part of the steps over which the rate falls
    final_learning_rate_fraction: float = 0.0  # cosine and wsd: where the rate ends
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # 0 turns clipping off
    ema_decay: float = 0.99
    ema_every: int = 100  # steps between updates of the average
    compute_dtype: str = "float32"
    matmul_precision: str = "default"
    remat: str = "none"  # what the backward pass recomputes
    attention: str = "auto"  # what computes it: splash on TPUs, cudnn on NVIDIA GPUs; auto goes by the platform
    condition_dropout: float = 0.464  # each text encoder's output zeroed independently
    max_skipped_in_row: int = 5  # non-finite steps in a row that end the run
    log_every: int = 20
    checkpoint_every: int = 500
    keep_last: int = 2
    stall_seconds: float = 3600.0  # without any progress, compilation included, that end a run; 0: for ever
    keep_every: int = 0  # a checkpoint at each multiple is kept for good; 0: only evaluated ones


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; -1 takes what is left. Their product is the device count."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    method: str = "euler"
    steps: int = 50
    guidance_scale: float = 5.0
    # uniform: 1, 1-1/n, ... 0, or for a formulation that is not rf the usual steps of its path | matched: rf's
    # steps for every formulation | diffusers: FlowMatchEulerDiscreteScheduler's own; shifted all
    sigmas: str = "uniform"


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    examples: int = 512  # 0 turns the evaluation off
    batch_size: int = 128
    grid: str = "paper"  # paper: i/8 for i=1..8, mean without t=1 | mlperf: 0/8..7/8 | midpoints
    levels: int = 8
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class GenEvalConfig:
    prompts_per_task: int = 40  # a task with fewer repeats its own; 0 turns the evaluation off
    images_per_prompt: int = 4
    batch_size: int = 120
    seed: int = 0
    weights: tuple[str, ...] = ("ema",)


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """The controls that variants are ranked under (SD3 section 5.1), at the last step."""

    prompts_per_task: int = 0  # 0 turns the evaluation off
    images_per_prompt: int = 2
    batch_size: int = 120
    seed: int = 0
    weights: tuple[str, ...] = ("ema", "raw")
    samplers: tuple[str, ...] = ("50@1", "50@2.5", "50@5", "5@5", "10@5", "25@5")  # steps@guidance scale


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    weights: tuple[str, ...] = ("ema", "raw")
    every: int = 0  # validate checkpoints at each multiple of this step; 0: the last only
    geneval_every: int = 0  # the same for GenEval; 0: the last only
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    geneval: GenEvalConfig = field(default_factory=GenEvalConfig)
    ranking: RankingConfig = field(default_factory=RankingConfig)


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = "run"
    seed: int = 0
    formulation: str = "rf/lognorm(0.00,1.00)"
    timestep_shift: float = 1.0  # alpha of SD3 eq. 23; training and sampling share it
    timestep_shift_by_area: bool = (
        False  # that is alpha at image_size^2 latent pixels; m have timestep_shift sqrt(m) / image_size
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def from_dict(values: Mapping | ConfigDict) -> Config:
    """The checked config of a nested mapping (a `ConfigDict` or what `to_dict` gave).

    Raises `ConfigError` naming the key and the nearest valid one, or the field, its value and
    what it may be.
    """
    config = _build(Config, values, prefix="")
    limits.check(config)
    return config


def to_dict(config: Config) -> dict:
    """A nested dict of plain values, fit for JSON; `from_dict` reads it back unchanged."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(config: Config) -> dict[str, object]:
    """Every field's plain value by its dotted key."""
    return _flatten(to_dict(config))


def differences(a: Config, b: Config) -> list[str]:
    """The dotted keys whose values differ, sorted."""
    flat_a, flat_b = flatten(a), flatten(b)
    return sorted(key for key in flat_a if flat_a[key] != flat_b[key])


def apply_overrides(config: Config, overrides: Mapping[str, object]) -> Config:
    """`config` with dotted keys replaced; string values are read by the field's type."""
    nested = to_dict(config)
    for key, value in overrides.items():
        annotation = _annotation(key)
        if isinstance(value, str):
            value = _parse(key, value, annotation)
        *sections, last = key.split(".")
        target = nested
        for section in sections:
            target = target[section]
        target[last] = value
    return from_dict(nested)


def load_file(file: str | Path, kind: str = "config") -> types.ModuleType:
    """The config file as a module, with `get_config()` and, for a study, `points()`.

    `file` is a path, or as text the name of a shipped config too (`shipped.find_config`). Of the kind `site` it is a
    site of `rfjax launch`, with `get_site()`.
    """
    find = {"config": find_config, "site": find_site}[kind]
    path = find(file if isinstance(file, str) else os.path.join(".", file))  # a Path is never a name
    spec = importlib.util.spec_from_file_location(f"rfjax_{kind}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{kind} file {path} failed: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, f"get_{kind}", None)):
        raise ConfigError(f"{kind} file {path} has no get_{kind}(); it must return a ConfigDict")
    return module


def load(path: str | Path, overrides: Mapping[str, object] | None = None) -> Config:
    """The checked config of a file, with dotted overrides applied.

    A file `.json` is what a run keeps as its config.json.
    """
    values = _read_json(Path(path)) if str(path).endswith(".json") else call(load_file(path), "get_config", path)
    return apply_overrides(from_dict(values), overrides or {})


def _read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None


def call(module: types.ModuleType, function: str, path: str | Path):
    """What a config file's function returns; an exception inside it is a `ConfigError`."""
    try:
        return getattr(module, function)()
    except Exception as error:
        raise ConfigError(f"{function}() of {path} failed: {type(error).__name__}: {error}") from error


def _build(cls, values, prefix):
    values = values.to_dict() if hasattr(values, "to_dict") else values
    if not isinstance(values, Mapping):
        raise ConfigError(f"config.{prefix.rstrip('.')} is {values!r}; it must be a section with fields")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ConfigError(_unknown(prefix + key))
    arguments = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]):
            arguments[key] = _build(hints[key], value, f"{prefix}{key}.")
        else:
            arguments[key] = _convert(prefix + key, value, hints[key])
    return cls(**arguments)


def _convert(key, value, annotation):
    """`value` as the annotated type, without lossy conversions."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(key, value, next(a for a in args if a is not type(None)))
    if origin is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif annotation is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif annotation in (bool, str) and isinstance(value, annotation):
        return value
    raise ConfigError(f"config.{key} is {value!r}; it must be {_describe(annotation)}")


def _parse(key, text, annotation):
    """A command-line string as a value of the annotated type."""
    if annotation is str:
        return text
    if annotation == tuple[str, ...]:
        return tuple(part.strip(" '\"") for part in text.strip("()[]").split(",") if part.strip())
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        raise ConfigError(f"config.{key} is {text!r}; it must be {_describe(annotation)}") from None


def _annotation(key):
    cls = Config
    parts = key.split(".")
    for index, part in enumerate(parts):
        hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        if part not in hints:
            raise ConfigError(_unknown(key))
        cls = hints[part]
        if dataclasses.is_dataclass(cls) and index == len(parts) - 1:
            raise ConfigError(
                f"config.{key} is a section; name one of its fields: {', '.join(typing.get_type_hints(cls))}"
            )
    return cls


def _unknown(key):
    keys = list(flatten(Config()))
    near = difflib.get_close_matches(key, keys, 1, 0.5)
    if not near:  # a right name in the wrong section
        leaf = key.rsplit(".", 1)[-1]
        near = difflib.get_close_matches(leaf, [k.rsplit(".", 1)[-1] for k in keys], 1, 0.6)
        near = [k for k in keys if near and k.rsplit(".", 1)[-1] == near[0]][:1]
    hint = f"; did you mean config.{near[0]}?" if near else f"; the fields are: {', '.join(keys)}"
    return f"unknown config key config.{key}{hint}"


def _describe(annotation):
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else _describe(a) for a in typing.get_args(annotation))
    return {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}.get(
        annotation, "a list of texts"
    )


def _flatten(nested, prefix=""):
    flat = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
