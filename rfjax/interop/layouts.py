"""The layouts that PyTorch code reads, each a table from rfjax's modules to the names in that layout.

`diffusers` is SD3Transformer2DModel (0.42). `sd3` is the single file of Stability's reference code and ComfyUI, for SD3
and SD3.5. `plain` has rfjax's names in PyTorch's orientation, for the module in `torch_modules/`. A row is used only if
rfjax's network has the row's parameter, so QK-norm, dual attention and a third weight set need no branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from rfjax.config import ModelConfig
from rfjax.interop.transforms import Linear, Patches, Same, Transform
from rfjax.models.positions import POSITIONS

SUFFIX = {"kernel": ".weight", "bias": ".bias", "scale": ".weight"}
STACKS = ("dual_blocks", "blocks", "last_block")  # in the order of the network


class Row(NamedTuple):
    """A module of rfjax in a layout: the names of the modules that hold it, and the transform of its arrays."""

    names: tuple[str, ...]
    transform: Transform | None  # None: the patch embedding, whose transform needs the patch size


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout: tables that map the path of a module of rfjax to a row."""

    name: str
    prefix: str = ""  # of every tensor's name
    block: str  # prefix of a block's tensors, formatted with the block's number
    positions: str  # name of the buffer of position embeddings [1, grid * grid, channels]
    outside: Mapping[str, Row]
    blocks: Mapping[str, Row]
    last: Mapping[str, Row] = field(default_factory=dict)  # rows of the last block that differ from `blocks`


class LeafPart(NamedTuple):
    """A whole leaf of rfjax's parameters, or one layer of a stacked leaf, and the layout's tensors that hold it."""

    leaf: str  # blocks/image/qkv/kernel
    layer: int | None  # index in a stacked leaf; None: the whole leaf
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    transform: Transform


def _one(name: str, **linear) -> Row:
    return Row((name,), Linear(**linear))


def _norm(name: str) -> Row:
    return Row((name,), Same())


DIFFUSERS = Layout(
    name="diffusers",
    block="transformer_blocks.{}.",
    positions="pos_embed.pos_embed",
    outside={
        "patch_embed": Row(("pos_embed.proj",), None),
        "time_embed/in": _one("time_text_embed.timestep_embedder.linear_1"),
        "time_embed/out": _one("time_text_embed.timestep_embedder.linear_2"),
        "pooled_embed/in": _one("time_text_embed.text_embedder.linear_1"),
        "pooled_embed/out": _one("time_text_embed.text_embedder.linear_2"),
        "context_embed": _one("context_embedder"),
        "final/modulation": _one("norm_out.linear", swapped=True),
        "final/linear": _one("proj_out"),
    },
    blocks={
        "image/modulation": _one("norm1.linear"),
        "image/qkv": Row(("attn.to_q", "attn.to_k", "attn.to_v"), Linear(parts=3)),
        "image/query_norm": _norm("attn.norm_q"),
        "image/key_norm": _norm("attn.norm_k"),
        "image/proj": _one("attn.to_out.0", inputs=2),
        "image/qkv2": Row(("attn2.to_q", "attn2.to_k", "attn2.to_v"), Linear(parts=3)),
        "image/query_norm2": _norm("attn2.norm_q"),
        "image/key_norm2": _norm("attn2.norm_k"),
        "image/proj2": _one("attn2.to_out.0", inputs=2),
        "image/mlp_in": _one("ff.net.0.proj"),
        "image/mlp_out": _one("ff.net.2"),
        "context/modulation": _one("norm1_context.linear"),
        "context/qkv": Row(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), Linear(parts=3)),
        "context/query_norm": _norm("attn.norm_added_q"),
        "context/key_norm": _norm("attn.norm_added_k"),
        "context/proj": _one("attn.to_add_out", inputs=2),
        "context/mlp_in": _one("ff_context.net.0.proj"),
        "context/mlp_out": _one("ff_context.net.2"),
    },
    last={"context/modulation": _one("norm1_context.linear", swapped=True)},
)

SD3 = Layout(
    name="sd3",
    prefix="model.diffusion_model.",
    block="joint_blocks.{}.",
    positions="pos_embed",
    outside={
        "patch_embed": Row(("x_embedder.proj",), None),
        "time_embed/in": _one("t_embedder.mlp.0"),
        "time_embed/out": _one("t_embedder.mlp.2"),
        "pooled_embed/in": _one("y_embedder.mlp.0"),
        "pooled_embed/out": _one("y_embedder.mlp.2"),
        "context_embed": _one("context_embedder"),
        "final/modulation": _one("final_layer.adaLN_modulation.1"),
        "final/linear": _one("final_layer.linear"),
    },
    blocks={
        f"{ours}/{module}": row
        for ours, theirs in (("image", "x_block"), ("context", "context_block"))
        for module, row in {
            "modulation": _one(f"{theirs}.adaLN_modulation.1"),
            "qkv": _one(f"{theirs}.attn.qkv"),
            "query_norm": _norm(f"{theirs}.attn.ln_q"),
            "key_norm": _norm(f"{theirs}.attn.ln_k"),
            "proj": _one(f"{theirs}.attn.proj", inputs=2),
            "qkv2": _one(f"{theirs}.attn2.qkv"),
            "query_norm2": _norm(f"{theirs}.attn2.ln_q"),
            "key_norm2": _norm(f"{theirs}.attn2.ln_k"),
            "proj2": _one(f"{theirs}.attn2.proj", inputs=2),
            "mlp_in": _one(f"{theirs}.mlp.fc1"),
            "mlp_out": _one(f"{theirs}.mlp.fc2"),
        }.items()
    },
)


def _keep_names(paths) -> dict[str, Row]:
    """Returns rows that keep rfjax's names."""
    names = {path: path.replace("/", ".") for path in paths}
    return {
        path: _norm(name) if "norm" in path else _one(name, inputs=2 if "proj" in path else 1)
        for path, name in names.items()
    }


_FIRST = [path.replace("context/", "context_first/") for path in SD3.blocks if "context/" in path]
_TIME = [f"image/time/{module}" for module in ("modulation", "qkv", "query_norm", "key_norm", "proj")]
PLAIN = Layout(
    name="plain",
    block="blocks.{}.",
    positions="positions",
    outside=_keep_names(DIFFUSERS.outside),
    blocks=_keep_names([*SD3.blocks, *_FIRST, *_TIME]),
)

LAYOUTS = {layout.name: layout for layout in (DIFFUSERS, SD3, PLAIN)}


def sources(layout: Layout, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[LeafPart]:
    """Lists the parts of rfjax's parameters, all but the positions, each with the layout's tensors that hold the part.

    `shapes` maps each parameter's path to its shape. Raises `KeyError`, naming a module that the layout has no row for.
    """
    found = []

    def add(row, leaf, shape, block="", layer=None):
        kind, transform = leaf.rsplit("/", 1)[1], row.transform or Patches(model.patch_size)
        names = tuple(f"{layout.prefix}{block}{name}{SUFFIX[kind]}" for name in row.names)
        found.append(LeafPart(leaf, layer, names, tuple(map(tuple, transform.shapes(kind, tuple(shape)))), transform))

    for leaf, shape in shapes.items():
        module = leaf.rsplit("/", 1)[0]
        stack, _, inner = module.partition("/")
        if leaf == POSITIONS:
            continue
        elif stack not in STACKS:
            add(layout.outside[module], leaf, shape)
        elif stack == "last_block":
            add((layout.blocks | layout.last)[inner], leaf, shape, layout.block.format(model.depth - 1))
        else:
            first = 0 if stack == "dual_blocks" else model.dual_attention_blocks
            for layer in range(shape[0]):
                add(layout.blocks[inner], leaf, shape[1:], layout.block.format(first + layer), layer)
    return found


def positions_shape(model: ModelConfig) -> tuple[int, int, int]:
    """Returns the shape of the positions in every layout: [1, grid * grid, channels]."""
    return 1, model.position_grid**2, model.width


def tensor_shapes(
    layout: Layout, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Returns {name: shape} of every tensor of the layout, in the order of the network. No tensor holds rotary
    positions."""
    tensors = {} if model.positions == "rotary" else {layout.prefix + layout.positions: positions_shape(model)}
    for source in sources(layout, model, shapes):
        tensors |= dict(zip(source.names, source.shapes, strict=True))
    return tensors
