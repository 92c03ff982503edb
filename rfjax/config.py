"""The schema of a run: frozen dataclasses, checked before anything starts.

A config file is a short Python file. Its `get_config()` returns an `ml_collections.ConfigDict` with any of the fields
below; for a study its `points()` returns a mapping from point id to overrides (`{"depth4": {"model.depth": 4}}`).
Defaults stand here and nowhere else. The values that a field may have are in `limits.py`, the rules between fields in
`config_rules.py`; `config_files.py` reads the file. No JAX here.

A field that is `WRITTEN_WHERE_SET` is left out of a config's JSON while it has its default. So the JSON of a run that
does not use the field is the same as before rfjax had the field.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ml_collections import ConfigDict

from rfjax import config_sections as sections
from rfjax.config_rules import check, check_is_read
from rfjax.config_sections import WRITTEN_WHERE_SET
from rfjax.inputs.paths import local_text


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
    temporal_patch_size: int = field(default=1, metadata=WRITTEN_WHERE_SET)  # frames of a patch
    # joint: one attention over the text and the tokens of all frames | factorised: each frame has an attention of its
    # own with a copy of the text, and every block also has an attention over all frames' tokens (SD3 section 5.3.3)
    temporal_attention: str = field(default="joint", metadata=WRITTEN_WHERE_SET)
    qk_norm: bool = False  # RMSNorm with learnable scale on queries and keys, per head
    dual_attention_blocks: int = 0  # the first n blocks have a second, image-only attention (SD3.5-M: 13)
    weight_sets: int = 2  # 3: the context's first `first_text_tokens` tokens get their own weights
    first_text_tokens: int = 77
    time_embedding_size: int = 256
    position_grid: int = 192  # side, in tokens, of the grid of added positions; an image takes its centre
    position_tokens: int = 16  # tokens a side at the training resolution
    position_span: float = 16.0  # the coordinates of position_tokens tokens span [0, position_span)
    # formula: sines and cosines are added to the tokens | stored: an imported grid is added; the checkpoint holds the
    # grid, and training leaves it as it is | rotary: queries and keys of visual tokens are rotated by time, row, column
    positions: str = "formula"
    # How many of a head's channels rotate with time, with height and with width; (): 2 * (head_size // 6) for height
    # and as many for width, the rest for time
    rotary_channels: tuple[int, ...] = field(default=(), metadata=WRITTEN_WHERE_SET)
    rotary_theta: float = field(default=10_000.0, metadata=WRITTEN_WHERE_SET)
    # mup: the best learning rate does not depend on the width; completep: it depends on neither width nor depth
    parametrization: str = field(default="standard", metadata=WRITTEN_WHERE_SET)
    # The width at which the rate of hidden kernels is `train.learning_rate`.
    base_width: int = field(default=0, metadata=WRITTEN_WHERE_SET)
    # completep: the depth at which a block adds the outputs of attention and MLP to the stream with the factor 1.
    base_depth: int = field(default=0, metadata=WRITTEN_WHERE_SET)
    # mup and completep: the width at which all parameters have the same rate, and the initial values of `standard`.
    balanced_width: int = field(default=256, metadata=WRITTEN_WHERE_SET)

    @property
    def width(self) -> int:
        return self.hidden if self.hidden is not None else self.width_per_depth * self.depth

    @property
    def heads(self) -> int:
        return self.width // self.head_size

    @property
    def rotary_split(self) -> tuple[int, ...]:
        """How many of a head's channels rotate with the token's time, with its height and with its width."""
        side = 2 * (self.head_size // 6)
        return self.rotary_channels or (self.head_size - 2 * side, side, side)

    @property
    def patch(self) -> tuple[int, int, int]:
        """Frames, height and width of a patch."""
        return self.temporal_patch_size, self.patch_size, self.patch_size

    def token_grid(self, latents: Sequence[int]) -> tuple[int, int, int]:
        """The number of tokens along time, height and width for latents of (frames, height, width, ...). A still has
        one token along time, however many frames a patch has."""
        time, height, width = (side // patch for side, patch in zip(latents, self.patch, strict=False))
        return max(1, time), height, width

    def batch_frames(self, latents: Sequence[int]) -> int:
        """How many entries of the batch axis a clip takes inside the network, for latents of (frames, height, width,
        ...). With factorised attention each temporal position of the tokens is an entry of its own; otherwise a clip
        takes one entry."""
        return self.token_grid(latents)[0] if self.temporal_attention == "factorised" else 1

    def patch_values(self, channels: int) -> int:
        """The number of values in a patch."""
        return math.prod(self.patch) * channels


@dataclass(frozen=True, kw_only=True)
class PreparedConfig:
    """Where the corpus `prepared` is, and what of it is used."""

    path: str = ""  # the folder that `rfjax prepare` wrote, with manifest.json
    encoders: tuple[str, ...] = ()  # text encoders whose features are used; (): all that are stored
    synthetic_captions: float = 0.0  # share of training examples with a synthetic caption (0.5: SD3, 0.95: DALL-E 3)
    latent_shift: float | None = None  # if given, the corpus must have this shift
    latent_scale: float | None = None  # if given, the corpus must have this scale
    models: str = ""  # folder of the frozen models for prompts and images; "": the folder that the manifest names


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A corpus and its sizes. `random` takes any sizes; every other corpus refuses sizes that it does not have."""

    corpus: str = "shapes"
    frames: int = field(default=1, metadata=WRITTEN_WHERE_SET)  # of a latent; an image has one
    # The latent shapes of a run on several shapes, as FRAMESxHEIGHTxWIDTH@SHARE, or HEIGHTxWIDTH@SHARE for stills;
    # SHARE is the shape's share of the training examples
    buckets: tuple[str, ...] = field(default=(), metadata=WRITTEN_WHERE_SET)
    world: str = field(default="first", metadata=WRITTEN_WHERE_SET)  # of the corpus `motion`: what happens in its clips
    image_size: int = 16  # side of a latent, in latent pixels
    channels: int = 3
    context_tokens: int = 16
    context_size: int = 96
    pooled_size: int = 96
    prepared: PreparedConfig = field(default_factory=PreparedConfig)

    @property
    def label(self) -> str:
        """The corpus's name in tables. A prepared corpus's name contains the name of its folder, and the name of
        `motion` contains the world and the frames or buckets, because losses on two such corpora cannot be compared."""
        shown = "+".join(self.buckets) or self.frames
        which = {"prepared": Path(self.prepared.path).resolve().name, "motion": f"{self.world}-{shown}"}
        return f"{self.corpus}:{which[self.corpus]}" if self.corpus in which else self.corpus


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = 2000
    batch_size: int = 64  # examples in a step; if tokens_per_batch is set, in a step of the bucket with the most tokens
    # 0: all buckets have batches of `batch_size`. Otherwise the most tokens in a batch, so that buckets of fewer tokens
    # have more examples; -1: as many tokens as `batch_size` examples of the bucket with the most tokens have
    tokens_per_batch: int = field(default=0, metadata=WRITTEN_WHERE_SET)
    accumulate: int = 1  # microbatches a step
    # Points of a study that are trained in one program; they may differ in formulation and learning rate.
    together: int = 1
    learning_rate: float = 1e-4
    # muon: Muon for hidden kernels, and AdamW for the other parameters
    optimizer: str = field(default="adamw", metadata=WRITTEN_WHERE_SET)
    # run | sweep: a run that is trained to find a learning rate; no law takes such a run
    role: str = field(default="run", metadata=WRITTEN_WHERE_SET)
    schedule: str = "constant"  # of the learning rate; wsd is warm-up, stable, decay
    warmup_steps: int = -1  # -1: 1,000, the paper's, but a tenth of a run that is shorter than 10,000 steps
    # `config_rules.READ_BY_SCHEDULES` says which schedules read the next two and `final_learning_rate_fraction`.
    decay_fraction: float = 0.2  # the rate falls over this last share of the steps
    decay_shape: str = field(default="linear", metadata=WRITTEN_WHERE_SET)  # how the rate falls
    # The lengths, in steps from the trunk's start, of the branches of one trunk; the last is `steps`. (): no branches.
    branches: tuple[int, ...] = field(default=(), metadata=WRITTEN_WHERE_SET)
    final_learning_rate_fraction: float = 0.0  # the rate at the end over `learning_rate`
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # 0 turns clipping off
    ema_decay: float = 0.99
    ema_every: int = 0  # steps between updates of the average; 0: steps // 1000, at least 1 and at most the paper's 100
    # Widths (sigma_rel) of power-function averages to keep; averages of other widths are made from these after
    # training. (): none
    power_averages: tuple[float, ...] = field(default=(), metadata=WRITTEN_WHERE_SET)
    average_snapshots: int = field(default=16, metadata=WRITTEN_WHERE_SET)  # times in a run that they are stored
    compute_dtype: str = "float32"
    matmul_precision: str = "default"
    remat: str = "none"  # what the backward pass recomputes
    # Blocks in an iteration of the scan over the depth; 0: all blocks, which is faster on a GPU but compiles longer.
    unroll: int = field(default=1, metadata=WRITTEN_WHERE_SET)
    attention: str = "auto"  # the implementation: splash is for TPUs, cudnn for NVIDIA GPUs; auto picks by platform
    # The probability with which each text encoder's output is zeroed, independently. -1: so that all outputs together
    # are zeroed in a tenth of the cases, as in the paper: 0.464 each for three encoders, 0.1 for one.
    condition_dropout: float = -1.0
    max_skipped_in_row: int = 5  # non-finite steps in a row that end the run
    log_every: int = 20
    # Every so many steps a forward pass measures attention logits and sizes of activations; 0: never
    diagnostics_every: int = field(default=0, metadata=WRITTEN_WHERE_SET)
    checkpoint_every: int = 500
    keep_last: int = 2  # how many of the newest checkpoints are kept
    stall_seconds: float = 3600.0  # a run ends after so long without progress, compilation included; 0: never
    # Where the curve is shown: any of tensorboard, wandb and mlflow
    trackers: tuple[str, ...] = field(default=("tensorboard",), metadata=WRITTEN_WHERE_SET)
    keep_every: int = 0  # checkpoints at multiples of this step are kept for good; 0: only those that are evaluated

    @property
    def warmup(self) -> int:
        """Steps of warm-up."""
        return min(1000, self.steps // 10) if self.warmup_steps == -1 else self.warmup_steps

    @property
    def decay_steps(self) -> int:
        """Steps over which the rate of wsd falls."""
        return max(1, round(self.decay_fraction * self.steps))

    @property
    def departure(self) -> int:
        """The step at which the rate of wsd begins to fall: there a branch leaves its trunk."""
        return self.steps - self.decay_steps

    @property
    def average_every(self) -> int:
        """Steps between updates of the average."""
        return self.ema_every or min(100, max(1, self.steps // 1000))

    def dropout(self, encoders: int) -> float:
        """The probability with which training zeroes the output of a text encoder, for a corpus with this many text
        encoders."""
        return 0.1 ** (1 / max(1, encoders)) if self.condition_dropout == -1 else self.condition_dropout


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The number of devices along each axis of the mesh (`mesh_axes.py`); -1 takes all devices that the other axes
    leave. The product of the axes is the number of devices."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    # Number of slices that the devices are in. The axis `data` spans all slices, the other axes stay inside one. -1:
    # the number that TPU devices show; 1 for other devices
    slices: int = field(default=-1, metadata=WRITTEN_WHERE_SET)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    method: str = "euler"
    steps: int = 50
    guidance_scale: float = 5.0
    # Guidance is used only for t between these two (Kynkaanniemi et al. 2024); elsewhere a velocity costs half as much.
    guidance_from: float = field(default=0.0, metadata=WRITTEN_WHERE_SET)
    guidance_to: float = field(default=1.0, metadata=WRITTEN_WHERE_SET)
    # RUN@STEP, the folder and step of a weaker run: guidance leads away from the weaker run's prediction for the same
    # caption, not from this run's prediction without a caption (autoguidance, Karras et al. 2024).
    guide: str = field(default="", metadata=WRITTEN_WHERE_SET)
    # uniform: 1, 1-1/n, ..., 0 for rf, and for another formulation the usual steps of its path | matched: even steps of
    # rf's t for every formulation | diffusers: the steps of FlowMatchEulerDiscreteScheduler, for rf alone. The timestep
    # shift applies to the steps of rf.
    sigmas: str = "uniform"


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    examples: int = 512  # 0 turns the evaluation off
    batch_size: int = 128
    # t of L levels: paper: 1/L, ..., 1, with t = 1 left out of the mean | mlperf: 0, ..., (L-1)/L | midpoints: halfway
    # between the levels of mlperf and those of paper
    grid: str = "paper"
    levels: int = 8  # L
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class GenEvalConfig:
    prompts_per_task: int = 40  # a task with fewer prompts repeats them; 0 turns the evaluation off
    # If above 0, each evaluation also makes a second record, with this smaller number of prompts per task and another
    # sampler's name. A trunk's branches, except the longest, get only this record, so that many short branches cost
    # little.
    few_prompts_per_task: int = field(default=0, metadata=WRITTEN_WHERE_SET)
    images_per_prompt: int = 4
    batch_size: int = 120
    seed: int = 0
    weights: tuple[str, ...] = ("ema",)


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """The controls under which variants are ranked at the last step (SD3 section 5.1): samplers and weights."""

    prompts_per_task: int = 0  # 0 turns the evaluation off
    images_per_prompt: int = 2
    batch_size: int = 120
    seed: int = 0
    weights: tuple[str, ...] = ("ema", "raw")
    samplers: tuple[str, ...] = ("50@1", "50@2.5", "50@5", "5@5", "10@5", "25@5")  # steps@guidance scale


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """Temporal GenEval, for a corpus of clips with prompts."""

    prompts_per_task: int = 0  # a task with fewer prompts repeats them; 0 turns the evaluation off
    clips_per_prompt: int = 4
    batch_size: int = 120
    every: int = 0  # checkpoints at multiples of this step are scored; 0: the last only
    seed: int = 0
    weights: tuple[str, ...] = ("ema",)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    weights: tuple[str, ...] = ("ema", "raw")
    every: int = 0  # checkpoints at multiples of this step are validated; 0: the last only
    geneval_every: int = 0  # the same for GenEval; 0: the last only
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    geneval: GenEvalConfig = field(default_factory=GenEvalConfig)
    ranking: RankingConfig = field(default_factory=RankingConfig)
    temporal: TemporalConfig = field(default=TemporalConfig(), metadata=WRITTEN_WHERE_SET)


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = "run"
    seed: int = 0
    formulation: str = "rf/lognorm(0.00,1.00)"
    timestep_shift: float = 1.0  # alpha of SD3 eq. 23; training and sampling share it
    # If true, latents of m pixels have the shift timestep_shift * sqrt(m) / image_size
    timestep_shift_by_area: bool = False
    # The exponent e: latents of f frames have f^e times the shift
    timestep_shift_frames: float = field(default=0.0, metadata=WRITTEN_WHERE_SET)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def from_dict(values: Mapping | ConfigDict) -> Config:
    """Builds and checks the config that a nested mapping describes: a `ConfigDict`, or a dict from `to_dict`.

    Raises `ConfigError` for an unknown key, with the nearest valid key, and for a value that its field may not have,
    with what the field may be.
    """
    config = _with_local_paths(sections.build(Config, values))
    check(config)
    return config


def _with_local_paths(config: Config) -> Config:
    """Expands `~` in the paths of a config. Raises `ConfigError` for a URL."""
    prepared = config.data.prepared
    given = {name: getattr(prepared, name) for name in ("path", "models") if getattr(prepared, name)}
    paths = {name: local_text(text, f"config.data.prepared.{name}") for name, text in given.items()}
    if paths == given:
        return config
    data = dataclasses.replace(config.data, prepared=dataclasses.replace(prepared, **paths))
    return dataclasses.replace(config, data=data)


def to_dict(config: Config) -> dict:
    """Returns the config as a nested dict that JSON can hold; `from_dict` reads it back unchanged.

    Fields that are `WRITTEN_WHERE_SET` are left out at their defaults.
    """
    return sections.written(config)


def flatten(config: Config) -> dict[str, object]:
    """Returns {dotted key: plain value} of all fields."""
    return sections.flatten(config)


def differences(a: Config, b: Config) -> list[str]:
    """Returns the dotted keys whose values differ, sorted."""
    flat_a, flat_b = flatten(a), flatten(b)
    return sorted(key for key in flat_a if flat_a[key] != flat_b[key])


def apply_overrides(config: Config, overrides: Mapping[str, object]) -> Config:
    """Returns `config` with the values of dotted keys replaced; a string is parsed by the field's type.

    Raises `ConfigError` as `from_dict` does, and for a key that the resulting learning-rate schedule does not read.
    """
    made = from_dict(sections.with_overrides(Config, to_dict(config), overrides))
    check_is_read(overrides, [made.train.schedule])
    return made
