"""Real classes of models that write captions, with tiny random weights; nothing is downloaded."""

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

WORDS = "a cat dog on the of photo picture red blue in with and an old small wooden table describe this image".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIDE = 32
CHAT = (
    "{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def _tokenizer(more_words=()):
    return BertTokenizer(
        vocab={word: number for number, word in enumerate([*SPECIAL, *WORDS, *more_words])},
        do_lower_case=True,
        model_max_length=64,
    )


def _stirred(model, seed, scale=3.0):
    """Weights under which what is written depends on the image, and ends at different lengths."""
    torch.manual_seed(seed)
    for name, value in model.named_parameters():
        value.data = torch.randn_like(value) * (scale / value.shape[-1] ** 0.5 if value.ndim > 1 else 0.1) + (
            value.ndim == 1 and name.endswith("weight")
        )
    return model.eval()


def _vision(**more):
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        **more,
    }


def save_blip(folder, seed=0, more_words=()):
    text = {
        "vocab_size": len(SPECIAL) + len(WORDS) + len(more_words),
        "hidden_size": 16,
        "encoder_hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=_vision(), projection_dim=16))
    _stirred(model, seed).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}), _tokenizer(more_words)).save_pretrained(
        folder
    )
    return folder


def save_git(folder, seed=0):
    config = GitConfig(
        vision_config=_vision(),
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    _stirred(GitForCausalLM(config), seed).save_pretrained(folder)
    GitProcessor(CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE), _tokenizer()).save_pretrained(
        folder
    )
    return folder


def save_llava(folder, seed=0, more_words=()):
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [*SPECIAL, "<image>", "user", "assistant", *WORDS, *more_words]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(pieces)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        additional_special_tokens=["<image>"],
    )
    text = {
        "model_type": "llama",
        "vocab_size": len(pieces),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    config = LlavaConfig(
        text_config=text,
        vision_config={"model_type": "clip_vision_model", **_vision()},
        image_token_index=pieces.index("<image>"),
        image_seq_length=16,
    )
    _stirred(LlavaForConditionalGeneration(config), seed).save_pretrained(folder)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    return folder
