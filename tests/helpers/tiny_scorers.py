"""Models of the real classes, small and with random weights, written as their users would have them."""

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from rfjax.scorers.object_names import OBJECT_NAMES


def mask2former(seed=3, classes=80, queries=12):
    """Every weight is random, norms and biases too: a tensor that is mixed up with another shows."""
    torch.manual_seed(seed)
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(
            embed_dim=8,
            depths=[1, 2, 1, 1],
            num_heads=[1, 2, 2, 4],
            window_size=7,
            drop_path_rate=0.0,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        encoder_feedforward_dim=24,
        dim_feedforward=40,
        num_queries=queries,
        num_labels=classes,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_(0.1 * torch.randn_like(value))
            if "class_predictor" in name:  # so that some objects pass the threshold
                value.mul_(20)
    return model


def clip(folder, seed=5, image_size=224, patch=56, activation="quick_gelu", **vision):
    torch.manual_seed(seed)
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[])
    text = CLIPTextConfig(
        hidden_act=activation,
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
    )
    settings = (
        dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, hidden_act=activation)
        | vision
    )
    seen = CLIPVisionConfig(**settings, image_size=image_size, patch_size=patch, projection_dim=16)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=seen.to_dict(), projection_dim=16)).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _of_coco():
    """COCO's names by label, as DETR's config has them: 91 labels, of which some are no class."""
    names = [{"computer mouse": "mouse", "tv remote": "remote"}.get(name, name) for name in OBJECT_NAMES]
    labels = ["N/A", *names[:11], "N/A", *names[11:]]
    return {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}


def _stirred(model, head):
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_(0.1 * torch.randn_like(value))
            if head in name:  # so that some objects pass the threshold
                value.mul_(25)
    return model.eval()


def detr(folder, seed=11):
    torch.manual_seed(seed)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage4"])
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=6,
        **_of_coco(),
    )
    _stirred(DetrForObjectDetection(config), "class_labels_classifier").save_pretrained(folder)
    DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def yolos(folder, seed=12):
    torch.manual_seed(seed)
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 64],
        patch_size=16,
        num_detection_tokens=6,
        **_of_coco(),
    )
    _stirred(YolosForObjectDetection(config), "class_labels_classifier").save_pretrained(folder)
    YolosImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(folder)
    return folder


def vjepa(folder, seed=13):
    """V-JEPA 2 with its probe, as transformers publishes it, for clips of 32 pixels."""
    torch.manual_seed(seed)
    config = VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=8,
        tubelet_size=2,
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=2,
        mlp_ratio=2,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        num_pooler_layers=1,
        num_labels=7,
    )
    model = VJEPA2ForVideoClassification(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    model.save_pretrained(folder)
    return folder
