"""Computes the roofline of a step, a lower bound of its time.

There are four limits: operations divided by the chip's peak; and bytes divided by the bandwidth of the memory, of the
links, and of the network between slices. A step takes at least the time of the slowest limit. The roofline is this
time, as if the compiler overlapped the other three with it completely. Real steps take longer. No JAX here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rfjax.config import TrainConfig
from rfjax.plan.targets import Target

LIMITS = ("compute", "memory", "links", "network")  # the limits of a step, fields of `Roofline`

# kind -> how often each device in a ring of n sends (n - 1) / n of the whole array (Thakur et al. 2005, section 4)
PASSES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2, "all-to-all": 1, "collective-permute": 1}


@dataclass(frozen=True)
class Collective:
    """An exchange within each group of devices."""

    kind: str
    bytes: int  # size of the whole array of one group, in one exchange
    ways: int  # number of devices in a group
    times: int = 1  # in a step
    name: str = ""
    between_slices: bool = False  # a group has one device of each slice, and exchanges over the slow network
    stride: int = 1  # between neighbours of a group, in the order of the devices: 8 for the group 0, 8, 16, ...

    @property
    def sent(self) -> float:
        """Bytes that one device sends in a step."""
        if self.kind == "collective-permute":
            return float(self.bytes * self.times)
        return self.bytes * self.times * PASSES[self.kind] * (self.ways - 1) / self.ways


@dataclass(frozen=True)
class Roofline:
    """The seconds that a step takes on one device, by each limit alone."""

    compute: float
    memory: float
    links: float
    network: float = 0.0  # between slices; 0 for one slice

    @property
    def step(self) -> float:
        return max(getattr(self, name) for name in LIMITS)

    @property
    def slowest(self) -> str:
        return max(LIMITS, key=lambda name: getattr(self, name))


def roofline(target: Target, flops: float, hbm_bytes: float, collectives: Sequence[Collective]) -> Roofline:
    """Computes the limits of a step on one device; `flops` and `hbm_bytes` are per device."""
    between = [item for item in collectives if item.between_slices]
    inside = [item for item in collectives if not item.between_slices]
    return Roofline(
        compute=flops / target.chip.device_flops,
        memory=hbm_bytes / target.chip.device_bandwidth,
        links=math.fsum(item.sent / target.bandwidth(item.ways, item.stride) for item in inside if item.ways > 1),
        network=sum(item.sent for item in between) / target.chip.device_slice_bandwidth if between else 0.0,
    )


def precision_note(target: Target, trains: Iterable[TrainConfig]) -> list[str]:
    """Returns a sentence if the products of some configs are slower than the peak of bfloat16 products, which the
    limit `compute` assumes; else nothing. A TPU's float32 products are bfloat16's at the default precision."""
    tpu = target.chip.kind == "tpu"
    slow = {train.matmul_precision for train in trains if train.compute_dtype == "float32"} - (
        {"default"} if tpu else set()
    )
    if not slow:
        return []
    rate = "a third of it at high precision and a sixth at highest" if tpu else "half of it, and far less at highest"
    given = f"config.train.compute_dtype is float32 (matmul_precision {', '.join(sorted(slow))})"
    return [f"{given}, and compute is at the peak of bfloat16 products: float32 products reach at most {rate}."]


def limits_of(slices: int) -> tuple[str, ...]:
    """The names of the limits of a step's time (compute, memory, ...) on a target with the given number of slices; the
    network between slices is a limit only if there are several."""
    return LIMITS if slices > 1 else LIMITS[:-1]


@dataclass(frozen=True)
class RunCost:
    days: float
    chip_hours: float
    money: float | None  # None without a price


def cost(target: Target, step_seconds: float, steps: int, price: float | None) -> RunCost:
    """Computes the cost of `steps` steps. `price` is the price of a chip-hour, or None if it is not known."""
    hours = step_seconds * steps / 3600.0
    chip_hours = hours * target.chips
    return RunCost(hours / 24.0, chip_hours, None if price is None else chip_hours * price)
