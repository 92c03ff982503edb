"""Lines of advice on a run's settings, each from a measurement or a published failure. They change nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rfjax.config import Config
from rfjax.data.batch import BatchShapes
from rfjax.limits import BACKBONES

UNSTABLE_DEPTH = (
    24  # from here on bfloat16 without QK-norm is known to blow up (SD3, section 5.3.2, at high resolution)
)
UNSTABLE_TOKENS = 1024


def advice(config: Config, shapes: BatchShapes, platform: str | None = None) -> Iterable[str]:
    """Yields what a user would want to know before spending. `platform` is a name of `models.attention`, or None where
    the devices are not known yet."""
    model, train = config.model, config.train
    network = BACKBONES[model.backbone]
    tokens = math.prod(model.token_grid(shapes.latents)) + network.text_in_sequence * shapes.context[0]
    reasons = [f"depth {model.depth}"] * (model.depth >= UNSTABLE_DEPTH)
    reasons += [f"{tokens:,} tokens"] * (tokens > UNSTABLE_TOKENS)
    if train.compute_dtype == "bfloat16" and not model.qk_norm and reasons:
        yield (
            f"bfloat16 with {' and '.join(reasons)}: attention logits may grow until the loss blows up (SD3, section "
            "5.3.2); consider --config.model.qk_norm=True, and watch with --config.train.diagnostics_every=100"
        )
    if platform == "cuda" and train.unroll == 1 and model.depth > 1:
        yield (
            "on a GPU the step may be up to 1.4 times as fast without a loop over blocks, and need less memory: "
            "--config.train.unroll=0; it compiles for longer (docs/speed.md)"
        )
