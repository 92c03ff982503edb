"""Computes profile likelihoods: how far one parameter can move while a refit of the others still follows the data.

For each value v of the parameter the others are fitted again. Their misfit S(v) is compared with S_min, the misfit
of the fit; n is the number of runs and k the number of parameters:

    T(v) = (n - k) (S(v) - S_min) / S_min        (n runs, k parameters)

For least squares of log residuals with normal noise, T follows F(1, n - k). For any other misfit the
distribution is simulated at the fitted law, from resampled residuals (with fewer than 8 runs, from normal
noise). The interval holds the values at which T stays below its 95 % point. The interval need not be symmetric, uses no
standard error, and ends at E = 0 if the data allow a law without offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from rfjax.errors import ConfigError
from rfjax.evaluation.intervals import LEVEL
from rfjax.laws.fitting import Fit
from rfjax.laws.held_out import MANY
from rfjax.laws.laws import MAX_EXPONENT, Law
from rfjax.laws.minimiser import minimise, starts
from rfjax.laws.resampling import MIN_RUNS_TO_RESAMPLE, add_noise

SIMULATIONS = 1000
REACH = np.geomspace(0.02, 50.0, 33)  # steps from the estimate, in half-widths of the bootstrap's interval
REFINEMENTS, PIECES = 4, 9  # searches that narrow the range where T passes `critical`, and values tried in each
ELSEWHERE = 12  # starts besides the fit's minimum, if points are few


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The interval of one parameter. If T stays below its 95 % point at all values tried below (or above) the estimate,
    that end of the interval is the parameter's bound or the last value tried, and `at_bound` is true for that end."""

    name: str
    value: float
    low: float
    high: float
    at_bound: tuple[bool, bool]
    level: float
    critical: float  # T's 95 % point (or that of `level`)
    method: str
    grid: Float[np.ndarray, " m"]  # values of the parameter, rising
    statistic: Float[np.ndarray, " m"]  # T at each value of `grid`


def profiled_parameters(law: Law) -> tuple[str, ...]:
    """Returns the names of the parameters that have a profile: E and the exponents."""
    return tuple(law.parameters[index] for index in law.profiled)


def profile(fit: Fit, name: str, *, level: float = LEVEL, simulations: int = SIMULATIONS, seed: int = 0) -> Profile:
    """Profiles E or an exponent of an identifiable fit.

    Raises `ConfigError` for a fit that is not identifiable, and for a coefficient: it is the value of a term at x = 1,
    far outside all data. Also raises `ConfigError` if runs share trunks: this likelihood is that of independent runs,
    and the fit's own intervals already come from the likelihood of runs that share trunks.
    """
    law = fit.law
    if fit.scatter is not None:
        raise ConfigError(
            f"the runs share {fit.scatter.trunks} trunks, so the {law.name} law has no profile of independent runs; "
            "the fit's own intervals of E and the exponents are of the likelihood of runs that share trunks"
        )
    if not fit.identifiable:
        raise ConfigError(f"the {law.name} law was not fitted ({fit.reason}); it has no profile")
    allowed = profiled_parameters(law)
    if name not in allowed:
        raise ConfigError(f"there is a profile for {', '.join(allowed)}, not for {name!r}")
    index = law.parameters.index(name)
    centre = fit.log_x.mean(axis=0)
    z, best = fit.log_x - centre, law.recentre(fit.parameters, -centre)
    freedom = fit.n - len(law.parameters)
    critical, method = _critical(fit, z, best, index, freedom, level, simulations, seed)
    least = fit.objective
    elsewhere = starts(law, z, fit.log_loss)
    elsewhere = elsewhere[:: max(1, len(elsewhere) // ELSEWHERE)]

    def statistic(values):
        grid = np.asarray(values, float)
        start = best[None] if fit.n > MANY else np.concatenate([best[None], elsewhere])
        rows = np.tile(start, (len(grid), 1))
        rows[:, index] = np.repeat(grid, len(start))
        found = minimise(law, rows, z, fit.log_loss, fit.loss, fixed=(index,))
        lowest = found.objective.reshape(len(grid), len(start)).min(axis=1)
        return freedom * np.maximum(lowest - least, 0.0) / max(least, 1e-300)

    estimate = fit.estimates[name]
    scale = max(estimate.high - estimate.value, estimate.value - estimate.low, 1e-6 * abs(estimate.value), 1e-12)
    bounds = (0.0, float(np.exp(fit.log_loss.min())) if index == 0 and law.offset else MAX_EXPONENT)
    ends, seen = [], [(np.array([estimate.value]), np.zeros(1))]
    for sign, bound in zip((-1, 1), bounds, strict=True):
        values = np.unique(np.clip(estimate.value + sign * scale * REACH, *sorted((estimate.value, bound))))[::sign]
        end, at_bound, trace = _crossing(statistic, estimate.value, values, critical)
        ends.append((end, at_bound))
        seen += trace
    grid, t = (np.concatenate(column) for column in zip(*seen, strict=True))
    order = np.unique(grid, return_index=True)[1]
    return Profile(
        name=name,
        value=estimate.value,
        low=ends[0][0],
        high=ends[1][0],
        at_bound=(ends[0][1], ends[1][1]),
        level=level,
        critical=critical,
        method=method,
        grid=grid[order],
        statistic=t[order],
    )


def _crossing(statistic, inside, values, critical):
    """Finds where T first exceeds `critical`, going from the estimate (`inside`) outwards along `values`, which end at
    the parameter's bound or before it. The place is then narrowed down between two neighbouring values.

    Returns (the place, False, [(values, T)] of each search). If T exceeds `critical` at none of `values`, returns (the
    last of them, True, [(values, T)]).
    """
    trace = []
    for _ in range(1 + REFINEMENTS):
        t = statistic(values)
        trace.append((values, t))
        beyond = np.flatnonzero(t > critical)
        if not len(beyond):
            if len(trace) == 1:  # T stays below `critical` up to the bound or the last value
                return float(values[-1]), True, trace
            inside = values[-1]
            continue
        first = beyond[0]
        inside = values[first - 1] if first else inside
        outside = values[first]
        values = np.linspace(inside, outside, PIECES + 1)[1:]
    return float(0.5 * (inside + outside)), False, trace


def _critical(fit, z, best, index, freedom, level, simulations, seed):
    """Returns (the value that T exceeds with probability 1 - level at the fitted law, how it was found)."""
    if fit.loss.logarithmic and np.isinf(fit.loss.delta):
        return float(stats.f.ppf(level, 1, freedom)), f"profile likelihood, F(1, {freedom})"
    rng = np.random.default_rng(seed)
    shape = (simulations, fit.n)
    if fit.n < MIN_RUNS_TO_RESAMPLE:
        normal, said = rng.standard_normal(shape), "normal noise"
    else:
        model = fit.law.log_loss(best, z)
        left = fit.log_loss - model if fit.loss.logarithmic else np.exp(fit.log_loss) - np.exp(model)
        normal, said = rng.choice(left - left.mean(), shape) / max(left.std(), 1e-300), "resampled residuals"
    data = add_noise(fit.law.log_loss(best, z)[None], np.array([[fit.residual_sd]]), normal, fit.loss)
    start = np.tile(best, (simulations, 1))
    fixed = minimise(fit.law, start, z, data, fit.loss, fixed=(index,))
    free = minimise(fit.law, fixed.parameters, z, data, fit.loss)
    other = minimise(fit.law, start, z, data, fit.loss)
    least = np.minimum(np.minimum(free.objective, other.objective), fixed.objective)
    t = freedom * (fixed.objective - least) / np.maximum(least, 1e-300)
    said = f"profile of the misfit, its 95 % point from {simulations:,} simulations with {said}"
    return float(np.quantile(t, level)), said.replace("95 %", f"{100 * level:g} %")
