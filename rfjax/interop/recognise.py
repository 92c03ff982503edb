"""Infers a checkpoint's network from the names and shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from rfjax.errors import ConfigError
from rfjax.interop.layouts import SD3, Layout

Shapes = Mapping[str, tuple[int, ...]]

SHOWN = 8  # names in an error message


class Network(NamedTuple):
    """The settings of config.model and config.data that follow from the tensors."""

    model: dict[str, object]
    data: dict[str, object]


def has_released_sizes(network: Network | None) -> bool:
    """Whether the network takes text features of the size that SD3 and SD3.5 take."""
    return network is not None and network.data["context_size"] == 4096


def network_of(layout: Layout, shapes: Shapes, head_size: int | None) -> Network:
    """Infers the network from its tensors in a layout. `shapes` maps names without prefix to shapes.

    With QK-norm the tensors tell the head size, and in the single file (`sd3`) it is 64; otherwise it is `head_size`.
    Raises `ConfigError`, naming the tensor, if a tensor is missing or has a shape that no MM-DiT has. Also raises it if
    the head size is unknown, because a network with a wrong head size would run and compute something else.
    """

    def shape(module, rank, suffix="weight", block=None):
        name = _name(layout, module, suffix, block) if module else layout.positions
        if name not in shapes:
            raise ConfigError(f"the checkpoint has no tensor {name}; give a whole {layout.name} checkpoint")
        if len(shapes[name]) != rank:
            raise ConfigError(
                f"{name} has the shape {list(shapes[name])}, and an MM-DiT's has {rank} dimensions; give another file"
            )
        return shapes[name]

    pattern = re.compile(re.escape(layout.block).replace(r"\{\}", r"(\d+)"))
    blocks = [int(match[1]) for match in map(pattern.match, shapes) if match]
    depth = len(set(blocks))
    if not depth or max(blocks) != depth - 1:
        found = _some(set(map(str, blocks))) or "none"
        raise ConfigError(
            f"the checkpoint's blocks are {found}, and an MM-DiT's are 0, 1, 2 …; give a whole checkpoint"
        )
    dual = [i for i in range(depth) if _name(layout, "image/qkv2", "weight", i) in shapes]
    if dual != list(range(len(dual))) or len(dual) == depth:
        raise ConfigError(
            f"blocks {dual} of {depth} have dual attention; only the first blocks may have it, and never the last: "
            "give another checkpoint"
        )
    qk_norm = _name(layout, "image/query_norm", "weight", 0) in shapes
    hidden, channels, patch, _ = shape("patch_embed", 4)
    grid = math.isqrt(shape(None, 3)[1])
    if qk_norm:
        head_size = shape("image/query_norm", 1, block=0)[0]
    elif layout is SD3:
        head_size = 64
    if head_size is None:
        raise ConfigError(
            "nothing says the size of a head: the tensors have no QK-norm, and no config.json stands beside them; give "
            "it with --config.model.head_size=N"
        )
    if head_size < 1 or hidden < 1 or hidden % head_size:
        raise ConfigError(
            f"the head size {head_size} does not divide the hidden size {hidden}; set config.model.head_size to a "
            "number that does"
        )
    model = {
        "backbone": "mmdit",
        "depth": depth,
        "hidden": hidden,
        "head_size": head_size,
        "mlp_ratio": shape("image/mlp_in", 2, block=0)[0] / hidden,
        "patch_size": patch,
        "qk_norm": qk_norm,
        "dual_attention_blocks": len(dual),
        "weight_sets": 2,
        "time_embedding_size": shape("time_embed/in", 2)[1],
        "position_grid": grid,
    }
    data = {
        "channels": channels,
        "context_size": shape("context_embed", 2)[1],
        "pooled_size": shape("pooled_embed/in", 2)[1],
    }
    return Network(model, data)


def compare(expected: Shapes, found: Shapes, what: str) -> None:
    """Raises `ConfigError`, listing the tensors that are missing, unexpected or of another shape, if there are any."""
    both = [name for name in expected if name in found and tuple(found[name]) != tuple(expected[name])]
    wrong = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [f"{name} is {list(found[name])}, not {list(expected[name])}" for name in both],
    }
    parts = [f"{len(names)} {label}: {_some(names)}" for label, names in wrong.items() if names]
    if parts:
        raise ConfigError(f"{what} is not a checkpoint that can be imported. " + "; ".join(parts))


def _name(layout, module, suffix, block=None):
    """Returns the layout's name of a module's first tensor; `block` is the block's number, None outside the blocks."""
    if block is None:
        return f"{layout.outside[module].names[0]}.{suffix}"
    return f"{layout.block.format(block)}{layout.blocks[module].names[0]}.{suffix}"


def _some(names) -> str:
    names = sorted(names)
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
