"""Frozen models of kinds that SD3 does not have, of the real classes with tiny random weights."""

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    AutoencoderTiny,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "cat", "dog", "on", "the", "moon", "cup", "coffee")


def save_tokenizer(folder, first, last, length):
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = " ".join(filter(None, (first, "$A", last)))
    special = [(word, vocabulary[word]) for word in (first, last) if word]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=length
    ).save_pretrained(folder)


def scatter(model, seed):
    """Random weights of which every one counts: biases and scales too."""
    generator = torch.Generator().manual_seed(seed)
    for value in model.parameters():
        value.data += 0.1 * torch.randn(value.shape, generator=generator)
    return model.eval()


def save_bert(folder):
    """A sentence encoder, its tokenizer beside it, as such models are published."""
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    torch.manual_seed(5)
    scatter(BertModel(config), 5).save_pretrained(folder)
    save_tokenizer(folder, "[CLS]", "[SEP]", 16)


def save_decoder(folder):
    """A language model without a token at a text's beginning or end: an empty caption has no token."""
    config = Gemma2Config(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=48,
        max_position_embeddings=64,
        query_pre_attn_scalar=16,
        attn_implementation="eager",
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    torch.manual_seed(6)
    scatter(Gemma2ForCausalLM(config), 6).save_pretrained(folder)
    save_tokenizer(folder, "", "", 64)


def flux2():
    torch.manual_seed(7)
    model = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
    )
    generator = torch.Generator().manual_seed(8)
    model.bn.running_mean.copy_(torch.randn(16, generator=generator))
    model.bn.running_var.copy_(0.5 + torch.rand(16, generator=generator))
    return model


def deep_compression():
    torch.manual_seed(9)
    sides = {"block_types": "ResBlock", "block_out_channels": (8, 8, 16), "layers_per_block": (1, 1, 1)}
    return AutoencoderDC(
        latent_channels=4,
        scaling_factor=0.41407,
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()},
    )


def tiny():
    torch.manual_seed(10)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
        scaling_factor=1.25,
        shift_factor=0.5,
    )


def _wan(seed, **sizes):
    torch.manual_seed(seed)
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=3,
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.3, -0.2, 0.1],
        latents_std=[1.5, 0.7, 2.0],
        **sizes,
    )


def wan():
    """Frames by 4 and sides by 4, where Wan 2.1 has sides by 8."""
    return _wan(12, dim_mult=[1, 1, 2], scale_factor_spatial=4)


def wan_residual():
    """As Wan 2.2: pictures in patches of 2x2, frames by 4, and other blocks."""
    return _wan(
        13,
        dim_mult=[1, 2, 2],
        scale_factor_spatial=8,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
    )


def hunyuan():
    torch.manual_seed(14)
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.9,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
        mid_block_add_attention=True,
    )


AUTOENCODERS = {"AutoencoderKLFlux2": flux2, "AutoencoderDC": deep_compression, "AutoencoderTiny": tiny}
OF_CLIPS = {"wan": wan, "wan_residual": wan_residual, "hunyuan": hunyuan}


def save_kinds(folder, autoencoder):
    """A folder with one autoencoder of the tables above, a sentence encoder and a language model."""
    scatter({**AUTOENCODERS, **OF_CLIPS}[autoencoder](), 11).save_pretrained(folder / "vae")
    save_bert(folder / "text_encoder_minilm")
    save_decoder(folder / "text_encoder_llm")
    return folder
