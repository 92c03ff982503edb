"""Decides whether data determine a law: before the fit by counting runs and distinct values and by a test for a trend,
after the fit from the minimum that was found."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import stats

from rfjax.laws.laws import BrokenTerm, Law
from rfjax.laws.minimiser import Minimum

# Beyond this condition number of the Jacobian (columns scaled to length 1), parameters cannot be told apart.
MAX_CONDITION = 1e7
# Above this p-value of a linear trend, chance alone may explain how the loss varies with the variables.
MAX_TREND_P = 0.2


def refusal(law: Law, log_x: Float[np.ndarray, "n v"], log_loss: Float[np.ndarray, " n"]) -> str:
    """Returns the reason why these points cannot determine the law; "" if they may."""
    n, k = len(log_x), len(law.parameters)
    if n <= k:
        return f"{n} run{'s'[: n != 1]} cannot decide {k} parameters; at least {k + 1} are needed"
    if np.ptp(log_loss) == 0:
        return f"the loss is the same for every run, {np.exp(log_loss[0]):g}"
    needed = distinct_needed(law)
    for column, name in enumerate(law.variables):
        values = np.unique(np.round(log_x[:, column], 9))
        if len(values) < needed:
            shown = ", ".join(f"{value:.6g}" for value in np.exp(values))
            return (
                f"{name} takes {len(values)} distinct value{'s'[: len(values) != 1]} over the {n} runs ({shown}); "
                f"the law needs at least {needed}"
            )
    distinct = len(np.unique(np.round(log_x, 9), axis=0))
    if distinct < k:
        return f"the runs have {distinct} distinct settings of {', '.join(law.variables)}; {k} parameters need {k}"
    if _trend_p(log_x, log_loss) > MAX_TREND_P:
        return f"the loss does not change with {' and '.join(law.variables)} by more than its scatter"
    return ""


def distinct_needed(law: Law) -> int:
    """Returns the number of distinct values that the law needs of each variable: 2 for a single power, 3 if there are
    other terms or an offset, and 3 more for a break."""
    plain = 3 if law.offset or len(law.terms) > 1 else 2
    return plain + 3 * any(isinstance(term, BrokenTerm) for term in law.terms)


def _trend_p(log_x, log_loss):
    """Returns the p-value of the F test of a linear fit of log loss to log x; 0 if that fit has no degree of freedom or
    leaves no residual."""
    n, v = log_x.shape
    if n <= v + 1:
        return 0.0
    design = np.column_stack([np.ones(n), log_x - log_x.mean(axis=0)])
    residuals = log_loss - design @ np.linalg.lstsq(design, log_loss, rcond=None)[0]
    left, total = float(residuals @ residuals), float(((log_loss - log_loss.mean()) ** 2).sum())
    if left <= 1e-24 * n:
        return 0.0
    return float(stats.f.sf((total - left) / v / (left / (n - v - 1)), v, n - v - 1))


def verdict(
    law: Law, minimum: Minimum, best: int, log_x: Float[np.ndarray, "n v"], agreeing: int
) -> tuple[str, tuple[str, ...]]:
    """Judges row `best` of `minimum`, the best minimum found. Returns (the reason why the data do not determine its
    parameters, or ""; warnings).

    `log_x` is centred, as it was in fitting; `agreeing` is the number of starts that ended at this minimum.
    """
    theta, lower, upper = minimum.parameters[best], minimum.at_lower[best], minimum.at_upper[best]
    if not minimum.converged[best]:
        return "the optimiser did not converge", ()
    for column, (term, part) in enumerate(zip(law.terms, law.slices, strict=True)):
        for index in range(part.start + 1, part.stop):
            name, value = law.parameters[index], theta[index]
            value = float(np.exp(value) if law.logarithmic[index] else value)
            if lower[index] and index == part.start + 1 and not isinstance(term, BrokenTerm):
                return f"the loss does not fall with {law.variables[column]}: {name} is at its bound 0", ()
            if isinstance(term, BrokenTerm) and index > part.start + 1 and (lower[index] or upper[index]):
                return f"the data show no break inside their range: {name} is at its bound", ()
            if upper[index]:
                return f"{name} is at its bound {value:g}", ()
    if law.offset and upper[0]:
        return "E is at its upper bound, the smallest loss", ()
    no_offset = law.offset and bool(lower[0])
    number = condition(law, theta, log_x, without=(0,) if no_offset else ())
    if number > MAX_CONDITION:
        return f"the data cannot tell the parameters apart (condition number {number:.1e})", ()
    warnings = []
    if no_offset:
        pure = len(law.terms) == 1 and not isinstance(law.terms[0], BrokenTerm)
        left = "the law is a pure power" if pure else "the law has none"
        warnings.append(f"E is at its bound 0: the data do not ask for an offset, and {left}")
    if len(log_x) - len(law.parameters) == 1:
        warnings.append("one degree of freedom: the scatter, and so every interval, rests on a single residual")
    if agreeing < 2:
        starts = len(minimum.objective)
        warnings.append(f"only {agreeing} of {starts} starts reached this minimum: there may be a lower one")
    return "", tuple(warnings)


def condition(
    law: Law, parameters: Float[np.ndarray, " k"], log_x: Float[np.ndarray, "n v"], without: tuple[int, ...] = ()
) -> float:
    """Returns the condition number of the Jacobian of log loss, with columns scaled to length 1; infinity if a column
    is zero. `without` has the indices of parameters to leave out."""
    jacobian = np.delete(law.jacobian(parameters, log_x), without, axis=1)
    norms = np.linalg.norm(jacobian, axis=0)
    return np.inf if (norms == 0).any() else float(np.linalg.cond(jacobian / norms))
