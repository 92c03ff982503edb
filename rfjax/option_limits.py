"""What the options of the command line may be. No JAX here."""

from __future__ import annotations

from rfjax.errors import ConfigError
from rfjax.limits import BATCH_END, COUNT_END, FEATURES_END, SIDE_END, format_number

# The largest value of each numeric option of the command line, by the option's name or by VERB.NAME. A larger number is
# taken for a slip, as in the ranges of `limits`. The verbs themselves check the smallest values.
OPTION_ENDS: dict[str, float | int] = {
    "batch": BATCH_END,
    "batch_size": BATCH_END,
    "beams": 1000,
    "between": 1,
    "budget": 1e60,  # FLOPs
    "captions": 1000,
    "clips": 10**5,  # of one file
    "clusters": 10**7,
    "compare.checks": 1,
    "compare.choose": 10**6,
    "compare.page_mb": 10**4,
    "compare.pairs": 10**6,  # for a rater
    "compare.quality": 100,
    "compare.raters": 10**4,
    "corrupt_limit": 1,
    "counting_threshold": 1,
    "delta": 1e6,
    "drop_largest_losses": 10**9,
    "fixed_images": 1e18,
    "flops_per_param_image": 1e12,
    "frames": SIDE_END,
    "gpus_per_node": 1024,
    "grace": 10**6,  # seconds
    "images_per_prompt": 10**6,
    "inspect.samples": 1000,  # all in one picture
    "lost_after": 10**6,  # seconds
    "max_loss": 1e30,
    "max_objects": 10**6,
    "max_overlap": 1,
    "max_restarts": 10**6,
    "max_shard_gb": 10**6,
    "max_tokens": FEATURES_END,
    "model_size": SIDE_END,
    "nodes": 10**6,
    "position_threshold": 1e6,
    "price": 1e9,
    "probes": 10**7,
    "process_id": 10**6,
    "processes": 10**6,
    "prompt_effect": 100,  # log odds
    "rater_effect": 100,
    "resamples": 10**5,
    "sample.samples": 10**5,  # of each prompt
    "seed": 2**32 - 1,
    "seeds": 100,
    "shard_size": 10**7,
    "shown_frames": 1000,  # of one clip, in one message to a model
    "size": SIDE_END,
    "skip_batches": COUNT_END,
    "step": COUNT_END,
    "steps": 10**6,
    "t5_tokens": 4096,  # attention over a caption takes memory by the square
    "target": 1e60,  # FLOPs
    "temperature": 1e6,
    "threads": 4096,
    "threshold": 1,
    "ties": 1,
    "tokens_per_image": 10**9,
    "validation_share": 1,
    "within": 1,
}


def check_option(verb: str, name: str, value: float | int) -> None:
    """Raises `ConfigError` if the value of an option, such as `batch_size`, is above the option's limit or not a
    number. Raises KeyError for an option without a limit."""
    end = OPTION_ENDS.get(f"{verb}.{name}")
    end = OPTION_ENDS[name] if end is None else end
    if not value <= end:
        option = f"--{name.replace('_', '-')}"
        raise ConfigError(f"{option} is {format_number(value)}; it must be at most {end:,}")


def parse_latent_size(text: str | None, option: str = "--latent-size") -> tuple[int, int] | None:
    """Parses an option's text HxW. Returns (height, width) in latent pixels, or None for None. Raises `ConfigError` for
    other text, and for a side that is 0 or above `SIDE_END`."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise ConfigError(f"{option} is {text!r}; it must be height x width in latent pixels, such as 40x24")
    for side in map(int, sides):
        if not 1 <= side <= SIDE_END:
            raise ConfigError(f"{option} has a side of {side}; it must be at least 1 and at most {SIDE_END}")
    return int(sides[0]), int(sides[1])
