"""The validation loss as a value: levels of t, a loss for each example and level, and its uncertainty.

Every example is seen at every level, with noise that depends only on the example, the level and the validation seed. So
the losses of two models differ because of the models, not the noise, and their difference is computed example by
example.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, UInt32

from rfjax.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A rule that gives L levels of t: t_i = (i + offset) / L for i = first, ..., first + L - 1."""

    first: int
    offset: float = 0.0
    last_left_out: int = 0  # how many of the last levels the average leaves out

    def numbers(self, levels: int) -> tuple[int, ...]:
        """The number i of each level. The noise of a level is keyed by its number, so grids with equally many levels
        have the same noise at equal t."""
        return tuple(range(self.first, self.first + levels))

    def times(self, levels: int) -> tuple[float, ...]:
        """The t of each level, from data (0) to noise (1)."""
        return tuple((number + self.offset) / levels for number in self.numbers(levels))

    def counts(self, levels: int) -> tuple[bool, ...]:
        """Whether each level enters the average."""
        return tuple(index < levels - self.last_left_out for index in range(levels))


GRIDS = {
    # SD3 paper, section 5.3.3: equidistant levels, averaged over all but the last (t = 1)
    "paper": Grid(first=1, last_left_out=1),
    # MLPerf Training, text-to-image: 0/8 ... 7/8
    "mlperf": Grid(first=0),
    "midpoints": Grid(first=0, offset=0.5),
}


def grid_name(grid: str, levels: int) -> str:
    """The name of the grid in a record, such as "paper-8"."""
    return f"{grid}-{levels}"


@dataclass(frozen=True, eq=False)
class ValidationLoss:
    """The squared error of the velocity, as an unweighted mean over a latent's elements, by example and level.

    Rows are in the order of the example ids. Averages are taken in float64 over all examples and over the levels that
    enter the mean (`Grid.counts`), so the division into batches does not matter.
    """

    grid: str  # the result of `grid_name`
    seed: int
    levels: tuple[float, ...]  # t of each level
    averaged: tuple[bool, ...]  # whether the level enters `loss`
    example_ids: UInt32[np.ndarray, " n"]
    per_example: Float32[np.ndarray, "n levels"]
    shapes: tuple[str, ...] = ()  # each example's latent shape, such as 40x24; () for a corpus of one shape

    @property
    def n(self) -> int:
        """The number of examples."""
        return len(self.example_ids)

    @property
    def example_losses(self) -> Float64[np.ndarray, " n"]:
        """Each example's mean over the levels that count."""
        return self.per_example[:, np.array(self.averaged)].astype(np.float64).mean(1)

    @property
    def loss(self) -> float:
        """The validation loss: the mean over examples and over the levels that the grid counts (`Grid.counts`)."""
        return float(self.example_losses.mean())

    @property
    def stderr(self) -> float:
        """The standard error of `loss` over examples."""
        return standard_error(self.example_losses)

    @property
    def bucket_losses(self) -> dict[str, dict[str, float | int]]:
        """The mean loss of each latent shape's examples, the standard error of this mean, and the number of examples;
        empty for a corpus of one shape."""
        losses, shapes = self.example_losses, np.array(self.shapes)
        each = {shape: losses[shapes == shape] for shape in dict.fromkeys(sorted(self.shapes))}
        return {
            shape: {"loss": float(own.mean()), "stderr": standard_error(own), "n": len(own)}
            for shape, own in each.items()
        }

    @property
    def level_losses(self) -> tuple[float, ...]:
        """The mean over examples at each level."""
        return tuple(self.per_example.astype(np.float64).mean(0).tolist())

    @property
    def level_stderrs(self) -> tuple[float, ...]:
        """The standard error over examples at each level."""
        return tuple(standard_error(losses) for losses in self.per_example.astype(np.float64).T)


def paired_difference(a: ValidationLoss, b: ValidationLoss) -> tuple[float, float]:
    """Returns (the mean over examples of a's loss minus b's, the standard error of this mean).

    Raises `ConfigError` if grid, seed or examples differ, because the losses are then not paired.
    """
    for name, ours, theirs in (("grid", a.grid, b.grid), ("seed", a.seed, b.seed), ("examples", a.n, b.n)):
        if ours != theirs:
            raise ConfigError(f"validation losses of {name} {ours} and {theirs} are not paired; use the same {name}")
    if not np.array_equal(a.example_ids, b.example_ids):
        raise ConfigError("validation losses of different example ids are not paired; evaluate both on one corpus")
    differences = a.example_losses - b.example_losses
    return float(differences.mean()), standard_error(differences)


def standard_error(values: Float64[np.ndarray, " n"]) -> float:
    """The standard error of the mean of `values`; nan for a single value."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
