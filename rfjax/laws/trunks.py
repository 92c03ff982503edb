"""Estimates the scatter of runs that share trunks: between trunks, and between the runs of a trunk.

Branches of one trunk share its seed and all its steps before they left it. So they are not independent points, nor is a
trunk that is a point itself. The log loss of branch j of trunk i is the law plus two normal noises, u_i + e_ij: u has
the standard deviation `between`, and e has `within`. Both are found by restricted maximum likelihood (Patterson and
Thompson 1971). This method projects out of the residuals all directions that the law's parameters can fit, so that the
residuals of any estimator give the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components

from rfjax.evaluation.intervals import ENDS

# If no size has two seeds, only the law's misfit shows how far trunks scatter. So each standard deviation has a
# half-Cauchy prior, with these medians.
ASSUMED_BETWEEN, ASSUMED_WITHIN = 0.01, 0.005
SHOWN = (ENDS[0], 0.5, ENDS[1])  # quantiles: the interval's ends and the median
SCALES = np.geomspace(1e-5, 1.0, 121)  # the grid of standard deviations of log loss


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """The noise between trunks and within them, as standard deviations of log loss (of a score, for a link), with draws
    of both."""

    trunks: int
    two_seeds: int  # number of sizes with several trunks that differ only in their seed
    between: Float[np.ndarray, " draws"]
    within: Float[np.ndarray, " draws"]
    ratio: float  # between / within: exp of the posterior mean of its logarithm
    assumed: tuple[float, float] = (ASSUMED_BETWEEN, ASSUMED_WITHIN)  # medians of the priors

    @property
    def scales(self) -> dict[str, dict[str, float]]:
        """Returns {"between": each, "within": each}. `each` has the ends of the 95 % interval ("low", "high") and the
        median ("value")."""
        ends = {name: map(float, np.quantile(getattr(self, name), SHOWN)) for name in ("between", "within")}
        return {name: dict(zip(("low", "value", "high"), each, strict=True)) for name, each in ends.items()}

    @property
    def method(self) -> str:
        """Describes in words how the noise was estimated, and from how many sizes with several seeds."""
        several = f"{self.two_seeds} size{'s'[: self.two_seeds != 1]} with several seeds"
        known = several if self.two_seeds else "no size has two seeds: noise between trunks rests on misfit and prior"
        return f"{self.noise} ({known})"

    @property
    def noise(self) -> str:
        """Describes in words what noise was estimated, and how."""
        shown = {
            name: f"{each['value']:.1%} [{each['low']:.1%}, {each['high']:.1%}]" for name, each in self.scales.items()
        }
        return (
            f"normal noise between the {self.trunks} trunks of {shown['between']} and within them of "
            f"{shown['within']}, by restricted likelihood with half-Cauchy priors of scale {self.assumed[0]:.1%} and "
            f"{self.assumed[1]:.1%}"
        )

    def to_json(self) -> dict:
        counts = {"trunks": self.trunks, "sizes_with_several_seeds": self.two_seeds}
        return (
            counts
            | self.scales
            | {"ratio": self.ratio}
            | dict(zip(("assumed_between", "assumed_within"), self.assumed, strict=True))
        )


def roots_of(table: pd.DataFrame) -> list[str]:
    """Returns the name of each row's first trunk: the run that the row's run, its trunk, the trunk's trunk and so on
    left, which itself left none. For a run without a trunk it is the run's own name.

    Trunks are followed through the rows whose `run` they name. A trunk that has no row is a first trunk.
    """
    runs, left = table["run"].astype(str), {}
    if "trunk" in table:
        given = table["trunk"].astype(object)
        named = given.where(given.notna(), "").astype(str).str.strip()
        left = {run: trunk for run, trunk in zip(runs, named, strict=True) if trunk not in ("", run)}
    return [_root(run, left) for run in runs]


def _root(run: str, left: Mapping[str, str]) -> str:
    """Follows `left`, {run: the run that it left}, from a run to its end. Runs that leave each other in a circle, by
    mistake, all have the first of their names."""
    passed = []
    while run in left and run not in passed:
        passed.append(run)
        run = left[run]
    return min(passed[passed.index(run) :]) if run in passed else run


def with_roots(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Returns a table whose column `trunk` names first trunks (`roots_of`), which are found among all `runs`. So two
    rows share a trunk even if the run that joins them is not in the table, as a trunk that is no point of a law."""
    if "trunk" not in table:
        return table
    first = {run: root for run, root in zip(runs["run"].astype(str), roots_of(runs), strict=True) if root != run}
    roots = table["run"].astype(str).map(first)
    return table.assign(trunk=roots.where(roots.notna(), table["trunk"].astype(object)))


def trunks_of(table: pd.DataFrame) -> Int[np.ndarray, " runs"]:
    """Numbers the trunk of each row. A trunk, its branches and their branches share a number (`roots_of`); every other
    run has its own."""
    runs, roots = table["run"].astype(str), roots_of(table)
    left = {root for run, root in zip(runs, roots, strict=True) if root != run}
    # Draws depend on the order of the numbers: runs without branches come first.
    return np.unique([("trunk " if root in left else "run ") + root for root in roots], return_inverse=True)[1].ravel()


def trunk_means(
    values: Float[np.ndarray, " n *rest"], trunks: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " trunks *rest"]:
    """Returns the mean of `values` over the runs of each trunk, in the order of the trunks' numbers."""
    members = np.eye(trunks.max() + 1)[trunks]
    return (members / members.sum(axis=0)).T @ values


def are_shared(trunks: Int[np.ndarray, " runs"]) -> bool:
    """Whether any two runs share a trunk."""
    return len(np.unique(trunks)) < len(trunks)


def scatter(
    rng: np.random.Generator,
    jacobian: Float[np.ndarray, "n k"],
    residuals: Float[np.ndarray, " n"],
    trunks: Int[np.ndarray, " n"],
    log_x: Float[np.ndarray, "n v"],
    draws: int,
    assumed: tuple[float, float] = (ASSUMED_BETWEEN, ASSUMED_WITHIN),
) -> Scatter:
    """Estimates the noise between and within trunks, from the residuals of log loss and the law's derivatives.

    The residuals are projected onto the directions that the law's parameters cannot fit. They are then normal, with the
    covariance between² Z Zᵀ + within² I in the same projection, where Z assigns runs to trunks. One eigenvalue
    decomposition gives the likelihood on a whole grid of `between` and `within`. `assumed` are the medians of the
    priors of `between` and `within`. `log_x`, the law's variables, serves only to count the sizes with several seeds.
    """
    member = np.eye(trunks.max() + 1)[trunks]
    left, sizes, _ = np.linalg.svd(jacobian, full_matrices=True)
    rank = int((sizes > 1e-10 * sizes.max(initial=0.0)).sum())
    free = left[:, rank:]
    values, vectors = np.linalg.eigh(free.T @ member @ member.T @ free)
    squares = (vectors.T @ (free.T @ residuals)) ** 2
    between, within = (axis.ravel() for axis in np.meshgrid(SCALES, SCALES, indexing="ij"))
    variance = between[:, None] ** 2 * np.maximum(values, 0.0) + within[:, None] ** 2
    log_posterior = -0.5 * (np.log(variance) + squares / variance).sum(axis=1)
    for scale, median in zip((between, within), assumed, strict=True):  # half-Cauchy priors
        log_posterior += np.log(scale) - np.log1p((scale / median) ** 2)  # the grid is even in log scale
    weight = np.exp(log_posterior - log_posterior.max())
    weight /= weight.sum()
    ratio = float(np.exp(weight @ np.log(between / within)))
    chosen = rng.choice(len(weight), draws, p=weight)
    step = np.log(SCALES[1] / SCALES[0])
    jitter = np.exp(step * (rng.random((2, draws)) - 0.5))
    two_seeds = _sizes_with_several_seeds(trunks, log_x)
    drawn = {"between": between[chosen] * jitter[0], "within": within[chosen] * jitter[1]}
    return Scatter(trunks=len(np.unique(trunks)), two_seeds=two_seeds, ratio=ratio, assumed=assumed, **drawn)


def _sizes_with_several_seeds(trunks, log_x) -> int:
    """Counts the sizes at which several trunks were trained. The trunks of a size are assumed to have different seeds.

    Two trunks are taken to have one size if a branch of each has the same `log_x` (the law's variables). In a law of
    compute, which has no variable for size, branches of one size and length have equal compute. But if a table has
    nominal FLOPs that are equal for different sizes, these sizes are taken for one.
    """
    settings = np.unique(np.round(log_x, 9), axis=0, return_inverse=True)[1].ravel()
    met = np.zeros((trunks.max() + 1, settings.max() + 1))
    met[trunks, settings] = 1
    groups = connected_components(met @ met.T, directed=False)[1]
    present = np.unique(trunks)
    return int((np.bincount(groups[present]) > 1).sum())


def draw_noise(rng: np.random.Generator, found: Scatter, trunks: Int[np.ndarray, " n"]) -> Float[np.ndarray, "draws n"]:
    """Draws the noise of the log losses of runs that belong to these trunks, one row of noise for each draw of the two
    scales in `found`."""
    draws = len(found.between)
    shared = rng.standard_normal((draws, int(trunks.max()) + 1))[:, trunks]
    return found.between[:, None] * shared + found.within[:, None] * rng.standard_normal((draws, len(trunks)))
