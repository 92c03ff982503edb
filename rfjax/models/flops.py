"""Floating-point operations of a network, by formula.

The x axis of a scaling law depends on these conventions. A multiply-add is two operations. Only matrix products are
counted, not norms, softmax and activations. In attention every token attends to every token. Modulation is counted once
per example, not per token. Training is three times the forward pass. Operations that rematerialisation repeats are
counted apart (`recompute_flops`), and enter neither the law nor the MFU. A network's class counts its operations
(`flops_by_part`); the parts that several networks share are here.
"""

from __future__ import annotations

import math
import pkgutil

from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.limits import BACKBONES

TRAINING_FACTOR = 3  # forward, and the gradients of inputs and of weights
PARAMETER_BYTES = 8  # of a parameter and its average, both float32; training/optimizer.py counts the optimiser's state


def patches(model: ModelConfig, shapes: BatchShapes) -> tuple[int, int]:
    """Returns (the number of image tokens, in all frames together; the number of values in a patch)."""
    return math.prod(model.token_grid(shapes.latents)), model.patch_values(shapes.latents[-1])


def sequence_tokens(model: ModelConfig, shapes: BatchShapes) -> int:
    """The number of tokens in the sequence of an example: the tokens of the image or clip and, if the network puts the
    text into the same sequence, the tokens of the text (with factorised attention, once per temporal position)."""
    text = shapes.context[0] if BACKBONES[model.backbone].text_in_sequence else 0
    return patches(model, shapes)[0] + model.batch_frames(shapes.latents) * text


def attended_sequences(model: ModelConfig, shapes: BatchShapes) -> tuple[tuple[int, int], ...]:
    """The sequences within which an example's tokens attend to each other, as (number of sequences, tokens of each).
    The first entry is for text and image; a second entry is for the attention over time, if there is one."""
    image, times = patches(model, shapes)[0], model.batch_frames(shapes.latents)
    streams = times, image // times + shapes.context[0]
    return (streams, (1, image)) if model.temporal_attention == "factorised" else (streams,)


def condition_embedders(model: ModelConfig, shapes: BatchShapes) -> int:
    """Operations of the embedders of the time and of the pooled text."""
    return 2 * model.width * (model.time_embedding_size + shapes.pooled + 2 * model.width)


def shared_blocks(model: ModelConfig, image: int, text: int) -> dict[str, int]:
    """Operations of all blocks of a network with one weight set for `image` and `text` tokens. In the last block text
    tokens end with the attention: they have no MLP and no output projection."""
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


# A remat policy -> the parts of the forward pass that the backward pass recomputes; a part that the network lacks
# counts as zero. The gradient of attention always recomputes the logits, because the forward pass keeps the log-sum-exp
# and not the probabilities. Under `full` the block's forward pass runs again as well, so the logits are listed twice.
RECOMPUTED: dict[str, tuple[str, ...]] = {
    "none": ("attention_logits",),
    "dots": ("attention_logits", "modulation"),
    "attention": ("attention_logits", "modulation", "qkv", "proj", "mlp", "conv_in"),
    "full": ("attention_logits", "attention_logits", "attention_values", "modulation", "qkv", "proj", "mlp", "conv_in"),
}


def flops_by_part(model: ModelConfig, shapes: BatchShapes) -> dict[str, int]:
    """Operations of one example's forward pass, by part of the network."""
    return pkgutil.resolve_name(BACKBONES[model.backbone].path).flops_by_part(model, shapes)


def forward_flops(model: ModelConfig, shapes: BatchShapes) -> int:
    """Operations of one example's forward pass."""
    return sum(flops_by_part(model, shapes).values())


def training_flops(model: ModelConfig, shapes: BatchShapes) -> int:
    """Operations of one example's training step, without rematerialisation or the optimiser."""
    return TRAINING_FACTOR * forward_flops(model, shapes)


def recompute_flops(model: ModelConfig, shapes: BatchShapes, remat: str) -> int:
    """Counts the operations of one example's forward pass that the backward pass repeats under the policy `remat`."""
    parts = flops_by_part(model, shapes)
    return sum(parts.get(name, 0) for name in RECOMPUTED[remat])
