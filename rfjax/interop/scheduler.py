"""Reads the sampler's settings that diffusers stores beside a network (scheduler_config.json).

rfjax has one timestep shift, for both training and sampling. Any other setting is noted if it changes only the
sampler's times, and refused if it changes what the network computes or predicts.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple, TypedDict

from rfjax.config import Config
from rfjax.errors import ConfigError
from rfjax.flow.resolution import shift_at
from rfjax.inputs.json_files import read_json

FILE = "scheduler_config.json"
# class -> the key of its shift. In all of them the shift defaults to 1 (diffusers 0.42).
FLOW_MATCHING = {
    "FlowMatchEulerDiscreteScheduler": "shift",
    "FlowMatchHeunDiscreteScheduler": "shift",
    "FlowMatchLCMScheduler": "shift",
    "DPMSolverMultistepScheduler": "flow_shift",
    "DPMSolverSinglestepScheduler": "flow_shift",
    "UniPCMultistepScheduler": "flow_shift",
    "DEISMultistepScheduler": "flow_shift",
    "SASolverScheduler": "flow_shift",
}
EULER = "FlowMatchEulerDiscreteScheduler"
DEFAULT_SHIFT = 1.0
RELEASED_SHIFT = 3.0  # the shift in SD3's and SD3.5's own code
_REMEDY = "--config.timestep_shift=N"
_RENAMED = {"FlowMatchEulerDiscrete": EULER}


class Settings(TypedDict, total=False):
    """The keys of a scheduler_config.json that decide at which times the network is sampled."""

    _class_name: str
    num_train_timesteps: int
    shift: float
    flow_shift: float
    use_flow_sigmas: bool | None
    prediction_type: str
    use_dynamic_shifting: bool | None
    base_shift: float | None
    max_shift: float | None
    base_image_seq_len: int
    max_image_seq_len: int
    time_shift_type: str
    shift_terminal: float | None
    use_karras_sigmas: bool | None
    use_exponential_sigmas: bool | None
    use_beta_sigmas: bool | None
    invert_sigmas: bool | None
    stochastic_sampling: bool | None


# key -> what it means, for settings that change only the sampler's times or steps.
_SAMPLER_ALONE = {
    "use_karras_sigmas": "Karras sigmas",
    "use_exponential_sigmas": "exponential sigmas",
    "use_beta_sigmas": "beta sigmas",
    "stochastic_sampling": "stochastic steps",
    "shift_terminal": "sigmas stretched to a terminal value",
}
_KNOWN = set(Settings.__annotations__) | {"_diffusers_version"}


class Scheduler(NamedTuple):
    """What scheduler_config.json says about the sampler: the file, the timestep shift (constant, or dynamic by the
    picture's size), and notes."""

    path: Path
    shift: float | None  # None: dynamic
    dynamic: Dynamic | None
    notes: tuple[str, ...]

    def shift_at(self, tokens: int) -> float:
        """Returns the shift for pictures of `tokens` patches. Raises `ConfigError` unless it is in (0, 1e6)."""
        shift = self.shift if self.dynamic is None else self.dynamic.shift_at(tokens)
        if not 0 < shift < 1e6:
            raise ConfigError(
                f"{self.path}: its dynamic shift is {shift:g} for {tokens} patches; give --config.timestep_shift=N"
            )
        return shift


class Dynamic(NamedTuple):
    """A shift that depends on a picture's number of patches: mu is linear in this number, and the shift is exp(mu) or,
    if `kind` is linear, mu itself."""

    base_shift: float
    max_shift: float
    base_tokens: int
    max_tokens: int
    kind: str  # "exponential" or "linear"

    def shift_at(self, tokens: int) -> float:
        """Returns the shift: computes mu as diffusers' `calculate_shift` does, then the shift as `time_shift` does."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        mu = self.base_shift + slope * (tokens - self.base_tokens)
        return math.exp(min(mu, 100.0)) if self.kind == "exponential" else mu


def read_scheduler(path: Path) -> Scheduler:
    """Reads the settings in `path`.

    Raises `ConfigError`, naming the key, if rfjax cannot express its value. Raises `RfjaxError` for a file that is
    damaged or has values of the wrong type.
    """
    settings = read_json(path, Settings, remedy="fetch it again, or remove it and give --config.timestep_shift")
    given = settings.get("_class_name")
    kind = _RENAMED.get(given, given) if given else EULER
    notes = [] if given else [f"{path} names no class: taken as a {EULER}"]
    if kind not in FLOW_MATCHING:
        raise _refusal(path, "_class_name", kind, "it is no rectified flow's, so the network predicts something else")
    solver = FLOW_MATCHING[kind] == "flow_shift"
    if solver and not settings.get("use_flow_sigmas", False):
        raise _refusal(path, "use_flow_sigmas", settings.get("use_flow_sigmas"), "its times are no rectified flow's")
    prediction = settings.get("prediction_type", "epsilon" if solver else "flow_prediction")
    if prediction != "flow_prediction":
        raise _refusal(path, "prediction_type", prediction, "rfjax takes networks that predict a flow's velocity")
    scale = settings.get("num_train_timesteps", 1000)
    if scale != 1000:
        raise _refusal(path, "num_train_timesteps", scale, "rfjax gives networks 1000 t, as SD3 does")
    if settings.get("invert_sigmas"):
        raise _refusal(path, "invert_sigmas", True, "its time runs from noise at 0 to data at 1, rfjax's the other way")
    if kind != EULER:
        notes.append(f"the checkpoint's pipeline samples with {kind}; rfjax with config.evaluation.sampler.method")
    for key, words in _SAMPLER_ALONE.items():
        if settings.get(key):
            value = f" ({key} {settings[key]})" if not isinstance(settings[key], bool) else f" ({key})"
            notes.append(f"the checkpoint's pipeline samples with {words}{value}, which rfjax does not have")
    unknown = sorted(set(settings) - _KNOWN)
    if kind == EULER and unknown:
        notes.append(f"keys of {path} that are not known here were not used: {', '.join(unknown)}")
    if settings.get("use_dynamic_shifting"):
        return Scheduler(path, None, _dynamic(path, settings, solver), tuple(notes))
    key = FLOW_MATCHING[kind]
    if key not in settings:
        notes.append(f"{path} has no {key}: taken as {DEFAULT_SHIFT:g}, the default of {kind}")
    shift = settings.get(key, DEFAULT_SHIFT)
    if shift <= 0:
        raise _refusal(path, key, shift, "a timestep shift is positive")
    return Scheduler(path, float(shift), None, tuple(notes))


def choose_shift(
    config: Config, scheduler: Scheduler | None, is_foreign: bool, is_given: bool, is_released: bool
) -> tuple[Config, list[str]]:
    """Returns the config with the timestep shift to use, and notes on what was guessed or differs.

    If the user gave a shift (`is_given`), the config keeps it. Otherwise a foreign checkpoint's config takes the
    checkpoint's shift. Without a scheduler it takes 3, the shift of SD3 and SD3.5, if `is_released` (the network has
    the sizes of SD3 and SD3.5), else 1. A config that is not foreign, from the user or from an export, keeps its own
    shift. If its shift does not depend on the area, a note says when the checkpoint's shift differs.
    """
    notes = list(scheduler.notes) if scheduler else []
    side = config.data.image_size
    if scheduler is None:
        if not is_foreign or is_given:
            return config, notes
        shift = RELEASED_SHIFT if is_released else DEFAULT_SHIFT
        whose = "SD3's and SD3.5's" if is_released else "none"
        notes.append(f"no {FILE} says the timestep shift: taken as {shift:g} ({whose}); else give {_REMEDY}")
    elif is_given:
        return config, notes
    else:
        shift = scheduler.shift_at((side // config.model.patch_size) ** 2)
        if scheduler.dynamic:
            mixed = "was not taken" if not is_foreign else f"was taken as {shift:g}, its value at that size"
            notes.append(
                f"the checkpoint's pipeline samples with dynamic shifting, which rfjax does not have: the timestep "
                f"shift depends on the size, is {shift:g} for latents of {side} and {mixed}; else give {_REMEDY}"
            )
    if is_foreign:
        return dataclasses.replace(config, timestep_shift=shift), notes
    ours = shift_at(config, (1, side, side))
    if config.timestep_shift_by_area:  # an export's scheduler has the shift of its first bucket's shape
        return config, notes
    if not math.isclose(ours, shift, rel_tol=1e-6):
        notes.append(
            f"the config's timestep shift is {ours:g} and that of {scheduler.path} is {shift:g}: the config's stays"
        )
    return config, notes


def _dynamic(path, settings, solver) -> Dynamic:
    kind = settings.get("time_shift_type", "exponential")
    if kind not in ("exponential", "linear"):
        raise _refusal(path, "time_shift_type", kind, "it must be exponential or linear")
    values = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096} | settings
    for key in ("base_shift", "max_shift"):
        value = values[key]
        if value is None or abs(value) > 20 or (kind == "linear" and value <= 0):
            raise _refusal(path, key, value, "the shift that follows from it is no positive number of everyday size")
    fewest, most = values["base_image_seq_len"], values["max_image_seq_len"]
    if not 0 < fewest < most:
        raise _refusal(
            path, "max_image_seq_len", most, f"it must be above base_image_seq_len, {fewest}, which is above 0"
        )
    return Dynamic(values["base_shift"], values["max_shift"], fewest, most, kind)


def _refusal(path, key, value, why) -> ConfigError:
    return ConfigError(
        f"{path}: {key} is {value}: {why}; if it is not this network's, remove the file and give "
        "--config.timestep_shift=N"
    )
