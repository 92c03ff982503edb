"""Floating-point operations of a network, by formula.

Conventions, stated because the x axis of a scaling law depends on them: two operations per
multiply-add; matrix products only (norms, softmax and activations are not counted); attention
is bidirectional, every token to every token; modulation is computed once per example, not per
token; training is three times the forward pass. What rematerialisation computes again is kept
apart (`recompute_flops`) and enters neither the law nor the MFU. No JAX here.
"""

from __future__ import annotations

from collections.abc import Callable

from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes

TRAINING_FACTOR = 3  # forward, and the gradients of inputs and of weights
UVIT_BLOCKS = 2  # residual blocks of a level and direction, as in models/uvit.py
STATE_BYTES_PER_PARAMETER = 16  # float32 parameters, average, first and second moment


def _patches(model: ModelConfig, shapes: BatchShapes) -> tuple[int, int]:
    """(image tokens, numbers in a patch)."""
    height, width, channels = shapes.latents
    return (height // model.patch_size) * (width // model.patch_size), model.patch_size**2 * channels


def _conditions(model: ModelConfig, shapes: BatchShapes) -> int:
    """The embedders of the time and of the pooled text."""
    return 2 * model.width * (model.time_embedding_size + shapes.pooled + 2 * model.width)


def _shared_blocks(model: ModelConfig, image: int, text: int) -> dict[str, int]:
    """Blocks of one weight set for all tokens; in the last one the text ends after the attention."""
    h, mlp = model.width, int(model.mlp_ratio * model.width)
    joint, finished = image + text, (image + text) * (model.depth - 1) + image
    return {
        "modulation": 2 * h * h * 6 * model.depth,
        "qkv": 2 * 3 * h * h * joint * model.depth,
        "attention_logits": 2 * h * joint * joint * model.depth,
        "attention_values": 2 * h * joint * joint * model.depth,
        "proj": 2 * h * h * finished,
        "mlp": 2 * 2 * h * mlp * finished,
    }


def _dit(model: ModelConfig, shapes: BatchShapes) -> dict[str, int]:
    h, (image, patch_values), (text, context_size) = model.width, _patches(model, shapes), shapes.context
    return {
        "embeddings": 2 * h * (image * patch_values + text * context_size) + _conditions(model, shapes),
        **_shared_blocks(model, image, text),
        "final": 2 * h * (2 * h + image * patch_values),
    }


def _dit_class(model: ModelConfig, shapes: BatchShapes) -> dict[str, int]:
    h, (image, patch_values) = model.width, _patches(model, shapes)
    return {
        "embeddings": 2 * h * (image * patch_values + model.time_embedding_size + h + shapes.pooled),
        **_shared_blocks(model, image, 0),
        "final": 2 * h * (2 * h + image * patch_values),
    }


def _crossdit(model: ModelConfig, shapes: BatchShapes) -> dict[str, int]:
    """Its one modulation stands outside the blocks, which do not compute it again: it is with the embeddings."""
    h, mlp, depth = model.width, int(model.mlp_ratio * model.width), model.depth
    (image, patch_values), (text, context_size) = _patches(model, shapes), shapes.context
    return {
        "embeddings": 2 * h * (image * patch_values + text * (context_size + h) + 6 * h) + _conditions(model, shapes),
        "qkv": 2 * h * h * (4 * image + 2 * text) * depth,
        "attention_logits": 2 * h * image * (image + text) * depth,
        "attention_values": 2 * h * image * (image + text) * depth,
        "proj": 2 * h * h * 2 * image * depth,
        "mlp": 2 * 2 * h * mlp * image * depth,
        "final": 2 * h * image * patch_values,
    }


def _uvit(model: ModelConfig, shapes: BatchShapes) -> dict[str, int]:
    """Levels of halved resolution around shared blocks; `channels` of a level double with each."""
    h, (text, context_size) = model.width, shapes.context
    height, width, channels = shapes.latents
    levels = model.patch_size.bit_length() - 1
    sizes = [h >> (levels - level) for level in range(levels + 1)]  # the transformer's width is the last

    def convolution(level, source, target):  # 3x3: each place meets three along an axis, the two at the ends two
        return 2 * source * target * (3 * (height >> level) - 2) * (3 * (width >> level) - 2)

    residual = [(level, sizes[level]) for level in range(levels)] * (2 * UVIT_BLOCKS)  # down and up
    one_convolution = sum(convolution(level, size, size) for level, size in residual)
    linears = sum(2 * 2 * sizes[i] * sizes[i + 1] * (height >> i + 1) * (width >> i + 1) for i in range(levels))
    blocks = _shared_blocks(model, _patches(model, shapes)[0], text)
    return {
        "embeddings": 2 * h * text * context_size + convolution(0, channels, sizes[0]) + _conditions(model, shapes),
        **blocks,
        "modulation": blocks["modulation"] + sum(2 * h * 2 * size for _, size in residual),
        "conv_in": one_convolution,
        "conv_out": one_convolution,
        "levels": linears,
        "final": convolution(0, sizes[0], channels),
    }


def _mmdit(model: ModelConfig, shapes: BatchShapes) -> dict[str, int]:
    """Forward operations of one example, by part."""
    h, mlp = model.width, int(model.mlp_ratio * model.width)
    image, patch_values = _patches(model, shapes)
    text, context_size = shapes.context
    joint = image + text
    sets = model.weight_sets  # the text tokens are shared out among sets - 1 text streams
    blocks, dual = model.depth, model.dual_attention_blocks

    return {
        "embeddings": 2 * h * (image * patch_values + text * context_size) + _conditions(model, shapes),
        "modulation": 2 * h * h * (6 * sets * (blocks - 1) + 3 * dual + 6 + 2 * (sets - 1)),
        "qkv": 2 * 3 * h * h * (joint * blocks + image * dual),
        "attention_logits": 2 * h * (joint * joint * blocks + image * image * dual),
        "attention_values": 2 * h * (joint * joint * blocks + image * image * dual),
        "proj": 2 * h * h * (joint * (blocks - 1) + image + image * dual),
        "mlp": 2 * 2 * h * mlp * (joint * (blocks - 1) + image),
        "final": 2 * h * (2 * h + image * patch_values),
    }


PARTS: dict[str, Callable[[ModelConfig, BatchShapes], dict[str, int]]] = {
    "mmdit": _mmdit,
    "dit": _dit,
    "dit_class": _dit_class,
    "crossdit": _crossdit,
    "uvit": _uvit,
}

# Forward parts that the backward pass computes a second time. The attention logits are always
# among them: its backward keeps the log-sum-exp, not the probabilities. A network has some of these parts.
RECOMPUTED: dict[str, tuple[str, ...]] = {
    "none": ("attention_logits",),
    "dots": ("attention_logits", "modulation"),
    "attention": ("attention_logits", "modulation", "qkv", "proj", "mlp", "conv_in"),
    "full": ("attention_logits", "attention_logits", "attention_values", "modulation", "qkv", "proj", "mlp", "conv_in"),
}


def forward_flops(model: ModelConfig, shapes: BatchShapes) -> int:
    """Operations of one example's forward pass."""
    return sum(PARTS[model.backbone](model, shapes).values())


def training_flops(model: ModelConfig, shapes: BatchShapes) -> int:
    """Operations of one example's training step, without rematerialisation or the optimiser."""
    return TRAINING_FACTOR * forward_flops(model, shapes)


def recompute_flops(model: ModelConfig, shapes: BatchShapes, remat: str) -> int:
    """Operations of one example's training step that repeat the forward pass."""
    parts = PARTS[model.backbone](model, shapes)
    return sum(parts.get(name, 0) for name in RECOMPUTED[remat])


def state_bytes(parameters: int) -> int:
    """Bytes of parameters, their average and the optimiser's two moments, all float32."""
    return STATE_BYTES_PER_PARAMETER * parameters
