"""Makes intervals for laws that are fitted to runs that share trunks, by generalised least squares.

The log losses have the covariance S = between² Z Zᵀ + within² I, where Z assigns runs to trunks (`rfjax.laws.trunks`).
r are the residuals of log loss. The statistic of a value v of one parameter is

    T(v) = min over the other parameters of rᵀ S⁻¹ r at v, minus the least such minimum over all v.

T is twice the fall of the profiled log likelihood from its maximum. If both scales (between and within) are known, T at
the true value is a chi-square variable with one degree of freedom, so its signed root is a normal variable. Then
F(v) = Φ(±√T(v)) is a confidence distribution of the parameter (Schweder and Hjort 2002, section 3). The scales are not
known, so F is averaged over draws of them, just as Student's t averages normal distributions. The interval ends where
the average is 2.5 % and 97.5 % (`likelihood_ends`).

The estimates of the law, and the refits of data with drawn noise that serve all other intervals (`generalised_refits`),
also minimise rᵀ S⁻¹ r. Noise that all branches of a trunk share moves such a fit far less than a fit that takes
residuals as independent.
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
FINE = 601  # values at which F is interpolated
REACH = 1.5  # the search goes to each side of the estimate by this many widths of the draws' interval
WIDEST = 3  # how often the search may be widened, each time by a factor 4
LARGEST_SHARE = 0.999  # E is at most this share of the smallest loss


def relative_covariance(
    ratio: Float[np.ndarray, "*ratios"], trunks: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "*ratios n n"]:
    """Returns the matrix S / within² for each ratio of between to within, where S is the covariance of the runs' noise.
    The factor within² does not change the estimates of generalised least squares."""
    return np.eye(len(trunks)) + np.asarray(ratio)[..., None, None] ** 2 * (trunks[:, None] == trunks)


def generalised_refits(
    rng: np.random.Generator,
    law: Law,
    parameters: Float[np.ndarray, " k"],
    log_x: Float[np.ndarray, "n v"],
    log_loss: Float[np.ndarray, " n"],
    trunks: Int[np.ndarray, " n"],
    scatter: Scatter,
) -> Minimum:
    """Fits the law again to simulated data, once for each draw of the two scales of noise, between and within trunks.
    The law is first fitted to the real data, once for each group of draws with similar ratios of the scales. The
    simulated data of a draw are its group's law plus noise of the drawn scales. `log_x` is centred; `parameters`, from
    which the search starts, belong to the centred `log_x`.
    """
    ratios, group = _ratios(scatter)
    precision = np.linalg.inv(relative_covariance(ratios, trunks))
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
    """Returns the ends (low, high) of the interval of the parameter at `index`, which is E or an exponent.

    `log_x` is centred; `parameters` and `draws` belong to the centred `log_x`. The search starts at `parameters`, and
    the spread of `draws` decides how far it goes. If the likelihood does not fall enough before the parameter's bound,
    the interval ends at the bound.
    """
    ratios, group = _ratios(scatter)
    precision = np.linalg.inv(relative_covariance(ratios, trunks))
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
    """Groups the draws by the ratio `scatter.between / scatter.within`, since one fit serves all draws of a group.
    Returns (a ratio for each group, the index of each draw's group)."""
    logs = np.log(scatter.between / scatter.within)
    cuts = np.quantile(logs, np.linspace(0, 1, RATIOS + 1)[1:-1])
    group = np.searchsorted(cuts, logs)
    present = np.unique(group)
    return np.exp([np.median(logs[group == number]) for number in present]), np.searchsorted(present, group)


def _signed_roots(law, index, values, best, parameters, log_x, log_loss, precision):
    """Returns ±√T times `within`, [ratios, values], where T is the likelihood-ratio statistic. The sign is negative at
    values below the estimate for that ratio."""
    ratios, count = len(precision), len(values)
    starts = np.stack([best.parameters, np.tile(parameters, (ratios, 1))])
    rows = np.repeat(starts[:, :, None], count, axis=2)  # [starts, ratios, values, k]
    rows[..., index] = values
    each = np.tile(np.repeat(precision, count, axis=0), (len(starts), 1, 1))
    found = minimise(law, rows.reshape(-1, rows.shape[-1]), log_x, log_loss, SQUARES, precision=each, fixed=(index,))
    least = found.objective.reshape(len(starts), ratios, count).min(axis=0)
    smallest = np.minimum(least.min(axis=1), best.objective)[:, None]
    return np.sign(values - best.parameters[:, [index]]) * np.sqrt(2 * np.maximum(least - smallest, 0.0))
