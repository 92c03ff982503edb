"""The fields of a tuning's config: frozen dataclasses, checked before anything starts.

A config file is a short Python file whose `get_config()` returns any of the fields below. `rfjax.config` does the same
for runs. No JAX here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from rfjax import config_sections as sections
from rfjax.config import Config, SamplerConfig
from rfjax.config_files import load_file, returned_config
from rfjax.errors import ConfigError
from rfjax.limits import BATCH_END, COUNT_END, DECAY, SEED, Range, check_choice


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: int = 128  # of each kernel's factors; at most half of the kernel's smaller side
    alpha: float = 0.0  # the merged kernels are W + alpha / rank * (a b); 0: alpha is the rank


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How the images of a round are sampled."""

    prompts: int = 48  # prompts in a round
    images_per_prompt: int = 8  # a group; an image is compared with the others of its group
    batch_size: int = 128  # images that are sampled at a time
    steps_per_round: int = 10  # training steps on the images of a round
    sampler_steps: int = 0  # 0: those of the run's own sampler
    guidance_scale: float = -1.0  # -1: that of the run's own sampler


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Diffusion-DPO for rectified flow (Wallace et al. 2023, arXiv 2311.12908, eq. 14)."""

    # beta in -beta/2 [(e_w - e_w,ref) - (e_l - e_l,ref)], with e the error of the policy and e_ref that of the
    # reference, on winner (w) and loser (l). An error is the squared error of the prediction (for rf, of the velocity),
    # averaged over a latent's elements. The code of SalesforceAIResearch has the same factor 1/2. The code of diffusers
    # does not, so a beta there means the same as twice that beta here.
    beta: float = 2000.0
    # velocity: all t weigh the same | noise: the error of the noise, which for rf is (1 - t)^2 times the velocity's
    error: str = "velocity"
    noise: str = "fresh"  # fresh: new noise, the same for winner and loser | own: the noise each image was sampled from
    sampled_by: str = "policy"  # what samples the images: base, the run before tuning | policy, the run as tuned so far
    pairs_per_prompt: int = 1  # first the best image with the worst, then the second best with the second worst, ...


@dataclass(frozen=True, kw_only=True)
class VotesConfig:
    """A preference study. Its pairs of images, with people's votes, replace the sampled images; for dpo alone."""

    folder: str = ""  # the study's folder, as `rfjax compare` made it; "": no study, a round's images are sampled
    question: str = "prompt"  # the question whose votes say which image of a pair is better


@dataclass(frozen=True, kw_only=True)
class NFTConfig:
    """DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117)."""

    beta: float = 1.0  # beta in v+ = (1 - beta) v_old + beta v and v- = (1 + beta) v_old - beta v
    clip: float = 5.0  # advantages are clipped to [-clip, clip]
    kl: float = 1e-4  # factor of the squared difference from the reference's prediction
    error: str = "data"  # data: squared error of x0 over its mean absolute error | prediction: squared error
    # After round k, the sampling policy keeps the share min(keep_growth * k, keep_most) of its own adapter.
    keep_growth: float = 0.001
    keep_most: float = 0.5


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Flow-GRPO (Liu et al. 2025, arXiv 2505.05470). An example of its loss is one sampling step of one image."""

    noise: float = 0.7  # a in sigma = a sqrt(t / (1 - t)), the noise of the sampling steps
    clip_ratio: float = 1e-4  # ratios of probabilities are clipped to [1 - clip_ratio, 1 + clip_ratio]
    clip: float = 5.0  # advantages are clipped to [-clip, clip]
    kl: float = 0.04  # factor of the KL divergence of the policy's sampling steps from the reference's


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """The measurements before, during and after tuning, on prompts that tuning never uses."""

    every: int = 0  # measure at multiples of this step; 0: only before the first step and after the last
    prompts_per_task: int = 20
    images_per_prompt: int = 8
    unguided: bool = True  # measure also without guidance
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    OWNER = " of a tuning"  # text for messages about unknown keys; not a field of the config

    method: str = "dpo"  # a row of `methods.METHODS`
    seed: int = 0
    weights: str = "ema"  # the base run's weights that are tuned: ema | raw
    reward: str = "geneval"  # a row of `rewards.REWARDS`, or FILE.py:FUNCTION
    held_out_reward: str = "cleanness"  # a second reward, which is measured and never trained on
    held_out_prompts: float = 0.25  # share of each task's prompts that are never trained on
    steps: int = 200
    batch_size: int = 32  # examples of a training step: pairs (dpo), images (nft) or sampling steps (grpo)
    accumulate: int = 1
    learning_rate: float = 3e-4
    warmup_steps: int = 10
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    ema_decay: float = 0.9
    log_every: int = 10
    checkpoint_every: int = 50
    keep_last: int = 2
    lora: LoraConfig = field(default_factory=LoraConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    votes: VotesConfig = field(default_factory=VotesConfig)
    nft: NFTConfig = field(default_factory=NFTConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    @property
    def alpha(self) -> float:
        return self.lora.alpha or float(self.lora.rank)

    @property
    def scale(self) -> float:
        """The factor alpha / rank of the product a b in the merged kernel W + alpha / rank * (a b)."""
        return self.alpha / self.lora.rank

    def sampler(self, own: SamplerConfig) -> SamplerConfig:
        """The sampler with which a round's images are sampled: the run's own sampler `own`, with the number of steps
        and the guidance scale that this config asks for."""
        changes = {}
        if self.rollout.sampler_steps:
            changes["steps"] = self.rollout.sampler_steps
        if self.rollout.guidance_scale != -1:
            changes["guidance_scale"] = self.rollout.guidance_scale
        return dataclasses.replace(own, **changes)


# Names in the tables of methods and rewards. The tables need JAX, so tests/tune checks that the names agree.
CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("dpo", "nft", "grpo"),
    "weights": ("ema", "raw"),
    "dpo.error": ("velocity", "noise"),
    "dpo.noise": ("fresh", "own"),
    "dpo.sampled_by": ("base", "policy"),
    "votes.question": ("aesthetics", "prompt", "typography"),
    "nft.error": ("data", "prediction"),
}
BUILT_IN_REWARDS = ("geneval", "geneval_graded", "cleanness")

_COUNT, _BATCH, _FACTOR = Range(1, COUNT_END), Range(1, BATCH_END), Range(0, 1e6)
RANGES: dict[str, Range] = {
    "seed": SEED,
    "held_out_prompts": Range(0, 1, open_low=True, open_high=True),
    "steps": _COUNT,
    "batch_size": _BATCH,
    "accumulate": _BATCH,
    "learning_rate": _FACTOR,
    "warmup_steps": Range(0, COUNT_END),
    "clip_norm": Range(0, 1e12),
    "weight_decay": _FACTOR,
    "ema_decay": DECAY,
    "log_every": _COUNT,
    "checkpoint_every": _COUNT,
    "keep_last": _COUNT,
    "lora.rank": Range(1, 2**20),
    "lora.alpha": _FACTOR,
    "rollout.prompts": _BATCH,
    "rollout.images_per_prompt": Range(2, BATCH_END),
    "rollout.batch_size": _BATCH,
    "rollout.steps_per_round": _COUNT,
    "rollout.sampler_steps": Range(0, 10_000),
    "rollout.guidance_scale": Range(-1, 1000),
    "dpo.beta": Range(0, 1e9, open_low=True),
    "dpo.pairs_per_prompt": _BATCH,
    "nft.beta": Range(0, 1000, open_low=True),
    "nft.clip": Range(0, 1e6, open_low=True),
    "nft.kl": _FACTOR,
    "nft.keep_growth": Range(0, 1),
    "nft.keep_most": DECAY,
    "grpo.noise": Range(0, 100, open_low=True),
    "grpo.clip_ratio": Range(0, 1, open_low=True),
    "grpo.clip": Range(0, 1e6, open_low=True),
    "grpo.kl": _FACTOR,
    "watch.every": Range(0, COUNT_END),
    "watch.prompts_per_task": Range(1, 10**6),
    "watch.images_per_prompt": Range(2, 10**6),
    "watch.seed": SEED,
}


def check(tune: TuneConfig) -> None:
    """Raises `ConfigError` naming the first field outside its limits, its value, and what it may be."""
    for key, allowed in CHOICES.items():
        check_choice(key, attrgetter(key)(tune), allowed)
    for key, allowed in RANGES.items():
        value = attrgetter(key)(tune)
        if value not in allowed:
            raise ConfigError(f"config.{key} is {value}; it must be {allowed}")
    for key in ("reward", "held_out_reward"):
        value = getattr(tune, key)
        if value not in BUILT_IN_REWARDS and ".py:" not in value:
            known = ", ".join(BUILT_IN_REWARDS)
            raise ConfigError(f"config.{key} is {value!r}; it must be one of {known}, or your own as FILE.py:FUNCTION")
    if tune.votes.folder:
        given = f"config.votes.folder is {tune.votes.folder}"
        if tune.method != "dpo":
            raise ConfigError(f"{given}, and config.method is {tune.method}; pairs of votes are for dpo alone")
        if tune.dpo.noise == "own":
            raise ConfigError(f"{given}, and the noise of its images is not known; set config.dpo.noise=fresh")
    if tune.batch_size % tune.accumulate:
        given = f"config.batch_size {tune.batch_size} is not divisible by config.accumulate={tune.accumulate}"
        raise ConfigError(f"{given}; change one of the two")
    if tune.reward == tune.held_out_reward:
        given = f"config.reward and config.held_out_reward are both {tune.reward}"
        raise ConfigError(
            f"{given}; the held-out reward must be another, so that it shows a reward that was only gamed"
        )


def from_dict(values: Mapping) -> TuneConfig:
    """Builds and checks the config that a nested mapping describes. Raises `ConfigError` naming the key and the nearest
    valid key, or the field, its value and what it may be."""
    tune = sections.build(TuneConfig, values)
    check(tune)
    return tune


def to_dict(tune: TuneConfig) -> dict:
    """The config as a nested dict that JSON can hold; `from_dict` reads it back unchanged."""
    return json.loads(json.dumps(dataclasses.asdict(tune)))


def load(path: str | Path | None, overrides: Mapping[str, str]) -> TuneConfig:
    """Reads and checks a config file; without a file, takes the defaults.

    `overrides` maps dotted keys to texts, which replace the fields' values.
    """
    values = {} if path is None else returned_config(load_file(path), path)
    nested = to_dict(sections.build(TuneConfig, values))
    return from_dict(sections.with_overrides(TuneConfig, nested, overrides))


def differences(a: TuneConfig, b: TuneConfig) -> list[str]:
    """The dotted keys whose values differ, sorted."""
    one, other = flatten(a), flatten(b)
    return sorted(key for key in one if one[key] != other[key])


def flatten(tune: TuneConfig) -> dict[str, object]:
    """Every field's plain value by its dotted key."""
    return sections.flatten(tune)


def run_config(base: Config, tune: TuneConfig) -> Config:
    """Makes the tuned run's config from the base run's config. The fields `shared` (steps, batch size and so on) come
    from the tuning. After warm-up the rate is constant; the optimiser is AdamW; there is no condition dropout.

    So code that reads runs can read a tuned run. Only the last checkpoint gets the evaluations of the base run's
    config.
    """
    shared = ("steps", "batch_size", "accumulate", "learning_rate", "warmup_steps", "clip_norm", "weight_decay")
    shared += ("ema_decay", "log_every", "checkpoint_every", "keep_last")
    train = dataclasses.replace(
        base.train,
        **{name: getattr(tune, name) for name in shared},
        schedule="constant",
        optimizer="adamw",
        role="run",
        together=1,
        branches=(),
        ema_every=1,
        power_averages=(),
        average_snapshots=16,
        condition_dropout=0.0,
        keep_every=0,
    )
    temporal = dataclasses.replace(base.evaluation.temporal, every=0)
    evaluation = dataclasses.replace(base.evaluation, every=0, geneval_every=0, temporal=temporal)
    return dataclasses.replace(base, name=f"{base.name}-{tune.method}", train=train, evaluation=evaluation)
