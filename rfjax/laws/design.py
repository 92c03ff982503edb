"""Chooses what to train next: the trunks and branches that tell most about the loss at a larger budget.

The parametric law is taken as linear in its parameters near each of its draws. Branch j of trunk i has log loss
law + u_i + e_ij (`rfjax.laws.trunks`), so a trunk whose branches have the derivatives J adds the information

    J' V^-1 J,   V = between^2 11' + within^2 I

and the variance of the predicted log loss at the target is g' M^-1 g, with g the law's derivatives there and M the sum
over trunks. Its mean over the draws is made small (a c-optimal design, averaged over a prior: Chaloner and Verdinelli
1995, section 4), by greedy choice and then exchange of trunks within the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rfjax.errors import ConfigError
from rfjax.laws.budgets import Cost, optimum
from rfjax.laws.laws import PARAMETRIC

LEAST_TRUNKS = len(PARAMETRIC.parameters) + 2
MOST_SEEDS = 2  # of one size: a hundred runs of the smallest would tell most, of a law that need not hold so far down
HALF_WIDTH = 1.96  # of a 95 % interval, in standard deviations
_RIDGE = 1e-9  # of information, in units of that of all candidates
_EXCHANGES = 60
RESTARTS, KEPT = 8, 0.6  # searches, and the share of the best design that each begins with
_STRIDES = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A trunk that could be trained: the size by number, its parameters, the images of each branch, and the FLOPs that
    trunk and branches take in all."""

    size: int
    params: float
    images: tuple[float, ...]
    flops: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What a design is judged by: draws of the law, the noise, the target's FLOPs, and what is known already."""

    draws: Float[np.ndarray, "draws 5"]  # in the law's own order: E, log A, alpha, log B, beta
    between: float
    within: float
    target: float
    cost: Cost
    known: Sequence[
        tuple[Float[np.ndarray, " of_trunk"], Float[np.ndarray, " of_trunk"]]
    ] = ()  # params, images of each trunk


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A design: its trunks, the FLOPs they take, and the half-width of the 95 % interval of log loss at the target."""

    trunks: tuple[Trunk, ...]
    flops: float
    half_width: float


class Information:
    """The information of each candidate under each draw, and the variance that a choice of them gives."""

    def __init__(self, problem: Problem, candidates: Sequence[Trunk]):
        self.candidates = tuple(candidates)
        self.flops = np.array([each.flops for each in candidates])
        self.sizes = np.array([each.size for each in candidates])
        centre = np.log([each.params for each in candidates]).mean(), np.log(candidates[0].images).mean()
        inner = PARAMETRIC.recentre(problem.draws, -np.array(centre))

        def derivatives(params, images):
            z = np.log(np.stack(np.broadcast_arrays(params, images), axis=-1)) - centre
            return np.stack([PARAMETRIC.jacobian(row, z) for row in inner])

        def information(params, images):
            rows = derivatives(params, images)
            count = rows.shape[1]
            noise = problem.between**2 * np.ones((count, count)) + problem.within**2 * np.eye(count)
            return np.einsum("sik,ij,sjl->skl", rows, np.linalg.inv(noise), rows)

        each = np.stack([information(one.params, np.array(one.images)) for one in candidates], axis=1)
        known = sum((information(*trunk) for trunk in problem.known), np.zeros_like(each[:, 0]))
        self._scale = 1 / np.sqrt(np.einsum("sckk->sk", each) + 1e-300)
        square = self._scale[:, :, None] * self._scale[:, None]
        self.each = each * square[:, None]
        self.known = known * square + _RIDGE * np.eye(inner.shape[1])
        best = [np.ravel(found) for found in optimum(problem.draws, problem.target, problem.cost)]
        at = zip(inner, *best, strict=True)
        z = [(row, np.log([[params, images]]) - centre) for row, params, images in at]
        self.goal = np.concatenate([PARAMETRIC.jacobian(row, point) for row, point in z]) * self._scale

    def variance(self, information: Float[np.ndarray, "draws *batch 5 5"]) -> Float[np.ndarray, "*batch"]:
        """The mean over draws of the variance of log loss at the target."""
        batch = information.shape[1:-2]
        goal = self.goal.reshape(len(self.goal), *(1 for _ in batch), -1, 1)
        solved = np.linalg.solve(information, np.broadcast_to(goal, (*information.shape[:-1], 1)))
        return np.asarray((goal * solved).sum(axis=(-2, -1)).mean(axis=0))

    def chosen(self, places: Sequence[int]) -> Chosen:
        """The design of these candidates, by their places; a place twice is a second seed."""
        variance = float(self.variance(self.known + self.each[:, list(places)].sum(axis=1)))
        trunks = tuple(self.candidates[place] for place in sorted(places, key=lambda p: (self.sizes[p], p)))
        flops = float(self.flops[list(places)].sum())
        return Chosen(trunks=trunks, flops=flops, half_width=HALF_WIDTH * variance**0.5)

    def seeds_twice(self, places: Sequence[int]) -> bool:
        """Whether some size is trained on two seeds, from which the noise between trunks is known."""
        return len(set(self.sizes[list(places)])) < len(places)

    def fitting(self, places: Sequence[int], spare: float, most_seeds: int) -> Int[np.ndarray, " fits"]:
        """The candidates of at most `spare` FLOPs whose size has fewer than `most_seeds` among `places`."""
        taken = np.bincount(self.sizes[list(places)], minlength=self.sizes.max() + 1)
        return np.flatnonzero((self.flops <= spare) & (taken[self.sizes] < most_seeds))


def design(information: Information, budget: float, least: int = LEAST_TRUNKS, most_seeds: int = MOST_SEEDS) -> Chosen:
    """The trunks of at most `budget` FLOPs that predict best at the target: at least `least`, one size on two seeds,
    none on more than `most_seeds`.

    Raises `ConfigError` where not so many trunks fit into the budget.
    """
    of_size = [information.flops[information.sizes == size].min() for size in np.unique(information.sizes)]
    cheap = np.sort(np.repeat(of_size, most_seeds))
    if len(cheap) < least or cheap[:least].sum() > budget:
        given = f"a budget of {budget:.3g} FLOPs has no place for {least} trunks of at most {most_seeds} seeds a size"
        cost = f"the cheapest take {cheap[:least].sum():.3g}" if len(cheap) >= least else f"of {len(of_size)} sizes"
        raise ConfigError(f"{given} ({cost}); raise --budget or --seeds, or give more or smaller sizes")
    rng = np.random.default_rng(0)
    best: list[int] = []
    for restart in range(RESTARTS):
        kept = [place for place in best if rng.random() < KEPT] if restart else []
        found = _filled(information, kept, budget, cheap[:least], most_seeds)
        found = _exchanged(information, found, budget, most_seeds)
        if not best or information.chosen(found).half_width < information.chosen(best).half_width:
            best = found
    return information.chosen(best)


def _filled(information, places, budget, cheap, most_seeds):
    """The places with trunks added one by one, each time the one that tells most for its FLOPs, until none fits."""
    flops, places = information.flops, list(places)
    while True:
        kept = cheap[: max(len(cheap) - len(places) - 1, 0)].sum()  # for the trunks that must follow
        fits = information.fitting(places, budget - flops[places].sum() - kept, most_seeds)
        if not len(fits):
            return places
        total = information.known + information.each[:, places].sum(axis=1)
        after = information.variance(total[:, None] + information.each[:, fits])
        gain = np.log(information.variance(total) / after) / flops[fits]
        places.append(int(fits[gain.argmax()]))


def _exchanged(information, places, budget, most_seeds):
    """The places after exchanges of one trunk for another, each the best there is, until none lowers the variance."""
    flops, places = information.flops, list(places)
    total = information.known + information.each[:, places].sum(axis=1)
    least = float(information.variance(total))
    for _ in range(_EXCHANGES):
        moves = []
        for slot in range(len(places)):
            rest = places[:slot] + places[slot + 1 :]
            fits = information.fitting(rest, budget - flops[rest].sum(), most_seeds)
            moves += [(slot, fit) for fit in fits.tolist() if information.seeds_twice([*rest, fit])]
        spare = information.fitting(places, budget - flops[places].sum(), most_seeds)
        moves += [(-1, int(fit)) for fit in spare]
        if not moves:
            break
        gone = np.array([places[slot] if slot >= 0 else -1 for slot, _ in moves])
        less = np.where((gone >= 0)[:, None, None], information.each[:, gone], 0.0)
        after = information.variance(total[:, None] - less + information.each[:, [fit for _, fit in moves]])
        move = int(after.argmin())
        if after[move] >= least * (1 - 1e-6) and information.seeds_twice(places):
            break
        slot, fit = moves[move]
        places = [*places, fit] if slot < 0 else [*places[:slot], fit, *places[slot + 1 :]]
        total, least = information.known + information.each[:, places].sum(axis=1), float(after[move])
    return places


def best_log_grid(information: Information, budget: float) -> tuple[Chosen | None, str]:
    """(the best grid of sizes that are even in their logarithm, with the same branches and seeds each; what it is).

    It shares trunks as the design does. None where no grid of two sizes or more fits.
    """
    by_size: dict[int, list[int]] = {}
    for place, trunk in enumerate(information.candidates):
        by_size.setdefault(trunk.size, []).append(place)
    sizes, found = sorted(by_size), []
    for number in range(len(by_size[sizes[0]])):
        for stride in _STRIDES:
            for start in range(len(sizes)):
                for stop in range(start + stride + 1, len(sizes) + 1, stride):
                    for seeds in (1, 2, 3):
                        of_grid = sizes[start:stop:stride]
                        places = [by_size[size][number] for size in of_grid for _ in range(seeds)]
                        if len(of_grid) > 1 and information.flops[places].sum() <= budget:
                            branches = len(information.candidates[places[0]].images)
                            said = f"{len(of_grid)} sizes x {branches} branches x {seeds} seeds"
                            found.append((information.chosen(places), said))
    return min(found, key=lambda each: each[0].half_width) if found else (None, "")


def next_trunks(information: Information, budget: float, count: int = 3) -> list[tuple[Trunk, float]]:
    """The single trunks within the budget that tell most beside what is known, each with the half-width it leads to."""
    fits = np.flatnonzero(information.flops <= budget)
    variance = information.variance(information.known[:, None] + information.each[:, fits])
    order: Int[np.ndarray, " fits"] = np.argsort(variance)[:count]
    return [(information.candidates[fits[i]], HALF_WIDTH * float(variance[i]) ** 0.5) for i in order]
