"""How long a step must take: the operations over the peak, the bytes over the memory and the links.

The step cannot be faster than the slowest of the three, and is predicted to take as long: the
compiler overlaps the others with it. Real steps take longer. No JAX here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rfjax.plan.targets import Target

# Bytes that a device sends, over the bytes of the whole array: a ring over n devices passes
# (n - 1) / n of it along once, or twice for an all-reduce (Thakur et al. 2005, section 4).
PASSES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2, "all-to-all": 1, "collective-permute": 1}


@dataclass(frozen=True)
class Collective:
    """One exchange; `bytes` are those of the whole array on one group of devices, once."""

    kind: str
    bytes: int
    ways: int  # devices of a group
    times: int = 1  # a step
    name: str = ""

    @property
    def sent(self) -> float:
        """Bytes that one device sends in a step."""
        if self.kind == "collective-permute":
            return float(self.bytes * self.times)
        return self.bytes * self.times * PASSES[self.kind] * (self.ways - 1) / self.ways


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step on one device by each limit."""

    compute: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.links)

    @property
    def slowest(self) -> str:
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


def roofline(target: Target, flops: float, hbm_bytes: float, collectives: Sequence[Collective]) -> Roofline:
    """The limits of one device's step: `flops` and `hbm_bytes` are that device's."""
    return Roofline(
        compute=flops / target.chip.peak_flops,
        memory=hbm_bytes / target.chip.hbm_bandwidth,
        links=sum(item.sent / target.bandwidth(item.ways) for item in collectives if item.ways > 1),
    )


@dataclass(frozen=True)
class RunCost:
    days: float
    chip_hours: float
    money: float | None  # None without a price


def cost(target: Target, step_seconds: float, steps: int, price: float | None) -> RunCost:
    """Of `steps` steps; `price` is that of a chip-hour."""
    hours = step_seconds * steps / 3600.0
    chip_hours = hours * target.chips
    return RunCost(hours / 24.0, chip_hours, None if price is None else chip_hours * price)
