"""mmdet's checkpoint of Mask2Former, read and converted: names, orders of tensors, and what is refused."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers import tiny_scorers
from rfjax.errors import ConfigError
from rfjax.scorers import mask2former, mmdet
from rfjax.scorers.files import content_hash


def as_mmdet(model):
    """A model's state dict as mmdet 2.x names and orders it: the inverse of the tested conversion, written
    independently, module by module, from mmdet's own definitions."""
    out = {}
    pixel, head = model.model.pixel_level_module, model.model.transformer_module

    def put(name, module):
        for part in ("weight", "bias"):
            if getattr(module, part, None) is not None:
                out[f"{name}.{part}"] = getattr(module, part).detach().clone()

    def put_qkv(name, attention, separator):
        for part in ("weight", "bias"):
            pieces = [getattr(getattr(attention, f"{which}_proj"), part) for which in ("q", "k", "v")]
            out[f"{name}{separator}{part}"] = torch.cat(pieces).detach().clone()

    swin = pixel.encoder.swin
    put("backbone.patch_embed.projection", swin.embeddings.patch_embeddings.projection)
    put("backbone.patch_embed.norm", swin.embeddings.norm)
    for i, stage in enumerate(swin.encoder.layers):
        for j, block in enumerate(stage.blocks):
            name = f"backbone.stages.{i}.blocks.{j}"
            put(f"{name}.norm1", block.layernorm_before)
            put(f"{name}.norm2", block.layernorm_after)
            table = block.attention.relative_position_bias.relative_position_bias_table
            out[f"{name}.attn.w_msa.relative_position_bias_table"] = table.detach().clone()
            out[f"{name}.attn.w_msa.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
            put_qkv(f"{name}.attn.w_msa.qkv", block.attention, ".")
            put(f"{name}.attn.w_msa.proj", block.attention.o_proj)
            put(f"{name}.ffn.layers.0.0", block.mlp.fc1)
            put(f"{name}.ffn.layers.1", block.mlp.fc2)
        if stage.downsample is not None:
            channels = stage.downsample.norm.weight.shape[0] // 4
            order = []  # the place in the published order of mmdet's entry (channel, row, column)
            for channel in range(channels):
                for row in range(2):
                    for column in range(2):
                        order.append((column * 2 + row) * channels + channel)
            name = f"backbone.stages.{i}.downsample"
            out[f"{name}.reduction.weight"] = stage.downsample.reduction.weight.detach()[:, order].clone()
            out[f"{name}.norm.weight"] = stage.downsample.norm.weight.detach()[order].clone()
            out[f"{name}.norm.bias"] = stage.downsample.norm.bias.detach()[order].clone()
    for i in range(4):
        put(f"backbone.norm{i}", pixel.encoder.hidden_states_norms[f"stage{i + 1}"])

    decoder, prefix = pixel.decoder, "panoptic_head.pixel_decoder"
    for i, projection in enumerate(decoder.input_projections):
        put(f"{prefix}.input_convs.{i}.conv", projection[0])
        put(f"{prefix}.input_convs.{i}.gn", projection[1])
    put(f"{prefix}.lateral_convs.0.conv", decoder.adapter_1[0])
    put(f"{prefix}.lateral_convs.0.gn", decoder.adapter_1[1])
    put(f"{prefix}.output_convs.0.conv", decoder.layer_1[0])
    put(f"{prefix}.output_convs.0.gn", decoder.layer_1[1])
    put(f"{prefix}.mask_feature", decoder.mask_projection)
    out[f"{prefix}.level_encoding.weight"] = decoder.level_embed.detach().clone()
    for i, layer in enumerate(decoder.encoder.layers):
        name = f"{prefix}.encoder.layers.{i}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            put(f"{name}.attentions.0.{part}", getattr(layer.self_attn, part))
        put(f"{name}.ffns.0.layers.0.0", layer.fc1)
        put(f"{name}.ffns.0.layers.1", layer.fc2)
        put(f"{name}.norms.0", layer.self_attn_layer_norm)
        put(f"{name}.norms.1", layer.final_layer_norm)

    for i, layer in enumerate(head.decoder.layers):
        name = f"panoptic_head.transformer_decoder.layers.{i}"
        out[f"{name}.attentions.0.attn.in_proj_weight"] = layer.cross_attn.in_proj_weight.detach().clone()
        out[f"{name}.attentions.0.attn.in_proj_bias"] = layer.cross_attn.in_proj_bias.detach().clone()
        put(f"{name}.attentions.0.attn.out_proj", layer.cross_attn.out_proj)
        put_qkv(f"{name}.attentions.1.attn.in_proj", layer.self_attn, "_")
        put(f"{name}.attentions.1.attn.out_proj", layer.self_attn.out_proj)
        put(f"{name}.ffns.0.layers.0.0", layer.fc1)
        put(f"{name}.ffns.0.layers.1", layer.fc2)
        put(f"{name}.norms.0", layer.cross_attn_layer_norm)
        put(f"{name}.norms.1", layer.self_attn_layer_norm)
        put(f"{name}.norms.2", layer.final_layer_norm)
    put("panoptic_head.transformer_decoder.post_norm", head.decoder.layernorm)
    put("panoptic_head.query_embed", head.queries_embedder)
    put("panoptic_head.query_feat", head.queries_features)
    put("panoptic_head.level_embed", head.level_embed)
    put("panoptic_head.cls_embed", model.class_predictor)
    for i, place in enumerate((0, 2, 4)):
        put(f"panoptic_head.mask_embed.{place}", head.decoder.mask_predictor.mask_embedder.get_submodule(f"{i}.0"))
    return out


@pytest.fixture(scope="module")
def model():
    return tiny_scorers.mask2former(seed=3)


@pytest.fixture
def checkpoint(model, tmp_path):
    def write(state=None, meta=None):
        path = tmp_path / "mask2former.pth"
        torch.save(
            {"meta": meta or {"mmdet_version": "2.24.1"}, "state_dict": as_mmdet(model) if state is None else state},
            path,
        )
        return path

    return write


def test_the_converted_model_is_the_same_function(model, checkpoint):
    """Catches a tensor under another's name, q, k and v in another order, and Swin's merging unsorted."""
    meta = {
        "mmdet_version": "2.24.1",
        "CLASSES": ("person",),
        "epoch": 50,
        "best": np.float64(0.46),
        "PALETTE": np.arange(6),
    }
    loaded = mmdet.load(checkpoint(meta=meta))
    image = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = loaded(pixel_values=image), model(pixel_values=image)
    for name in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)
    assert loaded.config.backbone_config.depths == [1, 2, 1, 1]


def test_merged_patches_are_what_unfold_gives(model):
    """mmdet merges with `unfold`, which decides the order of its weight. Catches any other order of the four pixels."""
    merge = model.model.pixel_level_module.encoder.swin.encoder.layers[0].downsample
    state = as_mmdet(model)
    image = torch.randn(2, 8, 6, 10, generator=torch.Generator().manual_seed(1))
    unfolded = functional.unfold(image, 2, stride=2).transpose(1, 2)  # [batch, places, channels x 4]
    normal = functional.layer_norm(
        unfolded,
        (32,),
        state["backbone.stages.0.downsample.norm.weight"],
        state["backbone.stages.0.downsample.norm.bias"],
    )
    wanted = normal @ state["backbone.stages.0.downsample.reduction.weight"].T
    with torch.no_grad():
        found = merge(image.flatten(2).transpose(1, 2), (6, 10))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_official_file_is_known_by_its_hash(checkpoint, monkeypatch):
    """Catches a score of any checkpoint being called GenEval's."""
    path = checkpoint()
    assert mask2former.load(path, torch.device("cpu")).kind == "other"
    monkeypatch.setattr(mask2former, "OFFICIAL_SHA256", content_hash(path)[:8])
    assert mask2former.load(path, torch.device("cpu")).kind == "official"


class Stranger:
    """An object that no checkpoint may hold: unpickling runs its constructor's code."""

    made = False

    def __setstate__(self, state):
        Stranger.made = True


def test_a_checkpoint_with_code_is_refused_unrun(checkpoint):
    """Catches `weights_only=False`, and an allow-list that lets anything through."""
    stranger = Stranger()
    stranger.value = 1
    with pytest.raises(ConfigError, match="Stranger, which is not unpickled"):
        mmdet.load(checkpoint(meta={"hook": stranger}))
    assert not Stranger.made


def test_what_is_not_mmdets_is_refused_by_name(model, checkpoint, tmp_path):
    """Catches weights that are left random without a word."""
    state = as_mmdet(model)
    lacking = dict(state)
    del lacking["panoptic_head.query_feat.weight"]
    with pytest.raises(ConfigError, match="queries_features"):
        mmdet.load(checkpoint(lacking))
    newer = {name.replace("attentions.0", "self_attn"): value for name, value in state.items()}
    with pytest.raises(ConfigError, match="mmdet 3.x"):
        mmdet.load(checkpoint(newer))
    foreign = dict(state) | {"panoptic_head.extra.weight": torch.zeros(1)}
    with pytest.raises(ConfigError, match=r"panoptic_head\.extra\.weight"):
        mmdet.load(checkpoint(foreign))
    torn = tmp_path / "torn.pth"
    torn.write_bytes(checkpoint().read_bytes()[:5000])
    with pytest.raises(ConfigError, match="check that it is whole"):
        mmdet.load(torn)
