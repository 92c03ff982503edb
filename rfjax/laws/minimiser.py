"""Minimises a misfit over a law's parameters, for many starts or many resamples at once.

Every start and every bootstrap resample is one row of a batch, so that ten thousand refits cost
one loop in numpy. Each row takes damped Newton steps with analytic first and second derivatives
(`rfjax.laws.misfits` has the misfit, `rfjax.laws.laws` the derivatives of the terms). Inside, the
offset E is replaced by a share of the row's smallest loss: E = share * smallest loss, with
0 <= share < 1. log x must be centred. All parameters are then of order one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

from rfjax.laws.laws import Law
from rfjax.laws.misfits import Loss, rho

# E must stay below the smallest loss: otherwise all other terms would be zero there.
MAX_SHARE = 1.0 - 1e-9
ITERATIONS = 300
CHUNK = 30_000  # residuals at a time, which fit into a core's cache
# If the final delta is much smaller than the residuals, the minimum is approached through larger deltas. They begin at
# `FIRST_DELTA`, and each is `DELTA_STEP` times the one before.
FIRST_DELTA, DELTA_STEP = 1e-1, 0.1
# At a minimum, Newton's step would lower the objective by less than this share.
CONVERGED = 1e-7


class Minimum(NamedTuple):
    """The point that each row of a batch reached."""

    parameters: Float[np.ndarray, "batch k"]  # in the law's own order: E, then the terms'
    objective: Float[np.ndarray, " batch"]
    converged: Bool[np.ndarray, " batch"]
    at_lower: Bool[np.ndarray, "batch k"]  # whether a parameter that is not fixed ended at its lower bound
    at_upper: Bool[np.ndarray, "batch k"]


class _Problem(NamedTuple):
    """The data of a batch of fits: `z` is log x, `y` log loss, `scale` the smallest loss. Each array
    but `z` has a row for each fit, or one row for all fits."""

    law: Law
    loss: Loss
    delta: float
    z: Float[np.ndarray, "n v"]
    y: Float[np.ndarray, "#batch n"]
    weights: Float[np.ndarray, "#batch n"]
    scale: Float[np.ndarray, "#batch 1"]
    precision: Float[np.ndarray, "#batch n n"] | None = None

    def rows(self, chosen) -> _Problem:
        def pick(array):
            return array if len(array) == 1 else array[chosen]

        precision = None if self.precision is None else pick(self.precision)
        return self._replace(y=pick(self.y), weights=pick(self.weights), scale=pick(self.scale), precision=precision)

    def misfit(self, residuals: Float[np.ndarray, "batch n"]) -> Float[np.ndarray, " batch"]:
        """Returns the objective of each row of residuals r: the weighted sum of rho(r) or, with a precision P,
        r^T P r / 2."""
        if self.precision is not None:
            return 0.5 * (residuals * _times(self.precision, residuals)).sum(axis=1)
        return (self.weights * rho(residuals, self.delta)).sum(axis=1)


def bounds(law: Law, log_x: Float[np.ndarray, "n v"]) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Returns (lower, upper) bounds of the parameters as the minimiser holds them: E as a share of the smallest loss,
    then the parameters of each term."""
    lower, upper = ([0.0], [MAX_SHARE]) if law.offset else ([], [])
    for column, term in enumerate(law.terms):
        low, high = term.bounds(log_x[:, column])
        lower, upper = lower + low, upper + high
    return np.array(lower), np.array(upper)


def starts(
    law: Law, log_x: Float[np.ndarray, "n v"], log_loss: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "starts k"]:
    """Makes a grid of starts in the law's own parameters: each term's own starts, with E at 0 to 0.9 of the smallest
    loss. The coefficients are set so that all terms are about equal, and add up to about the mean loss minus E.
    """
    scale = np.exp(log_loss.min())
    result = []
    shares = (0.0, 0.3, 0.6, 0.9) if law.offset else (0.0,)
    grids = [list(term.starts(log_x[:, i], len(law.terms) == 1)) for i, term in enumerate(law.terms)]
    for share in shares:
        level = np.log((np.exp(log_loss) - share * scale) / len(law.terms)).mean()
        for index in np.ndindex(*map(len, grids)):
            row = [share * scale] * law.offset
            for column, (term, grid, chosen) in enumerate(zip(law.terms, grids, index, strict=True)):
                rest = (0.0, *grid[chosen])
                shape = term.log_value(np.array(rest), log_x[:, column]).mean()
                row += [level - shape, *rest[1:]]
            result.append(row)
    return np.array(result)


def minimise(
    law: Law,
    start: Float[np.ndarray, "batch k"],
    log_x: Float[np.ndarray, "n v"],
    log_loss: Float[np.ndarray, "*#rows n"],
    loss: Loss,
    *,
    weights: Num[np.ndarray, "*#rows n"] | None = None,
    precision: Float[np.ndarray, "#rows n n"] | None = None,
    fixed: Sequence[int] = (),
    gradual: bool = False,
    iterations: int = ITERATIONS,
) -> Minimum:
    """Minimises the misfit of each row, from the row's start and on the row's data.

    `weights` multiply rho point by point; they can be the counts of a bootstrap resample. `log_loss` and
    `weights` have one row for each fit, or one row for all fits. Parameters with an index in `fixed` keep their
    start. `gradual` reaches a small delta through larger ones, for starts far from the minimum;
    delta = 0 is always reached in this way.

    With a `precision` (the inverse of the noise's covariance) the fit is generalised least squares: half of r^T P r is
    minimised. The loss must then be squares of log residuals, and there must be no weights; otherwise `ValueError` is
    raised. A point is left out if its row of the precision is zero.
    """
    if precision is not None and (weights is not None or not np.isinf(loss.delta) or not loss.logarithmic):
        raise ValueError(f"a precision goes with squares of log residuals without weights, not with {loss}")
    start = np.asarray(start, dtype=float)
    y = np.atleast_2d(log_loss)
    if precision is not None:
        weights = (np.diagonal(precision, axis1=1, axis2=2) > 0).astype(float)
    weights = np.ones((1, y.shape[1])) if weights is None else np.atleast_2d(np.asarray(weights, float))
    if loss.reduction == "mean":
        weights = weights / weights.sum(axis=1, keepdims=True)
    size = max(len(y), len(weights))
    present = np.broadcast_to(weights > 0, (size, y.shape[1]))
    smallest = np.where(present, np.broadcast_to(y, present.shape), np.inf).min(axis=1, keepdims=True)
    z = np.asarray(log_x, float)
    problem = _Problem(law, loss, loss.smooth_delta(), z, y, weights, np.exp(smallest), precision)
    limits = bounds(law, problem.z)
    rows = max(1, CHUNK // y.shape[1])
    pieces = [
        _minimise_chunk(
            problem.rows(slice(a, a + rows)), start[a : a + rows], limits, tuple(fixed), gradual, iterations
        )
        for a in range(0, len(start), rows)
    ]
    return Minimum(*(np.concatenate(column) for column in zip(*pieces, strict=True)))


def _minimise_chunk(problem, start, limits, fixed, gradual, iterations):
    """Minimises the misfit of some rows of the batch; see `minimise`."""
    lower, upper = limits
    inner = start.copy()
    if problem.law.offset:
        inner[:, :1] /= problem.scale
    free = np.array([index not in fixed for index in range(start.shape[1])])
    inner[:, free] = np.clip(inner, lower, upper)[:, free]
    for delta in _deltas(problem, gradual):
        last = delta == problem.delta
        inner, converged = _newton(
            problem._replace(delta=delta), inner, lower, upper, free, iterations if last else min(iterations, 40)
        )
    parameters = inner.copy()
    if problem.law.offset:
        parameters[:, :1] *= problem.scale
    residuals = _evaluate(problem, inner)[1]
    if problem.precision is None:
        objective = (problem.weights * problem.loss.rho(residuals)).sum(axis=1)
    else:
        objective = problem.misfit(residuals)
    return Minimum(parameters, objective, converged, free & (inner <= lower), free & (inner >= upper))


def _deltas(problem, gradual):
    """Returns the values of Huber's delta that the minimiser uses one after another; the last is the problem's own."""
    if problem.loss.delta > 0 and not gradual:
        return [problem.delta]
    unit = 1.0 if problem.loss.logarithmic else float(np.median(problem.scale))
    deltas, delta = [], FIRST_DELTA * unit
    while delta > problem.delta * 1.0001:
        deltas.append(delta)
        delta *= DELTA_STEP
    return [*deltas, problem.delta]


def _newton(problem, inner, lower, upper, free, iterations):
    """Takes damped Newton steps for each row. Returns (inner parameters, whether they are at a minimum)."""
    rows = len(inner)
    inner = inner.copy()
    active = np.arange(rows)  # rows still moving
    damping = np.full(rows, 1e-3)
    state = _evaluate(problem, inner)
    for _ in range(iterations):
        here = problem.rows(active)
        theta, now = inner[active], [array[active] for array in state]
        gradient, hessian, diagonal, _ = _derivatives(here, theta, now)
        # A parameter at its bound is held for this step if the gradient points beyond the bound.
        held = ~free | ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
        gradient = np.where(held, 0.0, gradient)
        step = _damped_step(gradient, hessian, diagonal, held, damping[active])
        proposal = np.where(free, np.clip(theta + step, lower, upper), theta)
        there = _evaluate(here, proposal)
        with np.errstate(invalid="ignore"):  # ∞ - ∞ is no gain
            gain = now[0] - there[0]
        better = gain > 0
        moved = np.abs(proposal - theta).max(axis=1)
        accepted = active[better]
        inner[accepted] = proposal[better]
        for array, new in zip(state, there, strict=True):
            array[accepted] = new[better]
        damping[active] = np.where(better, damping[active] / 5, damping[active] * 4).clip(1e-12, 1e14)
        # Done: the gradient is zero, the step is too small to matter, or no damping gains anything.
        done = moved < 1e-14 * (1 + np.abs(theta).max(axis=1))
        done |= better & (gain <= 1e-15 * now[0]) & (moved < 1e-9)
        done |= (~better & (damping[active] >= 1e12)) | (np.abs(gradient).max(axis=1) == 0)
        active = active[~done]
        if not len(active):
            break
    return inner, _at_minimum(problem, inner, state, lower, upper, free)


def _at_minimum(problem, inner, state, lower, upper, free):
    """Whether each row is at a minimum, where Newton's step would lower the objective by at most the share `CONVERGED`
    of the objective plus the error of rounding. A row whose derivatives are not finite is at none."""
    gradient, hessian, diagonal, finite = _derivatives(problem, inner, state)
    held = ~free | ((inner <= lower) & (gradient > 0)) | ((inner >= upper) & (gradient < 0))
    gradient = np.where(held, 0.0, gradient)
    step = _damped_step(gradient, hessian, diagonal, held, np.full(len(inner), 1e-9))
    decrease = -(gradient * step).sum(axis=1)
    unit = 1.0 if problem.loss.logarithmic else problem.scale[:, 0] ** 2
    rounding = 1e-24 * unit * problem.weights.sum(axis=1)
    # Absolute values are rounded off within delta of 0. There a step is about delta long, and so is the slope.
    kink = 1e2 * problem.delta**2 * problem.weights.sum(axis=1) if problem.loss.delta == 0 else 0.0
    return finite & (decrease <= CONVERGED * state[0] + rounding + kink)


def _evaluate(problem, inner):
    """Returns [objective [b], residuals [b, n], the law's loss [b, n], terms [b, terms, n]]."""
    law = problem.law
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        terms = np.stack(
            [
                np.exp(term.log_value(inner[:, part], problem.z[:, column]))
                for column, (term, part) in enumerate(zip(law.terms, law.slices, strict=True))
            ],
            axis=1,
        )
        total = terms.sum(axis=1)
        if law.offset:
            total += inner[:, :1] * problem.scale
        log_model = np.log(total)
        residuals = log_model - problem.y if problem.loss.logarithmic else total - np.exp(problem.y)
        value = problem.misfit(residuals)
    return [np.where(np.isfinite(value), value, np.inf), residuals, total, terms]


def _derivatives(problem, inner, state):
    """Returns gradient [b, k], exact Hessian [b, k, k], the diagonal of a Gauss-Newton matrix [b, k], and whether all
    of them are finite [b].

    A row whose derivatives are not finite gets a zero gradient, so that it stays where it is.
    """
    law, delta = problem.law, problem.delta
    _, residuals, total, terms = state
    rows, n = residuals.shape
    jacobian = np.empty((rows, inner.shape[1], n))  # of log loss
    with np.errstate(invalid="ignore", over="ignore"):
        if law.offset:
            jacobian[:, 0] = problem.scale / total
        shares = terms / total[:, None]
        for column, (term, part) in enumerate(zip(law.terms, law.slices, strict=True)):
            gradient = term.gradient(inner[:, part], problem.z[:, column])
            jacobian[:, part] = shares[:, column, None] * gradient
        clipped = np.clip(residuals, -delta, delta)
        inside = np.abs(residuals) <= delta
        slope, curvature = problem.weights * clipped, problem.weights * inside
        if problem.precision is not None:
            slope, curvature = _times(problem.precision, residuals), 0.0
        if not problem.loss.logarithmic:  # dL = L dlog L
            slope, curvature = slope * total, curvature * total**2
        # If M is the Hessian of L divided by L, and g the gradient of log L, the Hessian of log L is M - g g^T.
        outer = curvature - slope if problem.loss.logarithmic else curvature
        gradient = np.matmul(jacobian, slope[..., None])[..., 0]
        hessian = np.matmul(jacobian * outer[:, None], jacobian.transpose(0, 2, 1))
        if problem.precision is not None:
            gauss_newton = np.matmul(np.matmul(jacobian, problem.precision), jacobian.transpose(0, 2, 1))
            hessian += gauss_newton
        for column, (term, part) in enumerate(zip(law.terms, law.slices, strict=True)):
            g = term.gradient(inner[:, part], problem.z[:, column])
            pull = slope * shares[:, column]
            if len(g) == 1:  # the same for every row
                count = g.shape[1]
                products = (g[0][:, None] * g[0][None]).reshape(-1, n)
                hessian[:, part, part] += (pull @ products.T).reshape(rows, count, count)
            else:
                hessian[:, part, part] += np.matmul(g * pull[:, None], g.transpose(0, 2, 1))
            second = term.hessian(inner[:, part], problem.z[:, column])
            if second is not None:
                hessian[:, part, part] += np.einsum("bn,bijn->bij", pull, second)
        # Huber's weights 1 inside and delta/|r| outside give a matrix that is never indefinite.
        robust = problem.weights * np.where(inside, 1.0, delta / np.maximum(np.abs(residuals), 1e-300))
        if not problem.loss.logarithmic:
            robust = robust * total**2
        diagonal = np.matmul(jacobian**2, robust[..., None])[..., 0]
        if problem.precision is not None:
            diagonal = np.einsum("bkk->bk", gauss_newton).copy()
    finite = np.isfinite(state[0]) & np.isfinite(gradient).all(axis=1)
    finite &= np.isfinite(hessian).all(axis=(1, 2)) & np.isfinite(diagonal).all(axis=1)
    gradient[~finite], hessian[~finite], diagonal[~finite] = 0.0, 0.0, 1.0
    return gradient, hessian, diagonal, finite


def _times(precision, residuals):
    """P r for each row."""
    return np.matmul(precision, residuals[..., None])[..., 0]


def _damped_step(gradient, hessian, diagonal, held, damping):
    """Returns -(|H| + damping * D)^-1 g, [b, k]. D is the matrix with this `diagonal`. |H| = D^1/2 |S| D^1/2, where S =
    D^-1/2 H D^-1/2 is the scaled Hessian and |S| is S with its eigenvalues replaced by their absolute values.
    Parameters that are `held` do not move.

    Near a minimum this is Newton's step; on a saddle it still goes downhill.
    """
    floor = 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
    root = 1.0 / np.sqrt(np.maximum(diagonal, floor))
    free = ~held
    scaled = hessian * root[:, :, None] * root[:, None, :] * (free[:, :, None] & free[:, None, :])
    scaled[:, np.arange(scaled.shape[1]), np.arange(scaled.shape[1])] += held
    values, vectors = np.linalg.eigh(scaled)
    along = np.matmul(vectors.transpose(0, 2, 1), (gradient * root)[..., None])[..., 0]
    along /= np.abs(values) + damping[:, None]
    return -root * np.matmul(vectors, along[..., None])[..., 0] * free
