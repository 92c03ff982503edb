"""Fits the strengths of runs to votes, by the models of Bradley and Terry and of Rao and Kupper, with a side effect.

With d = strength of the left run - strength of the right run + side, and s the logistic function:

    Bradley and Terry (1952):  P(left) = s(d); a tie is half a win and half a loss.
    Rao and Kupper (1967):     P(left) = s(d - log theta), P(right) = s(-d - log theta), P(tie) = the rest.

Strengths are in units of log odds and add up to zero. Both log likelihoods are concave, so damped Newton steps from
zero find the maximum if it exists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, sparse
from scipy.sparse import csgraph
from scipy.special import expit

from rfjax.votes.ballots import Ballots
from rfjax.votes.clusters import Clusters, Number

ELO_PER_UNIT = 400 / math.log(10)  # a unit of strength on Elo's scale
ELO_MEAN = 1000.0
ADDED = 1.0  # votes that are added to each compared pair of runs if the likelihood has no finite maximum
START_THRESHOLD = 0.5  # log theta before the first step
ITERATIONS = 200


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """Strengths of the runs under one model.

    `strengths` and `differences` are in log odds. `side` is the advantage of the left image, or None if the votes do
    not determine it. `theta` is the parameter of Rao and Kupper's model, None for Bradley and Terry's. `notes` say what
    was added or left out. A number has no interval if the votes do not bound it.
    """

    model: str
    strengths: dict[str, Number]
    differences: dict[tuple[str, str], Number]
    side: Number | None
    theta: float | None
    log_likelihood: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Problem:
    """The data of a fit, a row for each vote.

    With `ties`, the model is Rao and Kupper's, and its last parameter is log theta. The d of this module's docstring is
    `design` @ the other parameters. `choice` is above zero for left, below zero for right, and zero for a tie. `weight`
    is the number of votes that a row stands for.
    """

    design: Float[np.ndarray, "rows k"]
    choice: Float[np.ndarray, " rows"]
    weight: Float[np.ndarray, " rows"]
    ties: bool

    def likelihood(self, parameters: Float[np.ndarray, " k"]) -> float:
        """The log likelihood; -inf where log theta is not above zero."""
        d, threshold = self._split(parameters)
        if not self.ties:
            score = (self.choice + 1) / 2
            return float(self.weight @ (score * _log_expit(d) + (1 - score) * _log_expit(-d)))
        if threshold <= 0:
            return -math.inf
        tie = _log_expit(d + threshold) + _log_expit(threshold - d) + math.log(-math.expm1(-2 * threshold))
        terms = np.select(
            [self.choice > 0, self.choice < 0], [_log_expit(d - threshold), _log_expit(-d - threshold)], tie
        )
        return float(self.weight @ terms)

    def slopes(
        self, parameters: Float[np.ndarray, " k"]
    ) -> tuple[Float[np.ndarray, "rows k"], Float[np.ndarray, "k k"]]:
        """Returns (the gradient of each row's log likelihood, without weights; the Hessian of the weighted sum)."""
        d, threshold = self._split(parameters)
        if not self.ties:
            p = expit(d)
            rows = self.design * ((self.choice + 1) / 2 - p)[:, None]
            return rows, -(self.design * (self.weight * p * (1 - p))[:, None]).T @ self.design
        low, high = expit(d - threshold), expit(d + threshold)  # P(left), and P(left or tie)
        left, right = self.choice > 0, self.choice < 0
        by_d = np.select([left, right], [1 - low, -high], 1 - low - high)
        of_tie = (1 - high) + low + 2 / math.expm1(2 * threshold)
        by_threshold = np.select([left, right], [low - 1, -high], of_tie)
        rows = np.column_stack([self.design * by_d[:, None], by_threshold])
        # The second derivative of log s(u) is -s(u) s(-u). u is d - log theta or d + log theta; a tie has both.
        bend_low, bend_high = np.where(right, 0, low * (1 - low)), np.where(left, 0, high * (1 - high))
        hessian = np.zeros((rows.shape[1],) * 2)
        for bend, sign in ((bend_low, -1.0), (bend_high, 1.0)):
            direction = np.column_stack([self.design, np.full(len(d), sign)])
            hessian -= (direction * (self.weight * bend)[:, None]).T @ direction
        hessian[-1, -1] -= self.weight @ (self.choice == 0) / math.sinh(threshold) ** 2
        return rows, hessian

    def _split(self, parameters):
        return (self.design @ parameters[:-1], parameters[-1]) if self.ties else (self.design @ parameters, 0.0)


def _log_expit(x):
    return -np.logaddexp(0, -x)


def maximise(problem: Problem) -> Float[np.ndarray, " k"]:
    """Finds the parameters of greatest likelihood. The problem must have a finite maximum (`has_maximum`)."""
    parameters = np.zeros(problem.design.shape[1] + problem.ties)
    if problem.ties:
        parameters[-1] = START_THRESHOLD
    value = problem.likelihood(parameters)
    for _ in range(ITERATIONS):
        rows, hessian = problem.slopes(parameters)
        gradient = problem.weight @ rows
        step = np.linalg.solve(hessian, -gradient)
        if abs(gradient @ step) < 1e-16 * problem.weight.sum():  # converged to rounding
            return parameters + step
        size = 1.0
        while size > 1e-12 and not (new := problem.likelihood(parameters + size * step)) > value:
            size /= 2
        if size <= 1e-12:  # no shorter step raises the likelihood, because of rounding
            break
        parameters, value = parameters + size * step, new
    return parameters


def has_maximum(problem: Problem) -> bool:
    """Whether the likelihood has its maximum at finite parameters.

    It has none if the parameters can move in a direction along which no vote's likelihood falls and at least one vote's
    rises. A linear programme looks for such a direction.
    """
    design, choice = problem.design, problem.choice
    one = np.ones(len(choice)) if problem.ties else None

    def rows(sign, of, threshold):
        part = sign * design[of]
        return part if one is None else np.column_stack([part, threshold * one[of]])

    left, right, tie = choice > 0, choice < 0, choice == 0
    never_fall = [rows(1, left, -1), rows(-1, right, -1), rows(1, tie, 1), rows(-1, tie, 1)]
    margins = np.unique(np.concatenate(never_fall), axis=0)
    found = optimize.linprog(
        -margins.sum(axis=0), A_ub=-margins, b_ub=np.zeros(len(margins)), bounds=(-1, 1), method="highs"
    )
    return not (found.status == 0 and -found.fun > 1e-7)


def unconnected_groups(ballots: Ballots) -> list[list[int]]:
    """Groups the runs that comparisons connect, directly or through other runs. Returns each group's indices of
    runs. An uncompared run is a group of its own."""
    labels = _components(ballots, strongly=False)
    return [np.flatnonzero(labels == label).tolist() for label in dict.fromkeys(labels.tolist())]


def _components(ballots, strongly):
    """Labels the runs so that connected runs have equal labels.

    Two runs are connected if a chain of comparisons leads from one to the other. With `strongly`, there must be a chain
    of wins or ties in each direction.
    """
    count = len(ballots.runs)
    beats = np.zeros((count, count))
    np.add.at(beats, (ballots.left, ballots.right), ballots.choice >= 0)
    np.add.at(beats, (ballots.right, ballots.left), ballots.choice <= 0)
    kind = "strong" if strongly else "weak"
    return csgraph.connected_components(sparse.csr_matrix(beats), directed=True, connection=kind)[1]


def fit_strengths(ballots: Ballots, model: str) -> Strengths:
    """Fits one of `MODELS`. The votes must connect all runs: `unconnected_groups` must return one group."""
    runs, notes = ballots.runs, []
    basis = _zero_sum_basis(len(runs))
    design = np.column_stack([basis[ballots.left] - basis[ballots.right], np.ones(len(ballots))])
    sided = bool(np.linalg.matrix_rank(design) == design.shape[1])
    if not sided:
        design = design[:, :-1]
        notes.append(
            "the side effect cannot be told from the strengths, as every run stood on one side; it is left out"
        )
    decided, tied = bool((ballots.choice != 0).any()), bool((ballots.choice == 0).any())
    ties = model == RAO_KUPPER and tied and decided
    if not decided:
        notes.append("every vote is a tie: the strengths are equal, and have no intervals")
    elif model == RAO_KUPPER and not tied:
        notes.append("nobody chose a tie, so theta is 1 and the model is Bradley and Terry's")
    problem = of_votes = Problem(design, ballots.choice.astype(float), np.ones(len(ballots)), ties)
    finite = decided and has_maximum(problem)
    groups = np.zeros(len(runs), int) if decided else np.arange(len(runs))  # only runs of one group have intervals
    if decided and not finite:
        groups = _components(ballots, strongly=True)
        notes.append(_separation_note(ballots, groups))
        groups = groups if groups.any() else np.arange(len(runs))  # the side explains all votes: no intervals at all
        problem = _with_added_votes(of_votes, ballots, basis, sided)
    parameters = maximise(problem)
    rows, hessian = problem.slopes(parameters)
    influence = np.linalg.solve(-hessian, rows[: len(ballots)].T).T  # each vote's term in the parameters' error
    clusters = Clusters(ballots.rater, ballots.prompt)
    whole, alone = clusters.meat(influence)

    def number(direction, told):
        value = float(direction @ parameters)
        if not told:
            return Number(value=value, n=len(ballots))
        variance = max(direction @ whole @ direction, direction @ alone @ direction)
        return clusters.number(value, float(variance), len(ballots))

    padded = np.zeros((len(runs), len(parameters)))
    padded[:, : len(runs) - 1] = basis
    side = np.zeros(len(parameters))
    side[len(runs) - 1 : len(runs)] = 1.0
    return Strengths(
        model=model,
        strengths={run: number(padded[i], finite) for i, run in enumerate(runs)},
        differences={
            (runs[i], runs[j]): number(padded[i] - padded[j], bool(groups[i] == groups[j]))
            for i in range(len(runs))
            for j in range(len(runs))
            if i != j
        },
        side=number(side, finite) if sided else None,
        theta=_theta(parameters[-1], ties, decided) if model == RAO_KUPPER else None,
        log_likelihood=of_votes.likelihood(parameters),
        notes=tuple(notes),
    )


def _theta(threshold, ties, decided):
    """Rao and Kupper's theta: 1 if there are no ties, None if every vote is a tie."""
    return math.exp(threshold) if ties else 1.0 if decided else None


def _zero_sum_basis(count: int) -> Float[np.ndarray, "runs directions"]:
    """An orthonormal basis of the strengths that add up to zero (Helmert's), one column for each direction."""
    basis = np.zeros((count, count - 1))
    for k in range(1, count):
        basis[:k, k - 1], basis[k, k - 1] = 1.0, -k
        basis[:, k - 1] /= math.sqrt(k * (k + 1))
    return basis


def _with_added_votes(problem, ballots, basis, sided):
    """Adds `ADDED` votes to each compared pair of runs, split evenly between wins and losses, and between left and
    right."""
    pairs = sorted({(min(pair), max(pair)) for pair in zip(ballots.left.tolist(), ballots.right.tolist(), strict=True)})
    rows, choices = [], []
    for one, other in pairs:
        for left, right in ((one, other), (other, one)):
            row = [*(basis[left] - basis[right]), *([1.0] if sided else [])]
            rows += [row, row]
            choices += [1.0, -1.0]
    return Problem(
        np.concatenate([problem.design, rows]),
        np.concatenate([problem.choice, choices]),
        np.concatenate([problem.weight, np.full(len(rows), ADDED / 4)]),
        problem.ties,
    )


def _separation_note(ballots, groups):
    """Says why the likelihood has no finite maximum (such as a run that wins every comparison), and what was done."""
    done = (
        f"the best fit lies at infinity, so {ADDED:g} vote, half won and half lost, is added to each compared pair of "
        "runs; numbers without an interval depend on the added votes"
    )
    told = []
    for label in dict.fromkeys(groups.tolist()):
        inside = groups == label
        crossing = ballots.chosen(inside[ballots.left] != inside[ballots.right])
        if not len(crossing):
            continue
        won = np.where(inside[crossing.left], crossing.choice, -crossing.choice)
        names = " and ".join(run for run, own in zip(ballots.runs, inside, strict=True) if own)
        if (won > 0).all() or (won < 0).all():
            told.append(f"{names} {'wins' if won[0] > 0 else 'loses'} every comparison with the other runs")
    reason = "; ".join(told) or "the votes order the runs, or the sides, without exception"
    return f"{reason}: {done}"


BRADLEY_TERRY, RAO_KUPPER = "bradley-terry", "rao-kupper"
MODELS = {
    BRADLEY_TERRY: "Bradley and Terry's model; a tie is half a win",
    RAO_KUPPER: "Rao and Kupper's model, which has ties of its own",
}


def as_elo(strength: Number) -> Number:
    """A strength on Elo's scale: 400 points are odds of ten to one, and the runs' mean is 1,000."""

    def scaled(value, shift=ELO_MEAN):
        return None if value is None else shift + ELO_PER_UNIT * value

    ends = {"low": scaled(strength.low), "high": scaled(strength.high), "stderr": scaled(strength.stderr, 0.0)}
    return Number(value=ELO_MEAN + ELO_PER_UNIT * strength.value, n=strength.n, **ends)


def wins_of(ballots: Ballots, run: int) -> tuple[Float[np.ndarray, " votes"], Bool[np.ndarray, " votes"]]:
    """Returns (a run's score in each vote: 1 for a win, 0.5 for a tie, 0 for a loss; whether the vote was a tie)."""
    scores = np.where(ballots.left == run, ballots.score, 1 - ballots.score)
    return scores, ballots.choice == 0
