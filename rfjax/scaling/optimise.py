"""Minimise the Huber loss of log residuals, for many fits at once.

    minimise over theta:  sum_i rho_delta( log L(x_i; theta) - log L_i )

rho is Huber's: r^2/2 inside delta and delta(|r| - delta/2) outside; delta = inf is least squares.
The sum, not the mean: a mean shrinks the objective below an optimiser's tolerance, and a
published fit stopped early for it (Besiroglu et al. 2024). Every start and every bootstrap
resample is one row of a batch, so that a thousand refits cost one loop in numpy.

Each row takes Levenberg-Marquardt steps with the analytic gradient. Inside, the offset is
E = share * scale with 0 <= share < 1 and scale the smallest loss of the row, exponents are bounded
and log x is expected centred, so that all parameters are of order one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from rfjax.scaling.laws import Law

MAX_EXPONENT = 10.0
# E must stay below the smallest loss seen, or the other terms would have to be nothing there.
MAX_SHARE = 1.0 - 1e-9
ITERATIONS = 400


class Minimum(NamedTuple):
    parameters: Float[np.ndarray, "batch k"]  # in the law's own order: E, then log A_k, e_k
    objective: Float[np.ndarray, " batch"]
    converged: Bool[np.ndarray, " batch"]
    at_lower: Bool[np.ndarray, "batch k"]
    at_upper: Bool[np.ndarray, "batch k"]


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """Huber's rho, elementwise, in squared units of the residual (log loss)."""
    size = np.abs(residuals)
    if np.isinf(delta):
        return 0.5 * residuals**2
    return np.where(size <= delta, 0.5 * residuals**2, delta * (size - 0.5 * delta))


def bounds(law: Law) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Lower and upper bounds of the inner parameters (share, then log A, e of each term)."""
    lower = [0.0] * law.offset + [-np.inf, 0.0] * len(law.terms)
    upper = [MAX_SHARE] * law.offset + [np.inf, MAX_EXPONENT] * len(law.terms)
    return np.array(lower), np.array(upper)


def starts(
    law: Law, log_x: Float[np.ndarray, "n v"], log_loss: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "starts k"]:
    """A grid of starts in the law's own parameters: exponents by decades, E from 0 to near min L.

    Each coefficient is set so that the terms share what E leaves of the mean loss equally.
    """
    grid = np.geomspace(0.02, 2.0, 7 if len(law.terms) == 1 else 5)
    shares = np.array([0.0, 0.3, 0.6, 0.9]) if law.offset else np.array([0.0])
    axes = np.meshgrid(shares, *[grid] * len(law.terms), indexing="ij")
    flat = np.stack([axis.ravel() for axis in axes], axis=-1)
    scale = np.exp(log_loss.min())
    columns = [flat[:, :1] * scale] if law.offset else []
    rest = np.exp(log_loss)[None] - flat[:, :1] * scale  # [starts, n], positive as shares < 1
    level = np.log(rest / len(law.terms)).mean(axis=1)
    for term in range(len(law.terms)):
        exponent = flat[:, 1 + term]
        columns += [(level + exponent * log_x[:, term].mean())[:, None], exponent[:, None]]
    return np.concatenate(columns, axis=1)


def minimise(
    law: Law,
    start: Float[np.ndarray, "batch k"],
    log_x: Float[np.ndarray, "#batch n v"],
    log_loss: Float[np.ndarray, "#batch n"],
    delta: float,
    *,
    weights: Float[np.ndarray, "batch n"] | None = None,
    iterations: int = ITERATIONS,
) -> Minimum:
    """The minimum reached from each row's own start on its own data.

    `log_x` and `log_loss` may have a batch axis of 1 (many starts on the same data).
    `weights` multiply rho point by point (counts of a bootstrap resample).
    """
    rows = len(start)
    log_x = np.broadcast_to(log_x, (rows, *log_x.shape[1:]))
    log_loss = np.broadcast_to(log_loss, (rows, log_loss.shape[1]))
    weights = np.ones_like(log_loss) if weights is None else weights
    scale = np.exp(log_loss.min(axis=1, where=weights > 0, initial=np.inf))
    lower, upper = bounds(law)

    inner = np.array(start, dtype=float)
    if law.offset:
        inner[:, 0] /= scale
    inner = np.clip(inner, lower, upper)
    active = np.arange(rows)  # rows still moving
    damping = np.full(rows, 1e-3)
    converged = np.zeros(rows, bool)
    objective = _objective(law, inner, log_x, log_loss, weights, scale, delta)

    for _ in range(iterations):
        if not len(active):
            break
        theta, x, y, w, s = inner[active], log_x[active], log_loss[active], weights[active], scale[active]
        residuals, jacobian = _residuals(law, theta, x, y, s)
        gradient, hessian, diagonal = _normal_equations(law, x, residuals, jacobian, w, delta)
        # A parameter at its bound, which the gradient would push out, is held for this step.
        held = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
        gradient = np.where(held, 0.0, gradient)
        step = _damped_step(gradient, hessian, diagonal, held, damping[active])
        proposal = np.clip(theta + step, lower, upper)
        proposed = _objective(law, proposal, x, y, w, s, delta)
        better = proposed < objective[active]
        moved = np.abs(proposal - theta).max(axis=1)

        gain = objective[active] - proposed
        inner[active[better]] = proposal[better]
        objective[active[better]] = proposed[better]
        damping[active] = np.where(better, damping[active] / 5, damping[active] * 4).clip(1e-12, 1e14)
        # Done: no direction left, a step too small to matter, or nothing gained however damped.
        small = (moved < 1e-13 * (1 + np.abs(theta).max(axis=1))) | (
            better & (gain <= 1e-15 * objective[active]) & (moved < 1e-9)
        )
        stuck = ~better & (damping[active] >= 1e12)
        done = small | stuck | (np.abs(gradient).max(axis=1) == 0)
        converged[active[done]] = True
        active = active[~done]

    parameters = inner.copy()
    if law.offset:
        parameters[:, 0] *= scale
    return Minimum(parameters, objective, converged, inner <= lower, inner >= upper)


def _model(law, inner, log_x, scale):
    """Share of each term in the loss [b, n, k terms (E first)], and the log of the loss [b, n]."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        terms = np.exp(law.log_terms(inner, log_x))
        if law.offset:
            offset = np.broadcast_to((inner[:, 0] * scale)[:, None, None], (*terms.shape[:-1], 1))
            terms = np.concatenate([offset, terms], axis=-1)
        total = terms.sum(axis=-1)
        return terms / total[..., None], np.log(total), total


def _objective(law, inner, log_x, log_loss, weights, scale, delta):
    _, log_model, _ = _model(law, inner, log_x, scale)
    with np.errstate(invalid="ignore"):
        value = (weights * huber(log_model - log_loss, delta)).sum(axis=1)
    return np.where(np.isfinite(value), value, np.inf)


def _residuals(law, inner, log_x, log_loss, scale):
    """log residuals [b, n] and their Jacobian in the inner parameters [b, n, k]."""
    shares, log_model, total = _model(law, inner, log_x, scale)
    columns = [scale[:, None] / total] if law.offset else []
    for term in range(len(law.terms)):
        share = shares[..., law.offset + term]
        columns += [share, -share * log_x[..., term]]
    return log_model - log_loss, np.stack(columns, axis=-1)


def _normal_equations(law, log_x, residuals, jacobian, weights, delta):
    """Gradient [b, k], exact Hessian [b, k, k] and its Gauss-Newton diagonal [b, k]."""
    size = np.abs(residuals)
    inside = size <= delta
    slope = weights * np.where(inside, residuals, np.sign(residuals) * delta)
    curvature = weights * inside
    gradient = np.einsum("bn,bnk->bk", slope, jacobian)
    # Hessian of log L is (Hessian of L) / L - g g^T, and only the terms have second derivatives.
    hessian = np.einsum("bn,bni,bnj->bij", curvature - slope, jacobian, jacobian)
    for term in range(len(law.terms)):
        at = law.offset + 2 * term
        share = jacobian[..., at]  # d log L / d log A is the term's share of the loss
        z = log_x[..., term]
        hessian[:, at, at] += (slope * share).sum(1)
        cross = (-slope * share * z).sum(1)
        hessian[:, at, at + 1] += cross
        hessian[:, at + 1, at] += cross
        hessian[:, at + 1, at + 1] += (slope * share * z**2).sum(1)
    # Huber's weights 1 inside and delta/|r| outside give a matrix that is never indefinite.
    with np.errstate(divide="ignore"):
        robust = weights * np.where(inside, 1.0, delta / size)
    diagonal = np.einsum("bn,bnk->bk", robust, jacobian**2)
    return gradient, hessian, diagonal


def _damped_step(gradient, hessian, diagonal, held, damping):
    """-(|H| + damping * D)^-1 g with |H| the Hessian with its eigenvalues made positive.

    Near a minimum this is Newton's step; on a saddle it still goes downhill.
    """
    floor = 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
    root = 1.0 / np.sqrt(np.maximum(diagonal, floor))
    free = ~held
    scaled = hessian * root[:, :, None] * root[:, None, :] * (free[:, :, None] & free[:, None, :])
    scaled[:, np.arange(scaled.shape[1]), np.arange(scaled.shape[1])] += held
    values, vectors = np.linalg.eigh(scaled)
    along = np.einsum("bki,bk->bi", vectors, gradient * root)
    along /= np.abs(values) + damping[:, None]
    return -root * np.einsum("bki,bi->bk", vectors, along) * free
