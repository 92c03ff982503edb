"""OpenMMLab's Mask2Former checkpoints as weights of the transformers module.

The layouts are those of mmdet 2.x (`backbone.*`, `panoptic_head.*`) and of transformers'
`Mask2FormerForUniversalSegmentation`. Most tensors are renamed (`NAMES`); two kinds are rebuilt:

- queries, keys and values, which mmdet keeps as one matrix in that order, are cut in three;
- Swin's patch merging: mmdet takes its four pixels with `unfold`, channel by channel and the pixels
  (row, column) in the order (0,0) (0,1) (1,0) (1,1); the published Swin, and transformers, pixel by
  pixel in the order (0,0) (1,0) (0,1) (1,1).

A checkpoint is read with `weights_only=True`; beyond torch's own list nothing can be unpickled but
what `ALLOWED` names.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping

import numpy as np
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from rfjax.errors import ConfigError
from rfjax.scorers.pretrained import first_line

# What an mmdet checkpoint's `meta` may hold besides plain values: numpy's numbers and arrays of them.
_scalar, _array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
ALLOWED = [
    np.dtype,
    np.ndarray,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
    np.dtypes.Int32DType,
    np.dtypes.BoolDType,
    _scalar,  # their makers, whose module has another name before numpy 2
    (_scalar, "numpy.core.multiarray.scalar"),
    _array,
    (_array, "numpy.core.multiarray._reconstruct"),
]

ENCODER = "model.pixel_level_module.encoder"
DECODER = "model.pixel_level_module.decoder"
TRANSFORMER = "model.transformer_module"
BLOCK = rf"{ENCODER}.swin.encoder.layers.\1.blocks.\2"
DEFORMABLE = rf"{DECODER}.encoder.layers.\1"
LAYER = rf"{TRANSFORMER}.decoder.layers.\1"
STAGE = r"backbone\.stages\.(\d+)\.blocks\.(\d+)"
PIXEL = r"panoptic_head\.pixel_decoder"
PIXEL_LAYER = PIXEL + r"\.encoder\.layers\.(\d+)"
HEAD_LAYER = r"panoptic_head\.transformer_decoder\.layers\.(\d+)"

# (mmdet's name, transformers' name); a whole name must match.
NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (
            r"backbone\.patch_embed\.projection\.(weight|bias)",
            rf"{ENCODER}.swin.embeddings.patch_embeddings.projection.\1",
        ),
        (r"backbone\.patch_embed\.norm\.(weight|bias)", rf"{ENCODER}.swin.embeddings.norm.\1"),
        (STAGE + r"\.norm1\.(weight|bias)", BLOCK + r".layernorm_before.\3"),
        (STAGE + r"\.norm2\.(weight|bias)", BLOCK + r".layernorm_after.\3"),
        (
            STAGE + r"\.attn\.w_msa\.relative_position_bias_table",
            BLOCK + ".attention.relative_position_bias.relative_position_bias_table",
        ),
        (STAGE + r"\.attn\.w_msa\.proj\.(weight|bias)", BLOCK + r".attention.o_proj.\3"),
        (STAGE + r"\.ffn\.layers\.0\.0\.(weight|bias)", BLOCK + r".mlp.fc1.\3"),
        (STAGE + r"\.ffn\.layers\.1\.(weight|bias)", BLOCK + r".mlp.fc2.\3"),
        (PIXEL + r"\.input_convs\.(\d+)\.conv\.(weight|bias)", rf"{DECODER}.input_projections.\1.0.\2"),
        (PIXEL + r"\.input_convs\.(\d+)\.gn\.(weight|bias)", rf"{DECODER}.input_projections.\1.1.\2"),
        (PIXEL + r"\.lateral_convs\.0\.conv\.weight", f"{DECODER}.adapter_1.0.weight"),
        (PIXEL + r"\.lateral_convs\.0\.gn\.(weight|bias)", rf"{DECODER}.adapter_1.1.\1"),
        (PIXEL + r"\.output_convs\.0\.conv\.weight", f"{DECODER}.layer_1.0.weight"),
        (PIXEL + r"\.output_convs\.0\.gn\.(weight|bias)", rf"{DECODER}.layer_1.1.\1"),
        (PIXEL + r"\.mask_feature\.(weight|bias)", rf"{DECODER}.mask_projection.\1"),
        (PIXEL + r"\.level_encoding\.weight", f"{DECODER}.level_embed"),
        (
            PIXEL_LAYER
            + r"\.attentions\.0\.(sampling_offsets|attention_weights|value_proj|output_proj)\.(weight|bias)",
            DEFORMABLE + r".self_attn.\2.\3",
        ),
        (PIXEL_LAYER + r"\.ffns\.0\.layers\.0\.0\.(weight|bias)", DEFORMABLE + r".fc1.\2"),
        (PIXEL_LAYER + r"\.ffns\.0\.layers\.1\.(weight|bias)", DEFORMABLE + r".fc2.\2"),
        (PIXEL_LAYER + r"\.norms\.0\.(weight|bias)", DEFORMABLE + r".self_attn_layer_norm.\2"),
        (PIXEL_LAYER + r"\.norms\.1\.(weight|bias)", DEFORMABLE + r".final_layer_norm.\2"),
        (HEAD_LAYER + r"\.attentions\.0\.attn\.in_proj_(weight|bias)", LAYER + r".cross_attn.in_proj_\2"),
        (HEAD_LAYER + r"\.attentions\.0\.attn\.out_proj\.(weight|bias)", LAYER + r".cross_attn.out_proj.\2"),
        (HEAD_LAYER + r"\.attentions\.1\.attn\.out_proj\.(weight|bias)", LAYER + r".self_attn.out_proj.\2"),
        (HEAD_LAYER + r"\.ffns\.0\.layers\.0\.0\.(weight|bias)", LAYER + r".fc1.\2"),
        (HEAD_LAYER + r"\.ffns\.0\.layers\.1\.(weight|bias)", LAYER + r".fc2.\2"),
        (HEAD_LAYER + r"\.norms\.0\.(weight|bias)", LAYER + r".cross_attn_layer_norm.\2"),
        (HEAD_LAYER + r"\.norms\.1\.(weight|bias)", LAYER + r".self_attn_layer_norm.\2"),
        (HEAD_LAYER + r"\.norms\.2\.(weight|bias)", LAYER + r".final_layer_norm.\2"),
        (r"panoptic_head\.transformer_decoder\.post_norm\.(weight|bias)", rf"{TRANSFORMER}.decoder.layernorm.\1"),
        (r"panoptic_head\.query_embed\.weight", f"{TRANSFORMER}.queries_embedder.weight"),
        (r"panoptic_head\.query_feat\.weight", f"{TRANSFORMER}.queries_features.weight"),
        (r"panoptic_head\.level_embed\.weight", f"{TRANSFORMER}.level_embed.weight"),
        (r"panoptic_head\.cls_embed\.(weight|bias)", r"class_predictor.\1"),
    )
)
QKV = (
    (re.compile(STAGE + r"\.attn\.w_msa\.qkv\.(weight|bias)"), BLOCK + r".attention.{}_proj.\3"),
    (re.compile(HEAD_LAYER + r"\.attentions\.1\.attn\.in_proj_(weight|bias)"), LAYER + r".self_attn.{}_proj.\2"),
)
MERGING = re.compile(r"backbone\.stages\.(\d+)\.downsample\.(reduction|norm)\.(weight|bias)")
OUTPUT_NORM = re.compile(r"backbone\.norm(\d+)\.(weight|bias)")
MASK_MLP = re.compile(r"panoptic_head\.mask_embed\.(0|2|4)\.(weight|bias)")
DROPPED = re.compile(STAGE + r"\.attn\.w_msa\.relative_position_index")  # follows from the window's size

# What transformers' module has and mmdet's has not: the norm of an output that is not used, and a weight of the loss.
WITHOUT_COUNTERPART = (f"{ENCODER}.swin.layernorm.weight", f"{ENCODER}.swin.layernorm.bias", "criterion.empty_weight")

LEVELS, POINTS = 3, 4  # of the deformable attention, in both implementations


def read_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The state dict of an mmdet checkpoint, of tensors alone.

    Raises `ConfigError` where the file holds anything that `ALLOWED` does not name, or no state dict.
    """
    try:
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the object {named[1]}" if named else "something that is no weights"
        raise ConfigError(
            f"{path} holds {what}, which is not unpickled, for that could run any code; give OpenMMLab's own "
            "file, or one "
            f'saved as torch.save({{"state_dict": model.state_dict()}}, ...)'
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigError(f"cannot read {path} as a checkpoint ({first_line(error)}); is it whole?") from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(value, torch.Tensor) for value in state.values())
    ):
        raise ConfigError(f'{path} has no "state_dict" of tensors; give a checkpoint of mmdet 2.x')
    return dict(state)


def converted(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of an mmdet state dict under transformers' names.

    Raises `ConfigError` naming the tensors that no rule knows.
    """
    result, unknown = {}, []
    for name, value in state.items():
        found = _converted(name, value)
        if found is None:
            unknown.append(name)
        else:
            result.update(found)
    if unknown:
        hint = (
            "of mmdet 3.x, whose layout differs; give the checkpoint of mmdet 2.x"
            if any(re.search(r"layers\.\d+\.(self|cross)_attn", name) for name in unknown)
            else "of another network than Mask2Former with Swin"
        )
        listed = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise ConfigError(f"{len(unknown)} tensors of the detector's checkpoint are unknown ({listed}): it is {hint}")
    return result


def _converted(name, value):
    """The tensors that one of mmdet's becomes, by transformers' name; None where no rule knows it."""
    if DROPPED.fullmatch(name):
        return {}
    for pattern, target in NAMES:
        match = pattern.fullmatch(name)
        if match:
            return {match.expand(target): value}
    for pattern, target in QKV:
        match = pattern.fullmatch(name)
        if match:
            return {match.expand(target.format(part)): piece for part, piece in zip("qkv", value.chunk(3), strict=True)}
    match = MERGING.fullmatch(name)
    if match:
        place = f"{ENCODER}.swin.encoder.layers.{match[1]}.downsample.{match[2]}.{match[3]}"
        return {place: merging_order(value)}
    match = OUTPUT_NORM.fullmatch(name)
    if match:
        return {f"{ENCODER}.hidden_states_norms.stage{int(match[1]) + 1}.{match[2]}": value}
    match = MASK_MLP.fullmatch(name)
    if match:
        return {f"{TRANSFORMER}.decoder.mask_predictor.mask_embedder.{int(match[1]) // 2}.0.{match[2]}": value}
    return None


def merging_order(value: torch.Tensor) -> torch.Tensor:
    """The last axis [channels x 4 pixels], as mmdet merges them, in the order [4 pixels x channels] of Swin."""
    pixels = value.unflatten(-1, (-1, 4)).transpose(-1, -2)
    return pixels[..., [0, 2, 1, 3], :].flatten(-2)


def config_of(state: Mapping[str, torch.Tensor]) -> Mask2FormerConfig:
    """The config of a converted state dict: every size is read off the tensors.

    Raises `ConfigError` where a tensor that tells a size is missing.
    """
    try:
        return _config_of(state)
    except KeyError as error:
        raise ConfigError(
            f"the detector's checkpoint has no tensor for {error.args[0]}; is it Mask2Former with Swin?"
        ) from None


def _config_of(state):
    blocks: dict[int, int] = {}
    for name in state:
        match = re.search(r"swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.", name)
        if match:
            blocks[int(match[1])] = max(blocks.get(int(match[1]), 0), int(match[2]) + 1)
    stages = range(len(blocks))
    tables = [
        state[
            f"{ENCODER}.swin.encoder.layers.{i}.blocks.0.attention.relative_position_bias.relative_position_bias_table"
        ]
        for i in stages
    ]
    embed = state[f"{ENCODER}.swin.embeddings.norm.weight"].shape[0]
    fc1 = state[f"{ENCODER}.swin.encoder.layers.0.blocks.0.mlp.fc1.weight"].shape[0]
    feature = state[f"{DECODER}.level_embed"].shape[1]
    classes, hidden = state["class_predictor.weight"].shape
    return Mask2FormerConfig(
        backbone_config=SwinConfig(
            embed_dim=embed,
            depths=[blocks[i] for i in stages],
            num_heads=[table.shape[1] for table in tables],
            window_size=(int(tables[0].shape[0] ** 0.5) + 1) // 2,
            mlp_ratio=fc1 / embed,
            drop_path_rate=0.0,
            out_features=[f"stage{i + 1}" for i in stages],
        ),
        feature_size=feature,
        mask_feature_size=state[f"{DECODER}.mask_projection.weight"].shape[0],
        hidden_dim=hidden,
        encoder_feedforward_dim=state[f"{DECODER}.encoder.layers.0.fc1.weight"].shape[0],
        dim_feedforward=state[f"{TRANSFORMER}.decoder.layers.0.fc1.weight"].shape[0],
        encoder_layers=_count(state, rf"{re.escape(DECODER)}\.encoder\.layers\.(\d+)\."),
        decoder_layers=_count(state, rf"{re.escape(TRANSFORMER)}\.decoder\.layers\.(\d+)\.")
        + 1,  # it counts the first prediction
        num_attention_heads=state[f"{DECODER}.encoder.layers.0.self_attn.attention_weights.bias"].shape[0]
        // (LEVELS * POINTS),
        num_queries=state[f"{TRANSFORMER}.queries_features.weight"].shape[0],
        num_labels=classes - 1,
    )


def _count(state, pattern):
    return 1 + max((int(match[1]) for match in (re.match(pattern, name) for name in state) if match), default=-1)


def load(path: str | os.PathLike) -> Mask2FormerForUniversalSegmentation:
    """Transformers' module with the weights of an mmdet checkpoint, for evaluation, in float32.

    Raises `ConfigError` on a file that is no such checkpoint, naming what is in its way.
    """
    state = converted(read_checkpoint(path))
    model = Mask2FormerForUniversalSegmentation(config_of(state))
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(state) - set(WITHOUT_COUNTERPART))
    foreign = sorted(set(state) - set(wanted))
    wrong = [name for name in state if name in wanted and state[name].shape != wanted[name].shape]
    for what, names in (("lacks", missing), ("has, beyond the module,", foreign), ("has in another shape", wrong)):
        if names:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise ConfigError(
                f"{path} {what} {len(names)} tensors ({listed}); it is not mmdet's Mask2Former with Swin, or is damaged"
            )
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    return model.eval()
