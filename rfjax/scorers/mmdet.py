"""Loads OpenMMLab's Mask2Former checkpoints into transformers' module.

The layouts are those of mmdet 2.x (`backbone.*`, `panoptic_head.*`) and of transformers'
`Mask2FormerForUniversalSegmentation`. Most tensors are renamed (`NAMES`); two kinds are rebuilt:

- queries, keys and values: mmdet stores them, in this order, as one matrix, which is cut in three;
- Swin's patch merging: mmdet takes four pixels with `unfold`, channel by channel, in the order (row, column) of
  (0,0) (0,1) (1,0) (1,1); the published Swin and transformers take them pixel by pixel, as (0,0) (1,0) (0,1) (1,1).

A checkpoint is read with `weights_only=True`: only objects on torch's own list and in `ALLOWED` are unpickled.
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
from rfjax.scorers.pretrained import first_line, first_names

# An mmdet checkpoint's `meta` may hold numpy numbers and arrays besides plain values.
_scalar, _array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
ALLOWED = [
    np.dtype,
    np.ndarray,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
    np.dtypes.Int32DType,
    np.dtypes.BoolDType,
    _scalar,  # functions that make numbers and arrays; before numpy 2 their module has another name
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
MSA = STAGE + r"\.attn\.w_msa"
SAMPLING = "(sampling_offsets|attention_weights|value_proj|output_proj)"
TENSOR = r"\.(weight|bias)"
BIAS_TABLE = "attention.relative_position_bias.relative_position_bias_table"

# (pattern of mmdet's full name, transformers' name).
NAMES = (
    (r"backbone\.patch_embed\.projection" + TENSOR, rf"{ENCODER}.swin.embeddings.patch_embeddings.projection.\1"),
    (r"backbone\.patch_embed\.norm" + TENSOR, rf"{ENCODER}.swin.embeddings.norm.\1"),
    (STAGE + r"\.norm1" + TENSOR, BLOCK + r".layernorm_before.\3"),
    (STAGE + r"\.norm2" + TENSOR, BLOCK + r".layernorm_after.\3"),
    (MSA + r"\.relative_position_bias_table", f"{BLOCK}.{BIAS_TABLE}"),
    (MSA + r"\.proj" + TENSOR, BLOCK + r".attention.o_proj.\3"),
    (STAGE + r"\.ffn\.layers\.0\.0" + TENSOR, BLOCK + r".mlp.fc1.\3"),
    (STAGE + r"\.ffn\.layers\.1" + TENSOR, BLOCK + r".mlp.fc2.\3"),
    (PIXEL + r"\.input_convs\.(\d+)\.conv" + TENSOR, rf"{DECODER}.input_projections.\1.0.\2"),
    (PIXEL + r"\.input_convs\.(\d+)\.gn" + TENSOR, rf"{DECODER}.input_projections.\1.1.\2"),
    (PIXEL + r"\.lateral_convs\.0\.conv\.weight", f"{DECODER}.adapter_1.0.weight"),
    (PIXEL + r"\.lateral_convs\.0\.gn" + TENSOR, rf"{DECODER}.adapter_1.1.\1"),
    (PIXEL + r"\.output_convs\.0\.conv\.weight", f"{DECODER}.layer_1.0.weight"),
    (PIXEL + r"\.output_convs\.0\.gn" + TENSOR, rf"{DECODER}.layer_1.1.\1"),
    (PIXEL + r"\.mask_feature" + TENSOR, rf"{DECODER}.mask_projection.\1"),
    (PIXEL + r"\.level_encoding\.weight", f"{DECODER}.level_embed"),
    (PIXEL_LAYER + r"\.attentions\.0\." + SAMPLING + TENSOR, DEFORMABLE + r".self_attn.\2.\3"),
    (PIXEL_LAYER + r"\.ffns\.0\.layers\.0\.0" + TENSOR, DEFORMABLE + r".fc1.\2"),
    (PIXEL_LAYER + r"\.ffns\.0\.layers\.1" + TENSOR, DEFORMABLE + r".fc2.\2"),
    (PIXEL_LAYER + r"\.norms\.0" + TENSOR, DEFORMABLE + r".self_attn_layer_norm.\2"),
    (PIXEL_LAYER + r"\.norms\.1" + TENSOR, DEFORMABLE + r".final_layer_norm.\2"),
    (HEAD_LAYER + r"\.attentions\.0\.attn\.in_proj_(weight|bias)", LAYER + r".cross_attn.in_proj_\2"),
    (HEAD_LAYER + r"\.attentions\.0\.attn\.out_proj" + TENSOR, LAYER + r".cross_attn.out_proj.\2"),
    (HEAD_LAYER + r"\.attentions\.1\.attn\.out_proj" + TENSOR, LAYER + r".self_attn.out_proj.\2"),
    (HEAD_LAYER + r"\.ffns\.0\.layers\.0\.0" + TENSOR, LAYER + r".fc1.\2"),
    (HEAD_LAYER + r"\.ffns\.0\.layers\.1" + TENSOR, LAYER + r".fc2.\2"),
    (HEAD_LAYER + r"\.norms\.0" + TENSOR, LAYER + r".cross_attn_layer_norm.\2"),
    (HEAD_LAYER + r"\.norms\.1" + TENSOR, LAYER + r".self_attn_layer_norm.\2"),
    (HEAD_LAYER + r"\.norms\.2" + TENSOR, LAYER + r".final_layer_norm.\2"),
    (r"panoptic_head\.transformer_decoder\.post_norm" + TENSOR, rf"{TRANSFORMER}.decoder.layernorm.\1"),
    (r"panoptic_head\.query_embed\.weight", f"{TRANSFORMER}.queries_embedder.weight"),
    (r"panoptic_head\.query_feat\.weight", f"{TRANSFORMER}.queries_features.weight"),
    (r"panoptic_head\.level_embed\.weight", f"{TRANSFORMER}.level_embed.weight"),
    (r"panoptic_head\.cls_embed" + TENSOR, r"class_predictor.\1"),
)
QKV = (
    (MSA + r"\.qkv" + TENSOR, BLOCK + r".attention.{}_proj.\3"),
    (HEAD_LAYER + r"\.attentions\.1\.attn\.in_proj_(weight|bias)", LAYER + r".self_attn.{}_proj.\2"),
)
MERGING = r"backbone\.stages\.(\d+)\.downsample\.(reduction|norm)" + TENSOR
OUTPUT_NORM = r"backbone\.norm(\d+)" + TENSOR
MASK_MLP = r"panoptic_head\.mask_embed\.(0|2|4)" + TENSOR
DROPPED = MSA + r"\.relative_position_index"  # transformers computes it from the window's size

# Tensors that only transformers' module has: the norm of an unused output, and a weight of the loss.
WITHOUT_COUNTERPART = (f"{ENCODER}.swin.layernorm.weight", f"{ENCODER}.swin.layernorm.bias", "criterion.empty_weight")

LEVELS, POINTS = 3, 4  # of deformable attention, in both implementations


def read_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Reads the state dict of an mmdet checkpoint.

    Raises `ConfigError` if the file holds an object that may not be unpickled, or no state dict of tensors.
    """
    try:
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the object {named[1]}" if named else "an object"
        raise ConfigError(
            f"{path} holds {what}, which is not unpickled, because that could run any code; give OpenMMLab's own file, "
            'or one saved as torch.save({"state_dict": model.state_dict()}, ...)'
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigError(f"cannot read {path} as a checkpoint ({first_line(error)}); check that it is whole") from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    tensors = isinstance(state, Mapping) and all(isinstance(value, torch.Tensor) for value in state.values())
    if not tensors or not state:
        raise ConfigError(f'{path} has no "state_dict" of tensors; give a checkpoint of mmdet 2.x')
    return dict(state)


def convert(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Converts an mmdet state dict to transformers' names.

    Raises `ConfigError`, naming tensors that no rule covers, if there are any.
    """
    result, unknown = {}, []
    for name, value in state.items():
        found = _convert_tensor(name, value)
        if found is None:
            unknown.append(name)
        else:
            result.update(found)
    if unknown:
        newer = any(re.search(r"layers\.\d+\.(self|cross)_attn", name) for name in unknown)
        what = "mmdet 3.x, whose layout differs" if newer else "another network than Mask2Former with Swin"
        listed = f"{len(unknown)} unknown tensors ({first_names(unknown)})"
        raise ConfigError(f"the detector's checkpoint has {listed}: it is of {what}; give a checkpoint of mmdet 2.x")
    return result


def _convert_tensor(name, value):
    """Converts one mmdet tensor to {transformers' name: tensor}. Returns {} for a tensor that is not needed, and None
    if no rule covers its name."""
    if re.fullmatch(DROPPED, name):
        return {}
    for pattern, target in NAMES:
        if match := re.fullmatch(pattern, name):
            return {match.expand(target): value}
    for pattern, target in QKV:
        if match := re.fullmatch(pattern, name):
            return {match.expand(target.format(part)): piece for part, piece in zip("qkv", value.chunk(3), strict=True)}
    if match := re.fullmatch(MERGING, name):
        place = f"{ENCODER}.swin.encoder.layers.{match[1]}.downsample.{match[2]}.{match[3]}"
        return {place: merging_order(value)}
    if match := re.fullmatch(OUTPUT_NORM, name):
        return {f"{ENCODER}.hidden_states_norms.stage{int(match[1]) + 1}.{match[2]}": value}
    if match := re.fullmatch(MASK_MLP, name):
        return {f"{TRANSFORMER}.decoder.mask_predictor.mask_embedder.{int(match[1]) // 2}.0.{match[2]}": value}
    return None


def merging_order(value: torch.Tensor) -> torch.Tensor:
    """Reorders the last axis from mmdet's [channels x 4 pixels] to Swin's [4 pixels x channels]."""
    pixels = value.unflatten(-1, (-1, 4)).transpose(-1, -2)
    return pixels[..., [0, 2, 1, 3], :].flatten(-2)


def config_of(state: Mapping[str, torch.Tensor]) -> Mask2FormerConfig:
    """Infers the config of a converted state dict: every size comes from the tensors.

    Raises `ConfigError` if a tensor that is needed for this is missing.
    """
    try:
        return _config_of(state)
    except KeyError as error:
        lacking = f"the detector's checkpoint has no tensor for {error.args[0]}"
        raise ConfigError(f"{lacking}; give one of Mask2Former with Swin") from None


def _config_of(state):
    stages = range(_count(state, f"{ENCODER}.swin.encoder.layers", ".blocks"))
    tables = [state[f"{ENCODER}.swin.encoder.layers.{i}.blocks.0.{BIAS_TABLE}"] for i in stages]
    embed = state[f"{ENCODER}.swin.embeddings.norm.weight"].shape[0]
    fc1 = state[f"{ENCODER}.swin.encoder.layers.0.blocks.0.mlp.fc1.weight"].shape[0]
    sampled = state[f"{DECODER}.encoder.layers.0.self_attn.attention_weights.bias"].shape[0]
    classes, hidden = state["class_predictor.weight"].shape
    return Mask2FormerConfig(
        backbone_config=SwinConfig(
            embed_dim=embed,
            depths=[_count(state, f"{ENCODER}.swin.encoder.layers.{i}.blocks") for i in stages],
            num_heads=[table.shape[1] for table in tables],
            window_size=(int(tables[0].shape[0] ** 0.5) + 1) // 2,
            mlp_ratio=fc1 / embed,
            drop_path_rate=0.0,
            out_features=[f"stage{i + 1}" for i in stages],
        ),
        feature_size=state[f"{DECODER}.level_embed"].shape[1],
        mask_feature_size=state[f"{DECODER}.mask_projection.weight"].shape[0],
        hidden_dim=hidden,
        encoder_feedforward_dim=state[f"{DECODER}.encoder.layers.0.fc1.weight"].shape[0],
        dim_feedforward=state[f"{TRANSFORMER}.decoder.layers.0.fc1.weight"].shape[0],
        encoder_layers=_count(state, f"{DECODER}.encoder.layers"),
        decoder_layers=1 + _count(state, f"{TRANSFORMER}.decoder.layers"),  # transformers counts one more
        num_attention_heads=sampled // (LEVELS * POINTS),
        num_queries=state[f"{TRANSFORMER}.queries_features.weight"].shape[0],
        num_labels=classes - 1,
    )


def _count(state, place, within=""):
    """Counts the numbered modules directly below `place`. If `within` is given, the count ends with the last module in
    which the name goes on with `within`."""
    pattern = re.compile(rf"{re.escape(place)}\.(\d+){re.escape(within)}\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, state) if match), default=-1)


def load(path: str | os.PathLike) -> Mask2FormerForUniversalSegmentation:
    """Loads transformers' module with the weights of an mmdet checkpoint, in evaluation mode, in float32.

    Raises `ConfigError` for a file that is not such a checkpoint, naming tensors that do not fit.
    """
    state = convert(read_checkpoint(path))
    model = Mask2FormerForUniversalSegmentation(config_of(state))
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(state) - set(WITHOUT_COUNTERPART))
    foreign = sorted(set(state) - set(wanted))
    wrong = [name for name in state if name in wanted and state[name].shape != wanted[name].shape]
    for what, names in (("lacks", missing), ("has, beyond the module,", foreign), ("has in another shape", wrong)):
        if names:
            fault = f"{what} {len(names)} tensors ({first_names(names)})"
            raise ConfigError(f"{path} {fault}; give a whole checkpoint of mmdet's Mask2Former with Swin")
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    return model.eval()
