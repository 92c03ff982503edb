"""Plans a point of a study on a target: its layout, memory, limits and cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from rfjax.config import Config
from rfjax.data.buckets import format_shape
from rfjax.errors import ConfigError
from rfjax.plan.compiled import Compiled, Compiler, attention_of, compile_step
from rfjax.plan.estimate import StepEstimate, estimate
from rfjax.plan.roofline import Roofline, RunCost, cost, roofline
from rfjax.plan.search import SLACK, candidates
from rfjax.plan.targets import Target
from rfjax.study.size import Size, size_of
from rfjax.study.study import Point
from rfjax.training.branches import steps_taken
from rfjax.training.chips import GIB
from rfjax.training.run import plan_run


@dataclass(frozen=True)
class PointPlan:
    """The plan of a point on a target: memory, time and cost. `config` has the planned layout: one that a search found
    or, if there was no search or it found none, the point's own."""

    point: str
    config: Config
    size: Size
    fits: bool
    searched: bool  # whether layouts other than the point's own were tried
    estimate: StepEstimate | None  # None if the point's own layout does not divide and no other was found
    compiled: Compiled | None
    limits: Roofline | None
    cost: RunCost | None
    attention: str  # the implementation that a run on the target uses
    notes: tuple[str, ...]

    @property
    def peak_bytes(self) -> int | None:
        if self.compiled:
            return self.compiled.peak_bytes
        return self.estimate.peak_bytes if self.estimate else None

    def to_json(self) -> dict:
        found = dataclasses.asdict(self)
        found["config"] = {"mesh": found["config"]["mesh"], "train": found["config"]["train"]}
        return found | {"peak_bytes": self.peak_bytes}


def plan_point(
    point: Point,
    target: Target,
    *,
    compiler: Compiler | None,
    search: bool = False,
    price: float | None = None,
    attempts: int = 4,
    say: Callable[[str], None] = print,
) -> PointPlan:
    """Plans a point in its own layout. If that does not fit, or with `search`, searches for the cheapest layout that
    fits and plans the point in it. If no layout fits, returns the plan of the point's own layout, which does not fit.

    With a `compiler`, memory, operations and exchanges are the compiled program's; with None they are estimates. A
    search tries only layouts that should fit, given the largest ratio so far of a program's memory to its estimate.
    The search ends after `attempts` layouts that did not fit. `price` is the price of a chip-hour. Raises `ConfigError`
    if the target cannot run the config's attention.
    """
    size, budget = size_of(point.config), target.chip.device_bytes
    notes = [*_buckets_note(point.config), *_together_note(point.config, target)]
    attention = attention_of(point.config, target)  # raises now, before compiling, if the chip cannot run it

    def attempt(config, estimated):
        return _try_layout(point.id, config, estimated, target, compiler, say, notes)

    own = _Attempt(point.config, None, None, False)
    if not search:
        try:
            estimated = estimate(point.config, target)
        except ConfigError as error:
            notes.append(f"as configured: {error}")
        else:
            own = attempt(point.config, estimated)
    tried, failed = own, 0
    if not own.fits:
        excess = max(1 / SLACK, own.excess) if compiler else 1.0
        for config, estimated in candidates(point.config, target, slack=SLACK if compiler else 1.0):
            if failed == attempts or estimated.peak_bytes * excess > budget:
                continue
            tried = attempt(config, estimated)
            if tried.fits:
                break
            failed, excess = failed + 1, max(excess, tried.excess)
        else:
            tried = own
            reason = f"none of {failed} layouts fits {target.name}" if failed else f"no layout should fit {target.name}"
            notes.append(reason)
    config, estimated, compiled, fits = tried
    limits = spent = None
    if fits:
        counts = compiled.counts if compiled else None
        limits = roofline(target, counts.flops, counts.hbm_bytes, counts.collectives) if counts else estimated.roofline
        spent = cost(target, limits.step, steps_taken(config.train), price)
    searched, said = not own.fits, tuple(notes)
    return PointPlan(point.id, config, size, fits, searched, estimated, compiled, limits, spent, attention, said)


class _Attempt(NamedTuple):
    """A layout that was tried. `estimate` is None if the batch or the parameters do not divide over the layout's mesh,
    or if the point's own layout was left out because of `search`."""

    config: Config
    estimate: StepEstimate | None
    compiled: Compiled | None
    fits: bool

    @property
    def excess(self) -> float:
        """The ratio of the compiled program's memory to its estimate; 0 if nothing was compiled. Other layouts are
        expected to exceed their estimates by the same ratio."""
        return self.compiled.peak_bytes / self.estimate.peak_bytes if self.compiled else 0.0


def _buckets_note(config) -> list[str]:
    run = plan_run(config)
    parts = run.corpus.parts
    if len(parts) == 1:
        return []
    latents = format_shape(parts[run.largest_part].shapes.latents)
    which = f"the largest of {len(parts)} aspect buckets, latents of {latents}"
    means = "what fits there fits in all, days are an upper bound, and FLOPs are the mean over the buckets' steps"
    return [f"a step is planned at {which}: {means}"]


def _together_note(config: Config, target: Target) -> list[str]:
    most = math.ceil(config.train.together / target.devices)
    if config.train.together == 1:
        return []
    given = f"planned alone; a program of config.train.together={config.train.together} runs holds up to {most} of them"
    return [f"{given} on each device, none split over devices, and needs the memory of as many runs"]


def _try_layout(id, config, estimated, target, compiler, say, notes) -> _Attempt:
    """Tests whether a layout fits: compiles it, or uses its estimate if `compiler` is None."""
    compiled, peak, layout = None, estimated.peak_bytes, _describe_layout(config, estimated)
    if compiler and estimated.state_bytes <= target.chip.device_bytes:  # else the state alone is too large to compile
        say(f"{id}: compiling for {target.name}, {layout}")
        compiled = compile_step(config, target, compiler)
        peak = compiled.peak_bytes
    fits = peak <= target.chip.device_bytes and (compiled is None or compiled.fits)
    if compiled:
        word, took = "fits" if fits else "does not fit", f"{compiled.host_bytes / GIB:.1f} GiB of host memory"
        say(f"{id}: {word}: peak {peak / GIB:.2f} GiB; {compiled.seconds:.0f} s, {took}")
    if compiled and compiled.counts and compiled.counts.unknown_kernels:
        notes.append(f"operations of the kernels {', '.join(compiled.counts.unknown_kernels)} are not counted")
    if compiled and compiled.counts and compiled.counts.unknown_loops:
        notes.append(f"{compiled.counts.unknown_loops} loops of the program have no known length and count once")
    if not fits:
        notes.append(f"{layout} does not fit: {peak / GIB:.1f} GiB")
    return _Attempt(config, estimated, compiled, fits)


def _describe_layout(config: Config, estimated: StepEstimate) -> str:
    """Describes a layout: `8x16x1, remat full, accumulate 1`. The mesh is in the order of `mesh_axes.LAYOUT`."""
    mesh = "x".join(map(str, estimated.mesh.values()))
    return f"{mesh}, remat {config.train.remat}, accumulate {config.train.accumulate}"
