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
STATE_BYTES_PER_PARAMETER = 16  # float32 parameters, average, first and second moment


def _mmdit(model: ModelConfig, shapes: BatchShapes) -> dict[str, int]:
    """Forward operations of one example, by part."""
    h, mlp = model.width, int(model.mlp_ratio * model.width)
    height, width, channels = shapes.latents
    image = (height // model.patch_size) * (width // model.patch_size)
    text, context_size = shapes.context
    patch_values = model.patch_size**2 * channels
    joint = image + text
    sets = model.weight_sets  # the text tokens are shared out among sets - 1 text streams
    blocks, dual = model.depth, model.dual_attention_blocks

    return {
        "embeddings": 2 * h * (image * patch_values + text * context_size)
        + 2 * h * (model.time_embedding_size + h)
        + 2 * h * (shapes.pooled + h),
        "modulation": 2 * h * h * (6 * sets * (blocks - 1) + 3 * dual + 6 + 2 * (sets - 1)),
        "qkv": 2 * 3 * h * h * (joint * blocks + image * dual),
        "attention_logits": 2 * h * (joint * joint * blocks + image * image * dual),
        "attention_values": 2 * h * (joint * joint * blocks + image * image * dual),
        "proj": 2 * h * h * (joint * (blocks - 1) + image + image * dual),
        "mlp": 2 * 2 * h * mlp * (joint * (blocks - 1) + image),
        "final": 2 * h * (2 * h + image * patch_values),
    }


PARTS: dict[str, Callable[[ModelConfig, BatchShapes], dict[str, int]]] = {"mmdit": _mmdit}

# Forward parts that the backward pass computes a second time. The attention logits are always
# among them: its backward keeps the log-sum-exp, not the probabilities.
RECOMPUTED: dict[str, tuple[str, ...]] = {
    "none": ("attention_logits",),
    "dots": ("attention_logits", "modulation"),
    "attention": ("attention_logits", "modulation", "qkv", "proj", "mlp"),
    "full": ("attention_logits", "attention_logits", "attention_values", "modulation", "qkv", "proj", "mlp"),
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
    return sum(parts[name] for name in RECOMPUTED[remat])


def state_bytes(parameters: int) -> int:
    """Bytes of parameters, their average and the optimiser's two moments, all float32."""
    return STATE_BYTES_PER_PARAMETER * parameters
