"""Lists the candidate trunks of a study's sizes, and writes the config of the study that trains the chosen trunks."""

from __future__ import annotations

import pprint
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rfjax import config as schema
from rfjax.config import Config, TrainConfig
from rfjax.errors import ConfigError
from rfjax.laws.design import Trunk, runs_of_lengths
from rfjax.study.size import flops_before
from rfjax.study.study import Study
from rfjax.training.branches import departures
from rfjax.training.cohort import check_may_be_together
from rfjax.training.run import Run, plan_run

DECAY_SHAPE = "1-sqrt"  # the train.decay_shape that a design sets if the config's schedule is not wsd
PARTS = (8, 4, 2, 1)  # by default, the lengths of branches are the most steps of any size, divided by these
HEADER = "# Written by rfjax design; "
# The fields in which points of one size may differ, because the design sets them.
_MAY_DIFFER = (
    "name",
    "seed",
    "train.steps",
    "train.branches",
    "train.schedule",
    "train.decay_shape",
    "train.ema_every",
)


@dataclass(frozen=True)
class Size:
    """A size to choose from: its name in the new study, and its first point's run, with whose seed aspect buckets are
    ordered."""

    name: str
    run: Run

    @property
    def config(self) -> Config:
        return self.run.config

    @property
    def params(self) -> float:
        return float(self.run.parameter_count)

    @property
    def per_image(self) -> float:
        """Training FLOPs of an image; with buckets, the mean over the images of a whole cycle."""
        return float(self.run.flops_per_image)

    def flops(self, train: TrainConfig) -> int:
        """Training FLOPs of a trunk with all its branches: those of the trunk up to the last departure, and those of
        each branch after it leaves."""
        if not train.branches:
            return flops_before(self.run, train.steps)
        leaves = departures(train)
        ends = zip(train.branches, leaves, strict=True)
        own = (flops_before(self.run, end) - flops_before(self.run, at) for end, at in ends)
        return flops_before(self.run, max(leaves)) + sum(own)


def sizes_of(study: Study) -> list[Size]:
    """Returns the distinct sizes of a study's points, the smallest first.

    Raises `ConfigError` if two points of one size differ in a field that the design does not set (`_MAY_DIFFER`),
    because a design has one config for each size.
    """
    found: dict[tuple, Size] = {}
    first: dict[tuple, str] = {}
    for point in study.points:
        model, run = point.config.model, plan_run(point.config)
        check_may_be_together(point.config, run.corpus)
        made = Size(f"depth{model.depth}-width{model.width}", run)
        key = made.params, made.per_image
        other = found.setdefault(key, made)
        first.setdefault(key, point.id)
        differ = [name for name in schema.differences(other.config, point.config) if name not in _MAY_DIFFER]
        if differ:
            given = f"the points {first[key]} and {point.id} of {study.name} have one size and differ in"
            fields = ", ".join(f"config.{name}" for name in differ)
            raise ConfigError(
                f"{given} {fields}; a design has one setting of a size: give it as --{fields.split(', ')[0]}=..."
            )
    sizes = [found[key] for key in sorted(found)]
    if len({size.name for size in sizes}) < len(sizes):  # two sizes have one depth and width
        sizes = [replace(size, name=f"size{n}") for n, size in enumerate(sizes)]
    return sizes


def lengths_of(sizes: Sequence[Size], given: Sequence[int] | None) -> list[int]:
    """Returns the lengths of branches to choose from, in steps: `given`, or by default a choice made here.

    By default they are an eighth, a quarter, half and all of the steps of the longest run. Of these, a length is left
    out if its branch would leave its trunk before the warm-up ends. Raises `ConfigError` if the warm-up is a share of
    the steps, because branches of different trunks would then have different warm-ups.
    """
    share = next((size for size in sizes if size.config.train.warmup_steps == -1), None)
    if share is not None:
        said = "config.train.warmup_steps is -1, a share of each run's steps"
        most = max(share.config.train.warmup, 1)
        raise ConfigError(f"{said}; runs of a design share one: give a number, as --config.train.warmup_steps={most}")
    if given is not None:
        return list(given)
    most = max(size.config.train.steps for size in sizes)
    lengths = sorted({max(most // part, 1) for part in PARTS})
    return [each for each in lengths if all(_departs_after_warmup(size.config, each) for size in sizes)]


def _departs_after_warmup(config: Config, length: int) -> bool:
    try:
        changed = schema.apply_overrides(config, {"train.steps": length, "train.schedule": "wsd", "train.branches": ()})
    except ConfigError:
        return False
    return changed.train.departure >= changed.train.warmup


def candidates_of(sizes: Sequence[Size], lengths: Sequence[int]) -> tuple[list[Trunk], dict[tuple, dict]]:
    """Returns (the trunks that could be trained, {(size, images of the branches): overrides of the config}).

    Raises `ConfigError` for a length that a size's config does not take.
    """
    found, overrides = [], {}
    for number, size in enumerate(sizes):
        train = size.config.train
        # All trunks update the average of the weights at equal intervals of steps. By default the interval depends on a
        # trunk's longest length, so equal branches of two trunks would have different averages.
        cadence = replace(train, steps=max(lengths)).average_every
        for branches in runs_of_lengths(lengths):
            changes = {"train.steps": branches[-1], "train.schedule": "wsd", "train.ema_every": cadence}
            changes["train.branches"] = branches if len(branches) > 1 else ()
            if train.schedule != "wsd":
                changes["train.decay_shape"] = DECAY_SHAPE
            try:
                config = schema.apply_overrides(size.config, changes)
            except ConfigError as error:
                raise ConfigError(f"{size.name} with --lengths={','.join(map(str, lengths))}: {error}") from None
            if not _departs_after_warmup(size.config, branches[0]):
                given = f"a run of {branches[0]} steps of --lengths falls before the warm-up of {size.name} is over"
                raise ConfigError(f"{given} ({config.train.warmup} steps); leave it out, or warm up for less")
            images = tuple(float(size.run.stream.examples_before(length)) for length in branches)
            found.append(Trunk(size=number, params=size.params, images=images, flops=float(size.flops(config.train))))
            overrides[number, images] = changes
    return found, overrides


def schedule_text(sizes: Sequence[Size]) -> str:
    """Says how a design changes the config's schedule; "" if it does not."""
    others = sorted({size.config.train.schedule for size in sizes} - {"wsd"})
    if not others:
        return ""
    return f"the config's schedule is {', '.join(others)}; the design's runs have wsd, with decay_shape {DECAY_SHAPE}"


def steps_text(trunk: Trunk, sizes: Sequence[Size]) -> str:
    """The lengths of a trunk's branches in steps, as text."""
    stream = sizes[trunk.size].run.stream
    return " ".join(str(stream.step_after(int(images))) for images in trunk.images)


def config_text(
    what: str,
    name: str,
    trunks: Sequence[Trunk],
    sizes: Sequence[Size],
    overrides: Mapping[tuple, dict],
    seeds_known: Mapping[int, Sequence[int]],
) -> str:
    """Writes the text of the config file of a study that trains the trunks.

    `what` is the command that made the file, `name` the study's name. `seeds_known` maps a size to the seeds that it
    was already trained on, which are not used again.
    """
    base = schema.to_dict(sizes[0].config) | {"name": name}
    shared = schema.flatten(sizes[0].config)
    points: dict[str, dict] = {}
    taken = {number: set(seeds) for number, seeds in seeds_known.items()}
    for trunk in trunks:
        size, of_size = sizes[trunk.size], taken.setdefault(trunk.size, set())
        seed = size.config.seed
        while seed in of_size:
            seed += 1
        of_size.add(seed)
        flat = schema.flatten(size.config)
        own = {key: value for key, value in flat.items() if value != shared[key] and key != "name"}
        points[f"{size.name}-seed{seed}"] = own | overrides[trunk.size, trunk.images] | {"seed": seed}
    shown = {name: pprint.pformat(value, width=110, sort_dicts=False) for name, value in (("b", base), ("p", points))}
    return (
        f"{HEADER}{what}\n"
        f"from ml_collections import ConfigDict\n\nBASE = {shown['b']}\n\nPOINTS = {shown['p']}\n\n\n"
        "def get_config():\n    return ConfigDict(BASE)\n\n\ndef points():\n    return POINTS\n"
    )
