"""Chooses what to train next: the trunks and branches that determine the loss at a larger budget best.

The parametric law is linearised in its parameters at each draw of them. The log loss of branch j of trunk i is the law
plus two noises, u_i + e_ij, with the standard deviations `between` and `within` (`rfjax.laws.trunks`). So a trunk adds
this Fisher information, where J [branches, parameters] has the derivatives of its branches' log losses:

    J' V^-1 J,   V = between^2 11' + within^2 I   (1 is a vector of ones).

M is the sum of this information over all trunks. The predicted log loss at the target then has the variance v = g' M^-1
g, with g the law's derivatives at the target. With a prior of standard deviation 1 on that log loss (a factor of e
either way), the variance is v / (1 + v). The design minimises the mean of v / (1 + v) over the draws: it is a c-optimal
design, averaged over a prior (Chaloner and Verdinelli 1995, section 4). Trunks are first chosen greedily, then
exchanged, within the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rfjax.errors import ConfigError
from rfjax.evaluation.intervals import STANDARD_ERRORS
from rfjax.laws.budgets import Cost, optimum
from rfjax.laws.identifiability import distinct_needed
from rfjax.laws.laws import PARAMETRIC

LEAST_TRUNKS = len(PARAMETRIC.parameters) + 2  # fewest trunks of a design, known ones included
LEAST_DISTINCT = distinct_needed(PARAMETRIC)  # fewest different sizes, and fewest numbers of images, that a law needs
MOST_BRANCHES = 4  # of a trunk
MOST_SEEDS = 2  # of one size; without this limit a design would repeat the smallest size, where the law may not hold
PRIOR = 1.0  # standard deviation of log loss at the target before any run; it bounds the variance under every draw
_RIDGE = 1e-9  # added to the information, in units of the sum over all candidates
_SINGULAR = 1e-7  # information whose smallest eigenvalue, in units of the largest, is below this decides no law
_EXCHANGES = 60  # most exchanges of one search
RESTARTS, KEPT = 8, 0.6  # further searches, and the share of the best design's trunks that each begins with
_STRIDES = {1: "every size", 2: "every second size", 3: "every third size"}


@dataclass(frozen=True, kw_only=True)
class Known:
    """A trunk, or a single run, that has been trained: its number of parameters, the number of images of each branch,
    and the index of its size among the candidates' sizes (-1 if no candidate has its size)."""

    size: int
    params: float
    images: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Trunk(Known):
    """A trunk that could be trained, and the FLOPs that it takes with all its branches."""

    flops: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What a design is judged by: draws of the law's parameters, the noise between and within trunks (standard
    deviations of log loss), the FLOPs `target` at which the loss is to be predicted, and the trunks that are trained
    already."""

    draws: Float[np.ndarray, "draws 5"]  # in the law's own order: E, log A, alpha, log B, beta
    between: float
    within: float
    target: float
    cost: Cost
    known: Sequence[Known] = ()


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A design: its trunks, the FLOPs they take, and the half-width of the 95 % interval of log loss at the target."""

    trunks: tuple[Trunk, ...]
    flops: float
    half_width: float


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a design must fulfil besides its budget. Trunks that are already trained count as part of the design."""

    budget: float  # FLOPs of the trunks that are added
    least: int = LEAST_TRUNKS  # fewest trunks
    most_seeds: int = MOST_SEEDS  # most seeds of a size


class Information:
    """The Fisher information of each candidate trunk under each draw of the law. From it follows the variance of the
    predicted log loss that a choice of candidates leaves."""

    def __init__(self, problem: Problem, candidates: Sequence[Trunk]):
        self.candidates, self.known_trunks = tuple(candidates), tuple(problem.known)
        self.flops = np.array([each.flops for each in candidates])
        self.sizes = np.array([each.size for each in candidates])
        self.seeds_known = np.array([seeds_of(problem.known, size) for size in range(self.sizes.max() + 1)])
        names: dict[str, int] = {}  # a size or a number of images, to three digits -> the position of its bit
        self._bits = [_bits(each, names) for each in candidates]
        self._bits_of_known = [_bits(each, names) for each in problem.known]
        self._bits_known = _union(self._bits_of_known)
        centre = np.log([each.params for each in candidates]).mean(), np.log(candidates[0].images).mean()
        inner = PARAMETRIC.recentre(problem.draws, -np.array(centre))

        def information(trunk):
            z = np.log(np.stack(np.broadcast_arrays(trunk.params, trunk.images), axis=-1)) - centre
            rows = np.stack([PARAMETRIC.jacobian(row, z) for row in inner])
            count = rows.shape[1]
            noise = problem.between**2 * np.ones((count, count)) + problem.within**2 * np.eye(count)
            return np.einsum("sik,ij,sjl->skl", rows, np.linalg.inv(noise), rows)

        each = np.stack([information(one) for one in candidates], axis=1)
        known = sum(map(information, problem.known), np.zeros_like(each[:, 0]))
        self._scale = 1 / np.sqrt(np.einsum("sckk->sk", each) + 1e-300)
        square = self._scale[:, :, None] * self._scale[:, None]
        self.each = each * square[:, None]
        self.known = known * square
        self._ridge = _RIDGE * np.eye(inner.shape[1])  # so that a search may begin with too few trunks
        best = [np.ravel(found) for found in optimum(problem.draws, problem.target, problem.cost)]
        at = zip(inner, *best, strict=True)
        z = [(row, np.log([[params, images]]) - centre) for row, params, images in at]
        self.goal = np.concatenate([PARAMETRIC.jacobian(row, point) for row, point in z]) * self._scale

    def variance(self, information: Float[np.ndarray, "draws *batch 5 5"]) -> Float[np.ndarray, "*batch"]:
        """Returns the variance of log loss at the target that `information` leaves, averaged over draws of the law. The
        prior of log loss at the target counts as an observation."""
        batch = information.shape[1:-2]
        goal = self.goal.reshape(len(self.goal), *(1 for _ in batch), -1, 1)
        solved = np.linalg.solve(information + self._ridge, np.broadcast_to(goal, (*information.shape[:-1], 1)))
        of_draws = (goal * solved).sum(axis=(-2, -1))
        return np.asarray((of_draws / (1 + of_draws / PRIOR**2)).mean(axis=0))

    def total(self, places: Sequence[int]) -> Float[np.ndarray, "draws 5 5"]:
        """Returns the information of the candidates `places` and of the known trunks together."""
        return self.known + self.each[:, list(places)].sum(axis=1)

    def chosen(self, places: Sequence[int]) -> Chosen:
        """Returns the design made of the candidates with the indices `places`; an index that occurs twice stands for
        two seeds."""
        variance = float(self.variance(self.total(places)))
        trunks = tuple(self.candidates[place] for place in sorted(places, key=lambda p: (self.sizes[p], p)))
        flops = float(self.flops[list(places)].sum())
        return Chosen(trunks=trunks, flops=flops, half_width=STANDARD_ERRORS * variance**0.5)

    def seeds(self, places: Sequence[int]) -> Int[np.ndarray, " sizes"]:
        """Returns the number of seeds of each size: those of the known trunks (`seeds_of`), and one for each of the
        candidates `places`."""
        return self.seeds_known + np.bincount(self.sizes[list(places)], minlength=len(self.seeds_known))

    def distinct(self, places: Sequence[int]) -> tuple[int, int]:
        """Returns (how many different sizes, how many different numbers of images) the candidates `places` and the
        known trunks have together. Values that agree to three digits count as one.
        """
        sizes, images = _union([self._bits_known, *(self._bits[place] for place in places)])
        return sizes.bit_count(), images.bit_count()

    def lack(self, places: Sequence[int], rules: Rules) -> int:
        """Counts what the candidates `places` and the known trunks lack by the rules: the missing trunks, plus 1 if no
        size has two seeds, plus the missing distinct sizes and distinct numbers of images."""
        trunks = max(rules.least - len(self.known_trunks) - len(places), 0)
        distinct = sum(max(LEAST_DISTINCT - number, 0) for number in self.distinct(places))
        return trunks + int(not self.two_meet(places)) + distinct

    def two_meet(self, places: Sequence[int]) -> bool:
        """Whether two trunks of one size have branches of the same number of images. Only such trunks show how large
        the noise between trunks is."""
        seen: dict[int, int] = {}  # the bit of a size -> the bits of the numbers of images so far
        for size, images in (*self._bits_of_known, *(self._bits[place] for place in places)):
            if seen.get(size, 0) & images:
                return True
            seen[size] = seen.get(size, 0) | images
        return False

    def decides(self, places: Sequence[int]) -> bool:
        """Whether the chosen trunks `places` and the known trunks together determine all parameters of the law, for
        every draw of the law."""
        if min(self.distinct(places)) < LEAST_DISTINCT:
            return False
        values = np.linalg.eigvalsh(self.total(places))
        return bool((values[:, 0] > _SINGULAR * values[:, -1]).all())

    def fitting(self, places: Sequence[int], spare: float, most_seeds: int) -> Int[np.ndarray, " fits"]:
        """Returns the indices of the candidates that can still be added to the trunks `places`: those of at most
        `spare` FLOPs whose size has fewer than `most_seeds` seeds so far."""
        return np.flatnonzero((self.flops <= spare) & (self.seeds(places)[self.sizes] < most_seeds))


def runs_of_lengths(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yields the sets of branches that a trunk may have: up to `MOST_BRANCHES` consecutive lengths of the list."""
    for last in range(len(lengths)):
        for first in range(max(last - MOST_BRANCHES + 1, 0), last + 1):
            yield tuple(lengths[first : last + 1])


def _bits(trunk, names) -> tuple[int, int]:
    """Returns (a bit mask of a trunk's size, a bit mask of the numbers of images of its branches); `names` gives the
    position of each bit."""
    texts = [f"size {trunk.params:.3g}"], [f"{images:.3g}" for images in trunk.images]
    return tuple(sum({1 << names.setdefault(text, len(names)) for text in of_kind}) for of_kind in texts)


def seeds_of(known: Sequence[Known], size: int) -> int:
    """Returns how many seeds a size was trained on: the largest number of its known trunks that have branches of the
    same number of images."""
    images = [f"{count:.3g}" for trunk in known if trunk.size == size for count in set(trunk.images)]
    return max(map(images.count, images), default=0)


def _union(bits) -> tuple[int, int]:
    """Returns the union of several pairs of bit masks (see `_bits`)."""
    sizes = images = 0
    for size, image in bits:
        sizes, images = sizes | size, images | image
    return sizes, images


def design(information: Information, rules: Rules) -> Chosen:
    """Chooses the trunks within the budget that predict best at the target and keep the rules. Together with the known
    trunks, there must be at least `least` trunks, three sizes and three numbers of images. At least one size must have
    two seeds, and no size may have more than `most_seeds`.

    Raises `ConfigError` if no such trunks fit into the budget, or if they do not determine all parameters of the law.
    """
    cheapest = _cheapest(information, rules)
    if why := _nothing_fits(information, rules):
        raise ConfigError(f"no trunk can be added: {why}")
    grids = [places for places, _ in _grids(information, rules) if not information.lack(places, rules)]
    variances = [float(information.variance(information.total(places))) for places in grids]
    starts = [cheapest] + ([grids[int(np.argmin(variances))]] if grids else []) + [[]]
    rng = np.random.default_rng(0)
    best, least = [], (np.inf, np.inf)
    for search in range(len(starts) + RESTARTS):
        kept = starts[search] if search < len(starts) else [place for place in best if rng.random() < KEPT]
        found = _exchanged(information, _filled(information, kept, rules), rules)
        judged = information.lack(found, rules), float(information.variance(information.total(found)))
        if judged < least:
            best, least = found, judged
    if not least[0] and not information.decides(best):
        raise ConfigError(
            "the law hardly depends on one of its terms at these sizes and numbers of images, so no design of them "
            "decides it; give smaller sizes or shorter --lengths, or another law"
        )
    if least[0]:
        sizes, images = information.distinct(best)
        given = f"a budget of {rules.budget:.3g} FLOPs decides no law: the best that fits has"
        count = f"{len(information.known_trunks) + len(best)} trunks of {sizes} sizes and {images} numbers of images"
        raise ConfigError(
            f"{given} {count}, known ones among them, and {rules.least} trunks of {LEAST_DISTINCT} sizes and "
            f"{LEAST_DISTINCT} numbers of images are needed, one size on two seeds; raise --budget, or give more "
            "--lengths or smaller sizes"
        )
    return information.chosen(best)


def _nothing_fits(information, rules) -> str:
    """Returns the reason why no candidate can be added; "" if a candidate can be added."""
    free = information.seeds_known < rules.most_seeds
    if not free[information.sizes].any():
        return f"every size has {rules.most_seeds} seeds or more so far; raise --seeds"
    cheapest = information.flops[free[information.sizes]].min()
    return f"the cheapest takes {cheapest:.3g} FLOPs; raise --budget" if cheapest > rules.budget else ""


def _cheapest(information, rules) -> list[int]:
    """Returns the indices of the cheapest candidates that, with the known trunks, make up `rules.least` trunks. Raises
    `ConfigError` if there are too few candidates or if they cost more than the budget."""
    wanted = max(rules.least - len(information.known_trunks), 0)
    sizes = np.unique(information.sizes)
    of_size = [min(np.flatnonzero(information.sizes == size), key=lambda p: information.flops[p]) for size in sizes]
    free = [max(rules.most_seeds - int(information.seeds_known[size]), 0) for size in sizes]
    cheap = sorted(np.repeat(of_size, free).tolist(), key=lambda place: information.flops[place])
    takes = information.flops[cheap[:wanted]].sum()
    if len(cheap) < wanted or takes > rules.budget:
        beside = f" beside the {len(information.known_trunks)} known ones" if information.known_trunks else ""
        given = f"a budget of {rules.budget:.3g} FLOPs has no place for {wanted} trunks{beside}"
        cost = f"the cheapest take {takes:.3g}" if len(cheap) >= wanted else f"of {len(sizes)} sizes"
        limit = f"of at most {rules.most_seeds} seeds a size"
        raise ConfigError(f"{given} {limit} ({cost}); raise --budget or --seeds, or give more or smaller sizes")
    return cheap[:wanted]


def _filled(information, places, rules) -> list[int]:
    """Adds trunks to `places` one by one until none fits: each time the trunk that lowers the variance most for its
    FLOPs."""
    flops, places = information.flops, list(places)
    while True:
        fits = information.fitting(places, rules.budget - flops[places].sum(), rules.most_seeds)
        if not len(fits):
            return places
        total = information.total(places)
        after = information.variance(total[:, None] + information.each[:, fits])
        gain = np.log(information.variance(total) / after) / flops[fits]
        places.append(int(fits[gain.argmax()]))


def _exchanged(information, places, rules) -> list[int]:
    """Exchanges one trunk for another, always by the best exchange, until none helps. An exchange helps if it breaks
    fewer rules or, with equally many, lowers the variance. Adding a trunk counts as an exchange, too."""
    flops, places = information.flops, list(places)
    least = information.lack(places, rules), float(information.variance(information.total(places)))
    for _ in range(_EXCHANGES):
        moves, totals = [], []
        for slot in (*range(len(places)), None):
            rest = places if slot is None else places[:slot] + places[slot + 1 :]
            fits = information.fitting(rest, rules.budget - flops[rest].sum(), rules.most_seeds)
            moves += [[*rest, fit] for fit in fits.tolist()]
            totals.append(information.total(rest)[:, None] + information.each[:, fits])
        if not moves:
            break
        lacks = np.array([information.lack(move, rules) for move in moves])
        fewest = np.flatnonzero(lacks == lacks.min())
        after = information.variance(np.concatenate(totals, axis=1)[:, fewest])
        best = int(after.argmin())
        judged = int(lacks.min()), float(after[best])
        if judged[0] > least[0] or (judged[0] == least[0] and judged[1] >= least[1] * (1 - 1e-6)):
            break
        places, least = moves[fewest[best]], judged
    return places


def best_log_grid(information: Information, rules: Rules) -> tuple[Chosen | None, str]:
    """Returns (the best grid within the budget that determines the law, its description); (None, "") if there is none.

    A grid takes every, every second or every third of the candidates' sizes in a range, all with the same branches and
    seeds. Like a design, a grid is made of trunks with branches and is added to the known trunks. It need not have the
    design's least number of trunks, or a size on two seeds.
    """
    found = [(information.chosen(grid), said) for grid, said in _grids(information, rules) if information.decides(grid)]
    return min(found, key=lambda each: each[0].half_width) if found else (None, "")


def _grids(information, rules) -> Iterator[tuple[list[int], str]]:
    """Yields the grids of two or more sizes within the budget, each as (indices of its trunks among the candidates,
    description)."""
    by_size: dict[int, list[int]] = {}
    for place, trunk in enumerate(information.candidates):
        by_size.setdefault(trunk.size, []).append(place)
    sizes, ways = sorted(by_size), min(map(len, by_size.values()))
    for number in range(ways):
        for stride, said in _STRIDES.items():
            for start in range(len(sizes)):
                for stop in range(start + stride + 1, len(sizes) + 1, stride):
                    for seeds in range(1, rules.most_seeds + 1):
                        of_grid = sizes[start:stop:stride]
                        places = [by_size[size][number] for size in of_grid for _ in range(seeds)]
                        fits = information.flops[places].sum() <= rules.budget
                        if fits and information.seeds(places)[of_grid].max() <= rules.most_seeds:
                            branches = len(information.candidates[places[0]].images)
                            each = f"{branches} length{'s'[: branches != 1]}, {seeds} seed{'s'[: seeds != 1]}"
                            yield places, f"{len(of_grid)} sizes ({said} of its range), {each}"


def next_trunks(information: Information, rules: Rules, count: int = 3) -> list[tuple[Trunk, float]]:
    """Finds the trunks within the budget that improve the prediction most, each added alone to the known trunks.
    Returns (trunk, half-width) of at most `count` trunks, the best first.

    The half-width is that of the 95 % interval of log loss at the target, once the trunk is trained. The list is empty
    if no candidate, together with the known trunks, determines the law.
    """
    fits = information.fitting([], rules.budget, rules.most_seeds)
    fits = np.array([place for place in fits.tolist() if information.decides([place])], int)
    if not len(fits):
        return []
    variance = information.variance(information.known[:, None] + information.each[:, fits])
    order = np.argsort(variance)[:count]
    return [(information.candidates[fits[i]], STANDARD_ERRORS * float(variance[i]) ** 0.5) for i in order]
