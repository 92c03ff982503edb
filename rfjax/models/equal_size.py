"""Backbones of equal size: finds the hidden size at which two backbones have equally many parameters, or FLOPs.

SD3's comparison of backbones (section 5.2.3) does not say whether parameters or FLOPs were held equal. The choice
matters: a backbone with one weight set has half of MM-DiT's parameters at the same FLOPs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.errors import ConfigError
from rfjax.limits import BACKBONES, POSITION_MULTIPLE
from rfjax.models.backbone import make_backbone, parameter_count
from rfjax.models.flops import forward_flops

LARGEST_RATIO = 8  # the search ends at this ratio of hidden sizes


@functools.cache
def parameters(model: ModelConfig, shapes: BatchShapes) -> int:
    """The number of trainable parameters, counted from the network's own shapes."""
    return parameter_count(make_backbone(model, shapes, attention="xla"))


MEASURES: dict[str, Callable[[ModelConfig, BatchShapes], int]] = {"parameters": parameters, "flops": forward_flops}


@dataclass(frozen=True, kw_only=True)
class Match:
    """The network that `match_size` found, with its size and the reference's."""

    model: ModelConfig
    size: int  # parameters, or forward operations of one example
    reference: int  # the reference's size, in the same unit

    @property
    def mismatch(self) -> float:
        """size / reference - 1."""
        return self.size / self.reference - 1


# {what `match_size` keeps of the reference (its argument `hold`): two functions}. The first takes the reference, and
# returns the step between hidden sizes. The second takes the reference and a hidden size, and returns the head size.
HOLDS: dict[str, tuple[Callable, Callable]] = {
    "head_size": (lambda model: model.head_size, lambda model, hidden: model.head_size),
    "heads": (lambda model: model.heads, lambda model, hidden: hidden // model.heads),
}


def match_size(
    reference: ModelConfig, shapes: BatchShapes, *, by: str, hold: str = "head_size", **differences
) -> Match:
    """Returns the network that is `reference` with the fields `differences` changed, and with the hidden size at which
    its number of parameters or of FLOPs (`by`) is nearest to the reference's.

    The depth is kept. `hold` says whether the size of a head or the number of heads is kept; with few heads, a
    fixed number of heads gives finer steps of the hidden size. Hidden sizes are multiples of what is kept (the size
    of a head, or the number of heads), of 4 for the position embedding and, for `uvit`, of the patch size, because
    its convolutional levels halve the channels. "Nearest" compares ratios. Raises `ConfigError` for an unknown `by` or
    `hold`, and if no hidden size up to eight times the reference's is large enough.
    """
    for name, value, table in (("by", by, MEASURES), ("hold", hold, HOLDS)):
        if value not in table:
            raise ConfigError(f"{name} is {value!r}; it must be {' or '.join(table)}")
    measure, (step_of, head_size_of) = MEASURES[by], HOLDS[hold]
    target, step = measure(reference, shapes), step_of(reference)
    other = dataclasses.replace(reference, **differences)
    divisor = BACKBONES[other.backbone].width_divisor
    step = math.lcm(step, POSITION_MULTIPLE, getattr(other, divisor) if divisor else 1)
    last = LARGEST_RATIO * reference.width // step

    def made(count):
        hidden = count * step
        return dataclasses.replace(other, hidden=hidden, head_size=head_size_of(reference, hidden))

    def measured(count):
        return measure(made(count), shapes)

    if measured(last) < target:
        given = f"no hidden size of {other.backbone} up to {last * step} has the {target:,} {by} of the reference"
        raise ConfigError(f"{given}; its depth {reference.depth} is too small for that")
    # Find the first count that reaches the target; sizes grow about as the square of the hidden size.
    low, high, probe = 1, last, reference.width // step
    while low < high:
        probe = min(max(probe, low), high - 1)
        size = measured(probe)
        low, high = (probe + 1, high) if size < target else (low, probe)
        probe = round(probe * math.sqrt(target / size))
    sizes = {count: measured(count) for count in (low - 1, low) if count}
    best = min(sizes, key=lambda count: max(sizes[count] / target, target / sizes[count]))
    return Match(model=made(best), size=sizes[best], reference=target)
