"""The plan of a study's point: its layout, memory, limits and cost on a target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from rfjax.config import Config
from rfjax.data.buckets import format_shape, largest
from rfjax.errors import ConfigError
from rfjax.plan.compiled import Compiled, attention_of, compile_step
from rfjax.plan.estimate import StepEstimate, estimate
from rfjax.plan.roofline import Roofline, RunCost, cost, roofline
from rfjax.plan.search import SLACK, candidates
from rfjax.plan.targets import Target
from rfjax.study.study import Point, Size, size_of
from rfjax.training.chips import GIB
from rfjax.training.run import plan_run


@dataclass(frozen=True)
class PointPlan:
    """What a point takes on a target; `config` is the layout planned, the point's own where it fits."""

    point: str
    config: Config
    size: Size
    fits: bool
    searched: bool
    estimate: StepEstimate | None  # None where the point's own layout does not divide and none was found
    compiled: Compiled | None
    limits: Roofline | None
    cost: RunCost | None
    attention: str  # what a run on the target computes it with
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
    compiles: bool,
    optimisation: str = "default",
    search: bool = False,
    price: float | None = None,
    attempts: int = 4,
    say: Callable[[str], None] = print,
) -> PointPlan:
    """Plans a point: as it is, and where that does not fit (or with `search`) in the cheapest layout that does.

    With `compiles`, at most `attempts` layouts of a search are compiled, each of those that should
    fit by what the ones before took; memory, operations and exchanges are the compiled program's.
    Without, they are estimates.
    """
    size, notes = size_of(point.config), _buckets_note(point.config)
    attention_of(point.config, target)  # refused before anything is compiled
    own = None if search else _tried(point.id, point.config, target, compiles, optimisation, say, notes)
    if own and own[3]:
        return _planned(point, target, size, own, False, price, notes)
    found = candidates(point.config, target, slack=SLACK if compiles else 1.0)
    failed = 0
    excess = max(1 / SLACK, _excess(own)) if compiles else 1.0
    for config, estimated in found:
        if failed == attempts or estimated.peak_bytes * excess > target.chip.hbm_bytes:
            continue
        tried = _tried(point.id, config, target, compiles, optimisation, say, notes, estimated)
        if tried[3]:
            return _planned(point, target, size, tried, True, price, notes)
        failed, excess = failed + 1, max(excess, _excess(tried))
    notes.append(f"none of {failed} layouts fits {target.name}" if failed else f"no layout should fit {target.name}")
    config, estimated, compiled, _ = own or (point.config, None, None, False)
    attention = attention_of(config, target)
    return PointPlan(point.id, config, size, False, True, estimated, compiled, None, None, attention, tuple(notes))


def _buckets_note(config) -> list[str]:
    corpus = plan_run(config).corpus
    if len(corpus.parts) == 1:
        return []
    which = format_shape(largest(corpus).shapes.latents)
    return [
        f"a step is planned at the largest of {len(corpus.parts)} aspect buckets, latents of {which}: what fits "
        "there fits in all, and "
        "days are an upper bound; FLOPs are the mean over the buckets' steps"
    ]


def _excess(tried) -> float:
    """How much more than its estimate a compiled layout took: those after it are expected to do the same."""
    return tried[2].peak_bytes / tried[1].peak_bytes if tried and tried[2] else 0.0


def _tried(id, config, target, compiles, optimisation, say, notes, estimated=None):
    """(config, estimate, compiled, fits), or None where the layout does not divide."""
    try:
        estimated = estimated or estimate(config, target)
    except ConfigError as error:
        notes.append(f"as configured: {error}")
        return None
    if not compiles or estimated.state_bytes > target.chip.hbm_bytes:  # the state alone: no need to compile
        fits = estimated.peak_bytes <= target.chip.hbm_bytes
        compiled = None
    else:
        say(f"{id}: compiling for {target.name}, {layout(config, estimated)}")
        compiled = compile_step(config, target, optimisation)
        fits = compiled.fits and compiled.peak_bytes <= target.chip.hbm_bytes
        word = "fits" if fits else "does not fit"
        say(
            f"{id}: {word}: peak {compiled.peak_bytes / GIB:.2f} GiB; {compiled.seconds:.0f} s, "
            f"{compiled.host_bytes / GIB:.1f} GiB of host memory"
        )
        if compiled.counts and compiled.counts.unknown_kernels:
            notes.append(f"operations of the kernels {', '.join(compiled.counts.unknown_kernels)} are not counted")
        if compiled.counts and compiled.counts.unknown_loops:
            notes.append(f"{compiled.counts.unknown_loops} loops of the program have no known length and count once")
    if not fits:
        needed = compiled.peak_bytes if compiled else estimated.peak_bytes
        notes.append(f"{layout(config, estimated)} does not fit: {needed / GIB:.1f} GiB")
    return config, estimated, compiled, fits


def _planned(point, target, size, tried, searched, price, notes) -> PointPlan:
    config, estimated, compiled, fits = tried
    limits = estimated.roofline
    if compiled and compiled.counts:
        counts = compiled.counts
        limits = roofline(target, counts.flops, counts.hbm_bytes, counts.collectives)
    spent = cost(target, limits.step, config.train.steps, price)
    attention = attention_of(config, target)
    return PointPlan(
        point.id, config, size, fits, searched, estimated, compiled, limits, spent, attention, tuple(notes)
    )


def layout(config: Config, estimated: StepEstimate) -> str:
    """`8x16x1, remat full, accumulate 1`: data, fsdp and tensor, and the rest of the layout."""
    mesh = "x".join(str(size) for size in estimated.mesh.values())
    return f"{mesh}, remat {config.train.remat}, accumulate {config.train.accumulate}"
