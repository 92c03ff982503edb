"""Checks the settings of diffusers' SD3Transformer2DModel (config.json) against the network's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs.json_files import WrongJson, check_json

CLASS = "SD3Transformer2DModel"


class Settings(TypedDict, total=False):
    """The keys of config.json that rfjax knows."""

    _class_name: str
    sample_size: int
    patch_size: int
    in_channels: int
    out_channels: int | None
    num_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    caption_projection_dim: int
    pooled_projection_dim: int
    pos_embed_max_size: int
    qk_norm: str | None
    dual_attention_layers: list[int] | None
    guidance_embeds: bool | None
    quantization_config: object


# Values of an unknown key that mean "without it".
_NOTHING = (None, False, "", [], {})


def check_class(settings: Mapping[str, object], path: Path) -> None:
    """Checks that a config.json is an SD3 transformer's.

    Raises `ConfigError` if it is another model's, or if the weights are quantised. Raises `RfjaxError` for a value of
    the wrong type.
    """
    kind = settings.get("_class_name", CLASS)
    if kind != CLASS:
        raise ConfigError(
            f"{path} is the config of a {kind}; give a checkpoint of {CLASS}, the only class that is imported"
        )
    if "_class_name" not in settings and ("architectures" in settings or "model_type" in settings):
        what = settings.get("model_type") or settings.get("architectures")
        raise ConfigError(
            f"{path} is the config of a model of transformers ({what}); give a checkpoint of {CLASS}, the only class "
            "that is imported"
        )
    if settings.get("quantization_config") not in _NOTHING:
        raise ConfigError(
            f"{path}: quantization_config is given, so its weights are quantised; get the same weights in bfloat16"
        )
    try:
        check_json(dict(settings), Settings)
    except WrongJson as problem:
        raise RfjaxError(f"{path}: {problem}; fetch it again, or remove it") from None


def check_settings(settings: Mapping[str, object], path: Path, network, outputs: int) -> None:
    """Raises `ConfigError`, naming the keys, for settings that contradict the tensors, for settings that rfjax does not
    know, and for `guidance_embeds`, which its networks lack.

    `network` is inferred from the tensors; `outputs` is the number of values that they give for a patch. An unknown key
    passes if its value means "without it".
    """
    model, data = network.model, network.data
    hidden, patch = model["hidden"], model["patch_size"]
    from_tensors = {
        "patch_size": patch,
        "in_channels": data["channels"],
        "out_channels": outputs // patch**2,
        "num_layers": model["depth"],
        "attention_head_dim": model["head_size"],
        "num_attention_heads": hidden // model["head_size"],
        "joint_attention_dim": data["context_size"],
        "caption_projection_dim": hidden,
        "pooled_projection_dim": data["pooled_size"],
        "pos_embed_max_size": model["position_grid"],
        "qk_norm": "rms_norm" if model["qk_norm"] else None,
        "dual_attention_layers": list(range(model["dual_attention_blocks"])),
    }
    alike = {
        "out_channels": (None,),
        "dual_attention_layers": (None,) if not from_tensors["dual_attention_layers"] else (),
    }
    wrong = [
        f"{key} is {_shown(settings[key])} and the tensors say {_shown(value)}"
        for key, value in from_tensors.items()
        if key in settings and settings[key] != value and settings[key] not in alike.get(key, ())
    ]
    size = settings.get("sample_size")
    if size is not None and size < 1:
        wrong.append(f"sample_size is {size} and must be positive")
    if wrong:
        raise ConfigError(
            f"{path} does not fit the tensors beside it: {'; '.join(wrong)}; get the file that belongs to them"
        )
    if settings.get("guidance_embeds"):
        raise ConfigError(
            f"{path}: guidance_embeds is true, and rfjax's networks take no guidance scale; give another checkpoint"
        )
    unknown = [
        f"{key} is {_shown(value)}"
        for key, value in settings.items()
        if key not in Settings.__annotations__ and not key.startswith("_") and value not in _NOTHING
    ]
    if unknown:
        raise ConfigError(
            f"{path} has settings that rfjax does not know: {'; '.join(unknown)}; remove those that do not change what "
            "the network computes"
        )


def _shown(value: object) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
