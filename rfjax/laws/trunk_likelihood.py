"""Refits runs that share trunks by generalised least squares, and makes intervals from their likelihood.

The log loss has the covariance S = between² Z Zᵀ + within² I, where Z assigns runs to trunks (`rfjax.laws.trunks`).
With both scales known, twice the fall of the log likelihood from its maximum is a chi-square variable with one degree
of freedom at the true value v of a parameter, when the others are fitted again:

    T(v) = min over the others of r(v)ᵀ S⁻¹ r(v), minus its least value over v

So its signed root is a normal variable, and F(v) = Φ(±√T(v)) is a confidence distribution of the parameter (Schweder
and Hjort 2002, section 3). The scales are not known: F is averaged over their draws, as Student's t averages the normal
distribution. The interval's ends are where the average is 2.5 % and 97.5 %.

Refits of data with drawn noise (`generalised_refits`) serve all other intervals. The estimates and the refits minimise
rᵀ S⁻¹ r as well. What the branches of one trunk have in common moves them far less than it moves any misfit of
independent residuals.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from scipy.interpolate import PchipInterpolator

from rfjax.evaluation.intervals import ENDS
from rfjax.laws.laws import MAX_EXPONENT, Law
from rfjax.laws.minimiser import Minimum, minimise
from rfjax.laws.misfits import LOSSES
from rfjax.laws.trunks import Scatter, draw_noise

SQUARES = LOSSES["squares-log"]
RATIOS = 8  # values of between / within that stand for all draws
VALUES = 25  # values of the parameter at which T is computed
FINE = 601  # values at which F is read
REACH = 1.5  # widths of the draws that are searched on each side of the estimate
WIDEST = 3  # times that the search is widened by 4
LARGEST_SHARE = 0.999  # of the smallest loss, which E cannot exceed


def relative_covariance(scatter: Scatter, trunks: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
    """The covariance S / within² of the runs' noise, for the estimated ratio of between to within. The estimates of
    generalised least squares need no more than this."""
    return np.eye(len(trunks)) + scatter.ratio**2 * (trunks[:, None] == trunks)


def generalised_refits(
    rng: np.random.Generator,
    law: Law,
    parameters: Float[np.ndarray, " k"],
    log_x: Float[np.ndarray, "n v"],
    log_loss: Float[np.ndarray, " n"],
    trunks: Int[np.ndarray, " n"],
    scatter: Scatter,
) -> Minimum:
    """Refits, for each draw of the scales, data with that noise about the law that fits best with these scales.

    `log_x` is centred, and so are `parameters`, from which the search starts.
    """
    ratios, group = _ratios(scatter)
    precision = _precision(ratios, trunks)
    start = np.tile(parameters, (len(ratios), 1))
    best = minimise(law, start, log_x, log_loss, SQUARES, precision=precision).parameters
    data = law.log_loss(best, log_x)[group] + draw_noise(rng, scatter, trunks)
    return minimise(law, best[group], log_x, data, SQUARES, precision=precision[group])


def likelihood_ends(
    law: Law,
    index: int,
    parameters: Float[np.ndarray, " k"],
    draws: Float[np.ndarray, "draws k"],
    log_x: Float[np.ndarray, "n v"],
    log_loss: Float[np.ndarray, " n"],
    trunks: Int[np.ndarray, " n"],
    scatter: Scatter,
) -> tuple[float, float]:
    """The interval's ends of the parameter at `index`: E or an exponent.

    `log_x` is centred, and so are `parameters`, which start the search, and `draws`, whose spread says how far it
    goes. An end at which the likelihood has not fallen enough is the parameter's bound.
    """
    ratios, group = _ratios(scatter)
    precision = _precision(ratios, trunks)
    best = minimise(law, np.tile(parameters, (len(ratios), 1)), log_x, log_loss, SQUARES, precision=precision)
    offset = law.offset and index == 0
    bounds = (0.0, float(LARGEST_SHARE * np.exp(log_loss.min()))) if offset else (0.0, MAX_EXPONENT)
    centres = best.parameters[:, index]
    spread = np.quantile(draws[:, index], ENDS)
    width = max(spread[1] - spread[0], np.ptp(centres), 1e-6 * abs(parameters[index]), 1e-9)
    for _ in range(1 + WIDEST):
        low, high = max(bounds[0], centres.min() - REACH * width), min(bounds[1], centres.max() + REACH * width)
        fine = np.linspace(low, high, FINE)
        distribution = np.zeros(FINE)
        values = np.linspace(low, high, VALUES)
        roots = _signed_roots(law, index, values, best, parameters, log_x, log_loss, precision)
        for number, root in enumerate(roots):
            mine = scatter.within[group == number]
            steps = PchipInterpolator(values, root)(fine)
            distribution += stats.norm.cdf(steps / mine[:, None]).sum(axis=0) / len(group)
        open_ends = (low > bounds[0] and distribution[0] > ENDS[0], high < bounds[1] and distribution[-1] < ENDS[1])
        if not any(open_ends):
            break
        width *= 4
    inside = np.maximum.accumulate(distribution)
    ends = np.interp(ENDS, inside, fine)
    return float(low if inside[0] > ENDS[0] else ends[0]), float(high if inside[-1] < ENDS[1] else ends[1])


def _ratios(scatter):
    """The ratios between / within that stand for groups of the draws, and the group of each draw."""
    logs = np.log(scatter.between / scatter.within)
    cuts = np.quantile(logs, np.linspace(0, 1, RATIOS + 1)[1:-1])
    group = np.searchsorted(cuts, logs)
    present = np.unique(group)
    return np.exp([np.median(logs[group == number]) for number in present]), np.searchsorted(present, group)


def _precision(ratios, trunks):
    """The inverse covariances [ratios, n, n] of the runs in units of within²."""
    shared = trunks[:, None] == trunks
    return np.linalg.inv(np.eye(len(trunks)) + ratios[:, None, None] ** 2 * shared)


def _signed_roots(law, index, values, best, parameters, log_x, log_loss, precision):
    """±√T [ratios, values] in units of `within`, negative below the estimate of each ratio."""
    ratios, count = len(precision), len(values)
    starts = np.stack([best.parameters, np.tile(parameters, (ratios, 1))])
    rows = np.repeat(starts[:, :, None], count, axis=2)  # [starts, ratios, values, k]
    rows[..., index] = values
    each = np.tile(np.repeat(precision, count, axis=0), (len(starts), 1, 1))
    found = minimise(law, rows.reshape(-1, rows.shape[-1]), log_x, log_loss, SQUARES, precision=each, fixed=(index,))
    least = found.objective.reshape(len(starts), ratios, count).min(axis=0)
    smallest = np.minimum(least.min(axis=1), best.objective)[:, None]
    return np.sign(values - best.parameters[:, [index]]) * np.sqrt(2 * np.maximum(least - smallest, 0.0))
