"""Checks that a layout can express a config: a table lists the values that each layout's readers demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rfjax.config import Config
from rfjax.data.batch import BatchShapes
from rfjax.errors import ConfigError
from rfjax.flow.formulation import parse_formulation


class Demand(NamedTuple):
    """A demand of a layout on a field of the config. `value` returns what the field is, `wanted` what the layout needs;
    `why` and `remedy` are for the message."""

    field: str
    value: Callable[[Config, BatchShapes], object]
    wanted: Callable[[Config, BatchShapes], object]
    why: str
    remedy: str | None = None  # None: the layout's usual remedy


def _is(field, value, wanted, why, remedy=None) -> Demand:
    return Demand(field, value, lambda c, s: wanted, why, remedy)


def _qk_norm(config, shapes) -> bool:
    return config.model.qk_norm or config.model.dual_attention_blocks > 0


def _added_positions(config, shapes) -> str:
    return "formula" if config.model.positions == "rotary" else config.model.positions


def _rectified_flow(config, shapes) -> str:
    is_rectified = parse_formulation(config.formulation).is_rectified_flow
    return config.formulation if is_rectified else "rf, with any density of t"


# `diffusers` and `sd3` hold an MM-DiT with two weight sets that predicts a rectified flow's velocity for single images;
# `plain` holds any MM-DiT.
_IN_CHECKPOINTS = "there is no PyTorch module for another backbone; its weights are in the run's checkpoints"
_PREDICTION = (
    "use --format plain, whose PyTorch module returns the formulation's prediction; docs/formulations.md says how data "
    "and noise follow from it"
)
_VELOCITY = "its samplers expect a rectified flow's velocity"
_FRAMES = "this layout holds networks of single images"
_VIDEO = "use --format plain, whose PyTorch module takes frames, an attention over time and rotary positions"
_BACKBONE = _is("model.backbone", lambda c, s: c.model.backbone, "mmdit", "it is an MM-DiT", _IN_CHECKPOINTS)
_IMAGES = (
    _BACKBONE,
    _is("model.temporal_attention", lambda c, s: c.model.temporal_attention, "joint", _FRAMES, _VIDEO),
    _is("data.frames", lambda c, s: s.latents[0], 1, _FRAMES, _VIDEO),
    _is("model.temporal_patch_size", lambda c, s: c.model.temporal_patch_size, 1, _FRAMES, _VIDEO),
    Demand("model.positions", lambda c, s: c.model.positions, _added_positions, "it adds positions", _VIDEO),
)
_MMDIT = (
    *_IMAGES,
    Demand("formulation", lambda c, s: c.formulation, _rectified_flow, _VELOCITY, _PREDICTION),
)
_BOTH = (
    *_MMDIT,
    _is("model.weight_sets", lambda c, s: c.model.weight_sets, 2, "it has one weight set for text, one for the image"),
    _is("model.mlp_ratio", lambda c, s: c.model.mlp_ratio, 4.0, "its MLPs have 4 x hidden channels"),
    _is("model.time_embedding_size", lambda c, s: c.model.time_embedding_size, 256, "it embeds t in 256 numbers"),
)
# The single file has no config: its readers infer settings from the tensors.
_WIDTH = "its readers take the depth from the width, hidden / 64"
_DUAL = "its readers find the dual attention by its QK-norm"
DEMANDS: dict[str, tuple[Demand, ...]] = {
    "diffusers": _BOTH,
    "sd3": (
        *_BOTH,
        Demand("model.hidden", lambda c, s: c.model.width, lambda c, s: 64 * c.model.depth, _WIDTH),
        _is("model.head_size", lambda c, s: c.model.head_size, 64, "its readers have heads of 64"),
        _is("model.patch_size", lambda c, s: c.model.patch_size, 2, "its readers have patches of 2x2"),
        _is("data.channels", lambda c, s: s.latents[-1], 16, "its readers have latents of 16 channels"),
        _is("data.context_size", lambda c, s: s.context[1], 4096, "its readers have text features of T5's size"),
        _is("data.pooled_size", lambda c, s: s.pooled, 2048, "its readers have the two CLIPs' pooled features"),
        Demand("model.qk_norm", lambda c, s: c.model.qk_norm, _qk_norm, _DUAL),
    ),
    "plain": (_BACKBONE,),
}
_REMEDY = {
    "sd3": "use --format diffusers, or --format plain with the PyTorch module that is written beside it",
    "diffusers": "use --format plain: safetensors with rfjax's names, and a PyTorch module that reads them",
}


def check(layout: str, config: Config, shapes: BatchShapes) -> None:
    """Raises `ConfigError` if the layout cannot express a setting of the config; the message names the first such
    setting and what to use instead."""
    for demand in DEMANDS[layout]:
        value, wanted = demand.value(config, shapes), demand.wanted(config, shapes)
        if value != wanted:
            raise ConfigError(
                f"config.{demand.field} is {value}, and the {layout} layout needs {wanted}: {demand.why}; "
                f"{demand.remedy or _REMEDY[layout]}"
            )
