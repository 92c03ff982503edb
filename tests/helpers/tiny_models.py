"""The real classes of SD3's frozen models with tiny random weights, in diffusers' folders; nothing is downloaded."""

import torch
from diffusers import AutoencoderKL
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

START, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,'!-"


def clip_tokenizer(pad):
    """Letters, at a word's end and before it, and one merge, so that order and merging both count."""
    pieces = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "ca", "at</w>", START, END, "!!"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(
        vocab=vocabulary, merges=[("c", "a"), ("a", "t</w>")], pad_token=pad, model_max_length=77
    ), vocabulary


def save_clip(folder, number, hidden, projection, pad, seed):
    tokenizer, vocabulary = clip_tokenizer(pad)
    suffix = "" if number == 1 else f"_{number}"
    torch.manual_seed(seed)
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=hidden,
            num_attention_heads=2,
            num_hidden_layers=3,
            intermediate_size=2 * hidden,
            vocab_size=len(vocabulary),
            projection_dim=projection,
            max_position_embeddings=77,
            bos_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[pad],
            initializer_factor=20.0,
            hidden_act="quick_gelu" if number == 1 else "gelu",
        )
    )
    for _name, value in model.named_parameters():  # norms and biases that do something
        if value.ndim == 1:
            value.data += 0.2 * torch.randn_like(value)
    model.save_pretrained(folder / f"text_encoder{suffix}")
    tokenizer.save_pretrained(folder / f"tokenizer{suffix}")


def save_t5(folder):
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -1.5), ("cat", -3.0)]
    vocabulary += [(letter, -4.0 - number / 10) for number, letter in enumerate(LETTERS)]
    torch.manual_seed(3)
    model = T5EncoderModel(
        T5Config(
            vocab_size=len(vocabulary) + 2,
            d_model=96,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
    )
    for value in model.parameters():
        value.data += 0.1 * torch.randn_like(value)
    model.save_pretrained(folder / "text_encoder_3")
    T5Tokenizer(vocab=vocabulary, extra_ids=2, model_max_length=512).save_pretrained(folder / "tokenizer_3")


def save_autoencoder(folder):
    torch.manual_seed(4)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=32,
    )
    model.save_pretrained(folder / "vae")


def save_models(folder):
    """vae, text_encoder, text_encoder_2, text_encoder_3 and their tokenizers."""
    save_clip(folder, 1, hidden=32, projection=32, pad=END, seed=1)
    save_clip(folder, 2, hidden=48, projection=40, pad="!!", seed=2)
    save_t5(folder)
    save_autoencoder(folder)
    return folder
